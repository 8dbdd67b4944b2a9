"""Sets of items, each shown at a path of its own."""
