"""What the pages show, as plain data: one card per model, head, parameter, comparison or question."""
