"""Many items at once: sessions, and the locks and sets in them."""
