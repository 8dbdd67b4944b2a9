"""Deciding what may go (pure functions over snapshots), and letting it go."""
