"""How the work is done: threads, memory, progress."""
