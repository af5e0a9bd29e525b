"""The residual stream of a running model: its states, and the space in which what reads them can be read."""
