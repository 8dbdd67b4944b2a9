"""Under which identity a source is asked. Processes that ask under the same identity may share a failure."""

from __future__ import annotations

import os

from sccache_dtool.fetch.request import Request, Source
from sccache_dtool.liveness.caller import user_name


def asked_as(request: Request) -> str:
    """The identity under which an item's sources are asked, without credentials.

    A request to a web server without credentials has the identity "anybody". Every other server may know its users, or
    its client may find credentials in places of its own. A local path leads to the same file if its size and its time
    of modification are the same.
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
