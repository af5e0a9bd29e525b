"""SQL from visitors: judged, run in fenced processes, rendered there, and sent."""
