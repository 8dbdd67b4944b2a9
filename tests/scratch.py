"""Where tests make their files: in memory, where there is enough of it, as nothing waits for a disk there."""

from __future__ import annotations

import os

_MEMORY = "/dev/shm"

#: Bytes that must be free; all tests at once take a tenth of that.
_ENOUGH = 2 << 30


def memory() -> str | None:
    """A directory on a file system in memory, for tests that make thousands of small files; None if there is none."""
    return _MEMORY if os.access(_MEMORY, os.W_OK) else None


def memory_for_all() -> str | None:
    """The same for all tests: it has room, and programs can be run that lie there (as not in most containers)."""
    try:
        there = os.statvfs(_MEMORY)
    except OSError:
        return None
    fits = there.f_bavail * there.f_frsize >= _ENOUGH and not there.f_flag & os.ST_NOEXEC
    return memory() if fits else None
