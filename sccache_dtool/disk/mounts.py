"""The mount of a directory: type, source and options, from /proc/self/mountinfo (proc(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Mount(NamedTuple):
    """A mounted file system."""

    type: str  # such as ``nfs4`` or ``fuse.sshfs``
    source: str  # such as ``server:/export``
    options: dict[str, str]  # those of the mount and of the file system; without a value: ""


#: File systems whose subvolumes have device numbers of their own, which mountinfo does not show.
_WITH_SUBVOLUMES = frozenset({"bcachefs", "btrfs"})


class _Line(NamedTuple):
    """One line of mountinfo."""

    device: str  # ``major:minor``
    point: str
    mount: Mount


def mount_of(path: str, mounts: str = "/proc/self/mountinfo") -> Mount | None:
    """The mount that `path` is on; None if it cannot be determined."""
    device = os.stat(path).st_dev
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            return find(file, f"{os.major(device)}:{os.minor(device)}", os.path.realpath(path))
    except OSError:
        return None


def find(mountinfo: Iterable[str], device: str, path: str) -> Mount | None:
    """The mount of the device ``major:minor`` that contains `path`, a path without symbolic links.

    Of several mounts of one device, the one with the longest mount point, and of these the last. A device without a
    mount belongs to a subvolume, if the file system that contains `path` has subvolumes.
    """
    lines = [parsed for line in mountinfo for parsed in _parse(line)]
    found = [line for line in lines if line.device == device]
    if found:
        return (_nearest(found, path) or found[-1]).mount
    around = _nearest(lines, path)
    return around.mount if around is not None and around.mount.type in _WITH_SUBVOLUMES else None


def _nearest(lines: Iterable[_Line], path: str) -> _Line | None:
    """The last of the mounts with the longest mount point that contains `path`; None if there is none."""
    above = [line for line in lines if f"{path}/".startswith(f"{line.point.rstrip('/')}/")]
    longest = max((len(line.point) for line in above), default=0)
    return next((line for line in reversed(above) if len(line.point) == longest), None)


def _parse(line: str) -> Iterator[_Line]:
    """The parsed line; empty if it is malformed."""
    before, _, after = line.rstrip("\n").partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if len(fields) >= 6 and len(rest) >= 3:
        words = [*fields[5].split(","), *rest[2].split(",")]
        options = {name: value for name, _, value in (word.partition("=") for word in words)}
        yield _Line(fields[2], _plain(fields[4]), Mount(rest[0], _plain(rest[1]), options))


def _plain(text: str) -> str:
    """Decode the kernel's octal escapes, such as backslash 040 for a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
