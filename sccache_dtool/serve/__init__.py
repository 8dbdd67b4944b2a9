"""The cache over HTTP: an optional service (extra `serve`). It decides nothing that the file system does not decide."""
