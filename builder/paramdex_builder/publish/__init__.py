"""Publishing: where an atlas is built, and how a finished model becomes part of it in one step."""
