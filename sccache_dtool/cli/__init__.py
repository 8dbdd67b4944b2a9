"""What people type: one module per group of commands, and one that prints."""
