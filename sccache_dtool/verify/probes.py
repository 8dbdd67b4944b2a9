"""What one host can try alone. Each probe has a directory of its own, and says in one finding what it has seen."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial

from sccache_dtool import fallback
from sccache_dtool.disk.records import LIMIT
from sccache_dtool.errors import GONE, NOT_EMPTY, explain
from sccache_dtool.units import short_duration
from sccache_dtool.verify.findings import Finding, Place, Weight
from sccache_dtool.verify.refusals import failed, is_refused, refusal

#: Bytes of the longest names that the program makes itself: flufl.lock's claims, with a host's name of 64.
OURS = 160

#: Bytes of the longest name that POSIX systems usually have; payloads are called like their source.
LONGEST = 255

#: Seconds by which clocks may differ before it is worth a word: the margin that lifetimes have.
CLOCKS_DIFFER = 60.0

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})

Probe = Callable[[Place], Finding]


def run(place: Place) -> Iterator[Finding]:
    """All of them, one after the other. What a probe did not expect is a finding, too; only a full disk is raised."""
    for name, probe in PROBES.items():
        with fallback.collecting() as refused:
            try:
                found = probe(place.make(name.replace(" ", "-")))._replace(check=name)
            except OSError as error:
                found = failed(name, error)
        yield found
        yield from (Finding(name, Weight.TOLD, str(text)) for _, text in refused.messages)


def _good(what: str, **figures: float) -> Finding:
    return Finding("", Weight.GOOD, what, figures)


def _told(what: str, **figures: float) -> Finding:
    return Finding("", Weight.TOLD, what, figures)


def _unfit(what: str) -> Finding:
    return Finding("", Weight.UNFIT, what)


def ways_to_create(place: Place, source: str) -> dict[str, Callable[[str], object]]:
    """All ways to make a name that there are here, each given its path. Makes the file `source`, for links to it."""
    fs = place.fs

    def file(path: str) -> None:
        fs.close(fs.create(path))

    place.put(source, b"")
    ways: dict[str, Callable[[str], object]] = {
        "symlink": partial(fs.symlink, "text"),
        "mkdir": fs.mkdir,
        "file": file,
        "link": partial(fs.link, f"{place.path}/{source}"),
    }
    return {
        way: make
        for way, make in ways.items()
        if not is_refused(partial(_once, make, f"{place.path}/{source}.{way}"), _NO_LINKS)
    }


def _once(make: Callable[[str], object], path: str) -> None:
    """Make a name that nobody else makes: if it is there, the reply to a first request was lost."""
    with contextlib.suppress(FileExistsError):
        make(path)


def _exclusive_creation(place: Place) -> Finding:
    ways = ways_to_create(place, "source")
    for way, make in ways.items():
        _once(make, f"{place.path}/{way}")
        if not is_refused(partial(make, f"{place.path}/{way}"), frozenset({errno.EEXIST})):
            return _unfit(f"a name that is there can be made once more ({way})")
    return _good(f"what is there cannot be made again: {', '.join(ways)}")


def _symbolic_links(place: Place) -> Finding:
    text, path = "r" * LIMIT, f"{place.path}/record"
    if error := refusal(partial(_once, partial(place.fs.symlink, text), path)):
        if error.errno not in _NO_LINKS:
            return _unfit(f"no record of {LIMIT} bytes can be kept: {explain(error)}")
        return _told("there are none; records are files, which costs more requests")
    if place.fs.readlink(path) != text:
        return _unfit("the text of a link does not come back as it was written")
    place.make("history")
    place.move("record", "history/ended")
    if place.fs.readlink(f"{place.path}/history/ended") != text:
        return _unfit("a renamed link has lost its text")
    return _good(f"records of {LIMIT} bytes are kept, and can be renamed")


def _rmdir(place: Place) -> Finding:
    gate = place.make("use")
    ways = ways_to_create(place, "source")
    for way, make in ways.items():
        _once(make, f"{gate.path}/{way}")
        if not is_refused(partial(place.fs.rmdir, gate.path), NOT_EMPTY):
            return _unfit(f"it removes a directory with a name in it ({way})")
        (gate.remove_directory if way == "mkdir" else gate.remove)(way)
    place.remove_directory("use")
    for way, make in ways.items():
        if not is_refused(partial(make, f"{gate.path}/{way}"), GONE):
            return _unfit(f"a name could be made in a directory that was removed ({way})")
    return _good("it refuses while there is a name, and no name can be made afterwards")


def _rename(place: Place) -> Finding:
    fs, path = place.fs, place.path
    for name in ("source", "full"):
        place.make(name).put("file", name.encode())
    unusual = None
    try:
        if not is_refused(partial(fs.rename, f"{path}/source", f"{path}/full"), NOT_EMPTY):
            return _unfit("a directory can be renamed onto one that is not empty, whose content is lost")
    except PermissionError as error:  # what SFTP makes of every refusal
        unusual = error.strerror
    place.move("source", "target")
    if fs.read_text(f"{path}/full/file") != "full" or fs.read_text(f"{path}/target/file") != "source":
        return _unfit("a renamed directory is not what and where it should be")
    if not is_refused(partial(fs.rename, f"{path}/source", f"{path}/again"), GONE):
        return _unfit("what is not there can be renamed")
    what = "whole directories, and never onto one that is not empty"
    return _told(f"{what}, though it says of that: {unusual}") if unusual else _good(what)


def _open_files(place: Place) -> Finding:
    fs, data = place.fs, os.urandom(1 << 16)
    place.make("generation").put("payload", data)
    fd = fs.open(f"{place.path}/generation/payload")
    try:
        place.move("generation", "trash")
        read = b"".join(iter(partial(fs.read, fd), b""))
    finally:
        fs.close(fd)
    if read != data:
        return _unfit("what is open cannot be read on once its directory was renamed")
    return _good("what is open can be read on after its directory was renamed")


def _item(place: Place) -> Finding:
    """An item from its fetch to its deletion, by the calls of the program, with a directory that is read-only."""
    fs, copy, trashed = place.fs, f"{place.path}/items/copy", f"{place.path}/trash/copy"
    for name in ("tmp", "items", "history", "trash", "tmp/area", "tmp/area/payload", "tmp/area/payload/tree"):
        place.make(name)
    place.put("tmp/area/payload/tree/file", b"d")
    refusal(partial(fs.permit, f"{place.path}/tmp/area/payload/tree", 0o500))  # where it is refused, none is read-only
    fs.seal(f"{place.path}/tmp/area/payload", shared=place.shared)
    place.put("tmp/area/item.json", b"{}")
    place.make("tmp/area/use").record("a lease", "lease")
    place.move("tmp/area", "items/copy")
    usage = fs.usage(f"{copy}/payload/tree")
    if (usage.bytes, usage.entries) != (1, 2):
        return _unfit(f"a published directory has {usage.bytes} bytes in {usage.entries} entries, and not 1 in 2")
    mode = fs.lstat(f"{copy}/payload/tree/file").st_mode
    place.move("items/copy/use/lease", "history/lease")
    place.remove_directory("items/copy/use")
    place.move("items/copy", "trash/copy")
    fs.remove_tree(trashed)
    if fs.names(f"{place.path}/trash"):
        return _unfit("what was removed is still listed")
    fs.room(place.path)
    if mode & 0o222:
        return _told("published, evicted and deleted, but its files stay writable: do not write into the cache")
    return _good("published, evicted and deleted, its files read-only")


def _hard_links(place: Place) -> Finding:
    if "link" in ways_to_create(place, "file"):
        return _good("there are hard links, which elections are made of")
    return _told("there are none, so nobody can be elected: a download may be done twice, and nothing is lost")


def _names(place: Place) -> Finding:
    ours = "n" * (OURS - 8) + "~|,+.x-y"
    for name in (ours, "Upper", "upper"):
        if error := refusal(partial(place.make, name)):
            return _unfit(f"a name that we need cannot be made ({name[-12:]}): {error.strerror}")
    found = place.fs.names(place.path)
    if ours not in found:
        return _unfit("a name does not come back as it was written")
    if "Upper" not in found or "upper" not in found:
        return _told("upper and lower case are the same: a payload that has both cannot be unpacked")
    if error := refusal(partial(place.make, "l" * LONGEST)):
        return _told(f"names of {OURS} bytes, but not of {LONGEST} ({error.strerror}): long ones cannot be unpacked")
    return _good(f"up to {LONGEST} bytes, and all characters that sc-dtool uses", longest=LONGEST)


def _durability(place: Place) -> Finding:
    began = place.clock.monotonic()
    place.put("file", b"d" * 4096)
    seconds = place.clock.monotonic() - began
    if place.fs.read_text(f"{place.path}/file") != "d" * 4096:
        return _unfit("what was written and synchronised does not come back")
    return _good(f"a file is on stable storage after {1000 * seconds:.1f} ms", fsync=seconds)


def _refreshing(place: Place) -> Finding:
    """What is made must show at once, also where its absence was seen before; and a directory can be touched."""
    for number in range(10):
        place.fs.touch(place.path)
        name, path = f"n{number}", f"{place.path}/n{number}"
        if name in place.fs.names(place.path) or not is_refused(partial(place.fs.lstat, path), GONE):
            return _unfit("a name is shown that nobody has made")
        place.make(name)
        if name not in place.fs.names(place.path):
            return _unfit("a listing does not show what this host has just made")
    return _good("a listing shows at once what this host has made; directories can be touched")


def _group(place: Place) -> Finding:
    inner = place.make("shared")
    if error := refusal(partial(place.fs.share, inner.path)):
        return _told(f"directories cannot be given to the group ({error.strerror}): a cache is of one user")
    if not place.fs.is_shared(inner.path):
        return _told("permissions are not kept: whether a group can share a cache, the mount decides")
    return _good("directories can be given to a group")


def clock_offset(place: Place, name: str) -> tuple[float, float]:
    """By how many seconds the file system's clock is ahead of ours, and its time; our time is that of the middle."""
    before = place.clock.wall()
    place.make(name)
    after = place.clock.wall()
    stamp = place.fs.lstat(f"{place.path}/{name}").st_mtime
    return stamp - (before + after) / 2, stamp


def say_offset(seconds: float) -> str:
    """An offset in words, to stand before whose clock it is compared with."""
    size = f"{abs(seconds):.2f} s" if abs(seconds) < 2 else short_duration(abs(seconds))
    return f"{size} ahead of" if seconds > 0 else f"{size} behind"


def _clock(place: Place) -> Finding:
    offset, _ = clock_offset(place, "now")
    text = f"that of the file system is {say_offset(offset)} this host's"
    if abs(offset) > CLOCKS_DIFFER:
        return _told(f"{text}: lifetimes last longer by that; set the clocks (NTP)", offset=offset)
    return _good(text, offset=offset)


#: In the order in which they are run and shown.
PROBES: dict[str, Probe] = {
    "exclusive creation": _exclusive_creation,
    "symbolic links": _symbolic_links,
    "rmdir": _rmdir,
    "rename": _rename,
    "open files": _open_files,
    "a whole item": _item,
    "hard links": _hard_links,
    "names": _names,
    "fsync": _durability,
    "listings": _refreshing,
    "permissions": _group,
    "clock": _clock,
}
