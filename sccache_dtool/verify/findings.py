"""What is known of a file system by its mount, what checks find, what errors mean, and the verdict that follows."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from sccache_dtool.disk.mounts import Mount
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import FULL, CacheError, NoSpace, UsageError, explain

Announce = Callable[[str], None]


class Weight(IntEnum):
    """What a finding means for the verdict; the heaviest decides."""

    GOOD = 0
    TOLD = 1  # worth knowing; nothing depends on it
    ONE_HOST = 2  # leases would not hold between hosts
    UNTRIED = 3  # whether leases would hold is not known
    UNFIT = 4  # leases would not hold at all

    @property
    def word(self) -> str:
        """For people and programs."""
        return ("good", "note", "one host", "not tried", "unfit")[self]


class Fitness(StrEnum):
    """What a file system is good for."""

    FIT = "fit"
    ONE_HOST = "fit for one host"
    UNDECIDED = "undecided"
    UNFIT = "unfit"


class Finding(NamedTuple):
    """What one check has shown. Figures are seconds, counts or short texts, by name."""

    check: str
    weight: Weight
    what: str
    figures: Mapping[str, Any] = MappingProxyType({})

    def on(self, host: str) -> Finding:
        """The same, with the name of the host that has found it."""
        return self._replace(what=f"on {host}: {self.what}")

    def as_fields(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "figures": dict(self.figures)}


def good(what: str = "", **figures: object) -> Finding:
    """The check under way has passed. Without words, those of both sides' figures follow."""
    return Finding("", Weight.GOOD, what, figures)


def note(what: str, **figures: object) -> Finding:
    """The check under way has passed, with something worth knowing."""
    return good(what, **figures)._replace(weight=Weight.TOLD)


class Refuted(Exception):
    """The file system does not do what the check under way is about: in words, and in figures."""


def require(condition: object, otherwise: str, figures: Mapping[str, object] = MappingProxyType({})) -> None:
    """Raises Refuted unless the condition holds."""
    if not condition:
        raise Refuted(otherwise, figures)


class Report(NamedTuple):
    """What all checks have shown, and who took part."""

    directory: str
    kind: str  # of the file system
    hosts: tuple[str, ...]
    independent: bool  # two of them, with nothing but the file system in common
    findings: tuple[Finding, ...]

    @property
    def heaviest(self) -> Finding:
        """The finding that decides: the first of the heaviest weight."""
        return max(self.findings, key=lambda finding: finding.weight)

    @property
    def fitness(self) -> Fitness:
        """Only what was tried is vouched for: without a second host, nothing is said of several."""
        if self.heaviest.weight >= Weight.UNTRIED:
            return Fitness.UNFIT if self.heaviest.weight is Weight.UNFIT else Fitness.UNDECIDED
        return Fitness.FIT if self.independent and self.heaviest.weight < Weight.ONE_HOST else Fitness.ONE_HOST

    @property
    def verdict(self) -> str:
        """One line: what it is good for, and why it is no better."""
        if self.heaviest.weight >= Weight.ONE_HOST:
            reason = f"{self.heaviest.check}: {self.heaviest.what}"
        elif self.independent:
            reason = f"every check passed on {' and '.join(self.hosts)} ({self.kind})"
        elif len(self.hosts) > 1:
            reason = f"both participants are on one host, {self.hosts[0]}, and on one mount ({self.kind})"
        else:
            reason = f"only {self.hosts[0]} took part ({self.kind})"
        return f"{self.fitness}: {reason}"


#: Errors of a moment: a disk or a network that fails, a server that is away, a process or a host at its limits.
_PASSING = (
    "EIO EINTR EAGAIN EBUSY ENOMEM EMFILE ENFILE ENOTCONN ETIMEDOUT ECONNREFUSED ECONNRESET ECONNABORTED EHOSTDOWN "
    "EHOSTUNREACH ENETDOWN ENETUNREACH"
).split()


def is_answer(error: OSError) -> bool:
    """Whether an error is the file system's answer; others say only that this was a bad moment to ask."""
    return error.errno not in FULL and errno.errorcode.get(error.errno or 0) not in _PASSING


def refusal(act: Callable[[], object], allowed: frozenset[int] | None = None) -> OSError | None:
    """The error by which an act was refused, None if it was done.

    Raises an error that is not among the `allowed` ones or, without these, one that is not an answer.
    """
    try:
        act()
    except OSError as error:
        if is_answer(error) if allowed is None else error.errno in allowed:
            return error
        raise
    return None


def reason(error: BaseException) -> str:
    """Why something was not done, in one sentence."""
    return explain(error) if isinstance(error, OSError) else str(error)


def broken_off(directory: str, error: OSError) -> CacheError:
    """That a verification could not be brought to an end, and so has no verdict."""
    kind, first = (NoSpace, "free some space, and ") if error.errno in FULL else (CacheError, "")
    hint = f"{first}verify it again; nothing is known of this file system yet"
    return kind(f"could not be tried: {directory}: {explain(error)}", hint=hint)


def cannot_be_used(directory: str, error: OSError) -> CacheError:
    """That a directory cannot be listed, or that nothing can be created in it."""
    if not is_answer(error):
        return broken_off(directory, error)
    hint = "give a directory on the mount, in which you can write"
    return UsageError(f"cannot verify {directory}: {explain(error)}", hint=hint)


TYPE, OPTIONS = "file system", "mount options"

_LOCAL = Weight.GOOD, ", of this host alone"

#: Programs by what is known of their mounts: weight, and the rest of a sentence. There is no rename of directories, no
#: exclusive creation and no rmdir in an object store, and what a client does instead is not decided in one place.
_KNOWN = {
    "s3fs goofys rclone gcsfuse mountpoint-s3 mount-s3 blobfuse blobfuse2 ossfs cosfs obsfs riofs s3backer s3ql davfs "
    "davfs2 geesefs": (Weight.UNFIT, " shows an object store, which decides nothing in one place"),
    # As it was measured.
    "sshfs": (Weight.ONE_HOST, ": its listings are up to 20 s old, and it is not told of other clients' changes"),
    "bcachefs btrfs exfat ext2 ext3 ext4 f2fs hfsplus jfs ntfs3 overlay ramfs tmpfs vfat xfs zfs fuseblk": _LOCAL,
}

#: Seconds: an NFS client asks the server at least so often, unless it is told otherwise (nfs(5)).
_USUAL_ATTRIBUTE_CACHE = 60


def known_of(mount: Mount | None) -> Iterator[Finding]:
    """What type and options say. The program behind a FUSE mount is its subtype or, without one, its source."""
    if mount is None:
        yield Finding(TYPE, Weight.TOLD, "its type cannot be told")
        return
    kind, _, program = mount.type.partition(".")
    program = program or (mount.source.rpartition("/")[2] if kind == "fuse" else kind)
    weight, text = next((known for names, known in _KNOWN.items() if program in names.split()), (Weight.GOOD, ""))
    yield Finding(TYPE, weight, printable(f"{mount.type} ({mount.source})") + text)
    if "ro" in mount.options:
        yield Finding(OPTIONS, Weight.UNFIT, "ro: nothing can be written")
    if program in ("nfs", "nfs4"):
        yield from _of_nfs(mount.options)


def _of_nfs(options: dict[str, str]) -> Iterator[Finding]:
    version, lock = options.get("vers", ""), options.get("local_lock", "none")
    if version.startswith("2"):
        yield Finding(OPTIONS, Weight.UNFIT, "vers=2 has no exclusive creation")
    ages = [options.get(name, "") for name in ("acregmax", "acdirmax")]
    longest = max((int(age) for age in ages if age.isdecimal()), default=0)
    told = {
        "nocto: what other hosts have published is found later; a download may be done twice": "nocto" in options,
        f"attributes are kept for up to {longest} s (actimeo): looks are that old": longest > _USUAL_ATTRIBUTE_CACHE,
        f"local_lock={lock}: locks are of this host alone; no lease depends on one": lock not in ("", "none"),
        "soft: while the server is away calls fail instead of waiting, and a download may break off": bool(
            {"soft", "softerr"} & options.keys()
        ),
        "noac: every look asks the server, which is slow and needed for nothing here": "noac" in options,
    }
    what = "; ".join(text for text, holds in told.items() if holds)
    shown = printable(f"vers={version}" if version else "the usual ones")
    yield Finding(OPTIONS, Weight.TOLD if what else Weight.GOOD, what or shown)
