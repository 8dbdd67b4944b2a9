"""The file system: names on disk, and every call that touches them."""
