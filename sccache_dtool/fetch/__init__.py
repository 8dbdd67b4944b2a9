"""Getting what is not there yet: a source, then steps, in a work area that nobody else sees."""
