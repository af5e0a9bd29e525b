"""What the pages show, as plain data: a card for each model, head, parameter, comparison or search."""
