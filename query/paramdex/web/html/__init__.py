"""Cards as HTML: fills the templates, and computes what they draw."""
