"""SQL from visitors: it is checked, run in a fenced process, and rendered there."""
