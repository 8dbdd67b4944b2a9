"""``slow_fs.py DIRECTORY MOUNTPOINT SECONDS``: a file system that shows a directory, each request taking so long.

For looking only, by FUSE: needs mfusepy and libfuse. Requests wait beside each other, as they do on the way to a
server; what the kernel keeps of them for a second, as it does of a server's answers, costs nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import mfusepy


class SlowFS(mfusepy.Operations):
    """Shows a directory, slowly."""

    use_ns = True

    def __init__(self, root: str, seconds: float) -> None:
        self._root = root
        self._seconds = seconds

    def _ask(self, path: str) -> str:
        time.sleep(self._seconds)
        return self._root + path

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self._ask(path))
        fields = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_ino")
        times = {f"st_{kind}time": getattr(status, f"st_{kind}time_ns") for kind in "acm"}
        return {name: getattr(status, name) for name in fields} | times

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        names = os.listdir(self._ask(path))
        yield from (".", "..", *names)

    def readlink(self, path: str) -> str:
        return os.readlink(self._ask(path))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with open(self._ask(path), "rb") as file:
            file.seek(offset)
            return file.read(size)

    def statfs(self, path: str) -> dict[str, int]:
        figures = os.statvfs(self._ask(path))
        return {name: getattr(figures, name) for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail")}


if __name__ == "__main__":
    mfusepy.FUSE(SlowFS(sys.argv[1], float(sys.argv[3])), sys.argv[2], foreground=True, ro=True, max_threads=64)
