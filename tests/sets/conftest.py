"""A cache, a runner and a web server, as for the command line."""

from cli.conftest import disk, root, sc, server  # noqa: F401
