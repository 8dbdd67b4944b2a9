"""What is in a cache: items, copies, loose files, totals."""
