"""What may be evicted, and when: pure functions and settings."""
