"""Cards as pages: templates, the words and numbers in them, and their drawings."""
