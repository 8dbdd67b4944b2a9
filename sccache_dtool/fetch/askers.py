"""In whose name a source is asked: two who ask in the same way get the same answer, and may share a refusal."""

from __future__ import annotations

import os

from sccache_dtool.fetch.request import Request, Source
from sccache_dtool.protocol.holders import user_name


def asked_as(request: Request) -> str:
    """A text that is the same for two askers only if they ask alike. It has no credentials in it.

    Who asks a web server without credentials asks as everybody does. What else is asked may know its users, or find
    credentials where only its own client looks. A local path leads to the same file if size and time are the same.
    """
    if request.bring is not None:
        return user_name()
    return " | ".join(_asked_as(mirror) for chain in request.stack.chains for mirror in chain.mirrors)


def _asked_as(source: Source) -> str:
    if source.scheme == "file":
        try:
            status = os.stat(source.location)
        except OSError as error:
            return f"{user_name()}: {error.strerror}"
        return f"{status.st_size} {status.st_mtime_ns}"
    if source.scheme in ("http", "https"):
        from sccache_dtool.fetch import http

        return user_name() if http.has_credentials(source) else "anybody"
    return user_name()
