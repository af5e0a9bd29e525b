"""Many visitors at once: turns, processes for heavy questions, and connections that come to nothing."""
