"""What is known of file systems by their type and mount options, before anything is tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sccache_dtool.disk.mounts import Mount
from sccache_dtool.disk.records import printable
from sccache_dtool.verify.findings import Finding, Weight

TYPE = "file system"
OPTIONS = "mount options"


class _Known(NamedTuple):
    programs: str
    weight: Weight
    text: str  # the rest of a sentence about the mount


#: What is known of types: there is no rename of directories, no exclusive creation and no rmdir in an object store, and
#: what a client does instead is not decided in one place; sshfs was measured.
_KNOWN = (
    _Known(
        "s3fs goofys rclone gcsfuse mountpoint-s3 mount-s3 blobfuse blobfuse2 ossfs cosfs obsfs riofs s3backer s3ql "
        "davfs davfs2 geesefs",
        Weight.UNFIT,
        " shows an object store, which decides nothing in one place",
    ),
    _Known("sshfs", Weight.ONE_HOST, ": its listings are up to 20 s old, and it is not told of other clients' changes"),
    _Known(
        "bcachefs btrfs exfat ext2 ext3 ext4 f2fs hfsplus jfs ntfs3 overlay ramfs tmpfs vfat xfs zfs fuseblk",
        Weight.GOOD,
        ", of this host alone",
    ),
)

#: Seconds: an NFS client asks the server at least so often, unless it is told otherwise (nfs(5)).
_USUAL_ATTRIBUTE_CACHE = 60


def judge(mount: Mount | None) -> Iterator[Finding]:
    """What type and options say. The program behind a FUSE mount is its subtype or, without one, its source."""
    if mount is None:
        yield Finding(TYPE, Weight.TOLD, "its type cannot be told")
        return
    kind, _, program = mount.type.partition(".")
    program = program or (mount.source.rpartition("/")[2] if kind == "fuse" else kind)
    known = next((one for one in _KNOWN if program in one.programs.split()), _Known(program, Weight.GOOD, ""))
    yield Finding(TYPE, known.weight, printable(f"{mount.type} ({mount.source})") + known.text)
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
        "soft: while the server is away calls fail instead of waiting, and a download may break off": (
            "soft" in options or "softerr" in options
        ),
        "noac: every look asks the server, which is slow and needed for nothing here": "noac" in options,
    }
    what = "; ".join(text for text, holds in told.items() if holds)
    shown = printable(f"vers={version}" if version else "the usual ones")
    yield Finding(OPTIONS, Weight.TOLD if what else Weight.GOOD, what or shown)
