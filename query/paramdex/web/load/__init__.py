"""Many visitors at once: turns for pages, processes for heavy questions, time limits for connections."""
