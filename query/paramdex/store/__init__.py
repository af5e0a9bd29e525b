"""Reading an atlas: its models, its tables, its vectors, and the checks of what is asked. Knows no verb."""
