"""Files known by their content: the archive, markers in the users' own directories, and indexes of the archive."""
