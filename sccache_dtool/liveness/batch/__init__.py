"""Batch systems that say whether a job has ended."""
