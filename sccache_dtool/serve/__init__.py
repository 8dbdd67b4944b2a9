"""The cache over HTTP: an optional service (extra `serve`), which decides nothing that the file system does not decide."""
