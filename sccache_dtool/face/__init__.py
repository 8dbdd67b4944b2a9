"""What `Cache` can do, floor upon floor: open a cache, look into it, keep it in order."""
