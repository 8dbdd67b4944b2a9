"""What a directory is mounted from: type, source and options, as the kernel tells them (proc(5), mountinfo)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple


class Mount(NamedTuple):
    """A mounted file system."""

    type: str  # such as ``nfs4`` or ``fuse.sshfs``
    source: str  # such as ``server:/export``
    options: dict[str, str]  # those of the mount and of the file system; without a value: ""


def mount_of(path: str, mounts: str = "/proc/self/mountinfo") -> Mount | None:
    """The file system that `path` is on, by its device number; None if it cannot be told.

    Of several mounts of one device, the last one on the longest way to `path`.
    """
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    real = os.path.realpath(path)
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            found = [(point, mount) for line in file for of, point, mount in _parse(line) if of == number]
    except OSError:
        return None
    above = [(len(point), mount) for point, mount in found if f"{real}/".startswith(f"{point.rstrip('/')}/")]
    longest = max((length for length, _ in above), default=0)
    candidates = [mount for length, mount in above if length == longest] or [mount for _, mount in found]
    return candidates[-1] if candidates else None


def _parse(line: str) -> Iterator[tuple[str, str, Mount]]:
    """Device, mount point and mount of a line; nothing for a line that is none."""
    before, _, after = line.rstrip("\n").partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if len(fields) >= 6 and len(rest) >= 3:
        words = [*fields[5].split(","), *rest[2].split(",")]
        options = {name: value for name, _, value in (word.partition("=") for word in words)}
        yield fields[2], _plain(fields[4]), Mount(rest[0], _plain(rest[1]), options)


def _plain(text: str) -> str:
    """Without the kernel's escapes of blanks, such as backslash 040 for a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
