"""What one host can try alone. Each probe has a directory of its own, and says in one finding what it has seen."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial

from sccache_dtool.disk.records import LIMIT
from sccache_dtool.errors import GONE, NOT_EMPTY, explain
from sccache_dtool.fallback import Audience
from sccache_dtool.units import short_duration
from sccache_dtool.verify.directory import Directory
from sccache_dtool.verify.findings import Finding, Weight, failed, good, is_refused, note, refusal

#: Bytes of the longest names that the program makes itself: flufl.lock's claims, with a host's name of 64.
OURS = 160

#: Bytes of the longest name that POSIX systems usually have; payloads are called like their source.
LONGEST = 255

#: Seconds by which clocks may differ before it is worth a word: the margin that lifetimes have.
CLOCKS_DIFFER = 60.0

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


class _Unfit(Exception):
    """Leases would not hold on this file system."""


def _require(condition: object, otherwise: str) -> None:
    if not condition:
        raise _Unfit(otherwise)


def run(directory: Directory) -> Iterator[Finding]:
    """All of them, one after the other. What a probe did not expect is a finding, too; only a full disk is raised."""
    for name, probe in PROBES.items():
        missing: list[str] = []
        audience = Audience(missing.append)
        try:
            yield probe(directory.make(name.replace(" ", "-")))._replace(check=name)
        except _Unfit as error:
            yield Finding(name, Weight.UNFIT, str(error))
        except OSError as error:
            yield failed(name, error)
        del audience
        yield from (Finding(name, Weight.TOLD, text) for text in missing)


def _ways_to_create(directory: Directory, source: str = "source") -> dict[str, Callable[[str], object]]:
    """All ways to make a name that there are here, each given its path. Makes the file `source`, for links to it."""
    fs, path = directory.fs, f"{directory.path}/{source}"
    directory.put(source, b"")
    ways: dict[str, Callable[[str], object]] = {
        "symlink": partial(fs.symlink, "text"),
        "mkdir": fs.mkdir,
        "file": lambda path: fs.close(fs.create(path)),
        "link": partial(fs.link, path),
    }
    return {way: make for way, make in ways.items() if not is_refused(partial(_once, make, f"{path}.{way}"), _NO_LINKS)}


def _once(make: Callable[[str], object], path: str) -> None:
    """Make a name that nobody else makes: if it is there, the reply to a first request was lost."""
    with contextlib.suppress(FileExistsError):
        make(path)


def _exclusive_creation(directory: Directory) -> Finding:
    ways = _ways_to_create(directory)
    for way, make in ways.items():
        _once(make, path := f"{directory.path}/{way}")
        refused = is_refused(partial(make, path), frozenset({errno.EEXIST}))
        _require(refused, f"a name that is there can be made once more ({way})")
    return good(f"what is there cannot be made again: {', '.join(ways)}")


def _symbolic_links(directory: Directory) -> Finding:
    fs, text, path = directory.fs, "r" * LIMIT, f"{directory.path}/record"
    if error := refusal(partial(_once, partial(fs.symlink, text), path)):
        _require(error.errno in _NO_LINKS, f"no record of {LIMIT} bytes can be kept: {explain(error)}")
        return note("there are none; records are files, which costs more requests")
    _require(fs.readlink(path) == text, "the text of a link does not come back as it was written")
    history = directory.make("history")
    directory.move("record", "history/ended")
    _require(fs.readlink(f"{history.path}/ended") == text, "a renamed link has lost its text")
    return good(f"records of {LIMIT} bytes are kept, and can be renamed")


def _rmdir(directory: Directory) -> Finding:
    gate, ways = directory.make("use"), _ways_to_create(directory)
    for way, make in ways.items():
        _once(make, f"{gate.path}/{way}")
        refused = is_refused(partial(directory.fs.rmdir, gate.path), NOT_EMPTY)
        _require(refused, f"it removes a directory with a name in it ({way})")
        gate.remove(way, is_directory=way == "mkdir")
    directory.remove("use", is_directory=True)
    for way, make in ways.items():
        refused = is_refused(partial(make, f"{gate.path}/{way}"), GONE)
        _require(refused, f"a name could be made in a directory that was removed ({way})")
    return good("it refuses while there is a name, and no name can be made afterwards")


def _rename(directory: Directory) -> Finding:
    fs, path, unusual = directory.fs, directory.path, None
    for name in ("source", "full"):
        directory.make(name).put("file", name.encode())
    try:
        refused = is_refused(partial(fs.rename, f"{path}/source", f"{path}/full"), NOT_EMPTY)
        _require(refused, "a directory can be renamed onto one that is not empty, whose content is lost")
    except PermissionError as error:  # what SFTP makes of every refusal
        unusual = error.strerror
    directory.move("source", "target")
    texts = [fs.read_text(f"{path}/{name}/file") for name in ("full", "target")]
    _require(texts == ["full", "source"], "a renamed directory is not what and where it should be")
    refused = is_refused(partial(fs.rename, f"{path}/source", f"{path}/again"), GONE)
    _require(refused, "what is not there can be renamed")
    what = "whole directories, and never onto one that is not empty"
    return note(f"{what}, though it says of that: {unusual}") if unusual else good(what)


def _open_files(directory: Directory) -> Finding:
    fs, data = directory.fs, os.urandom(1 << 16)
    directory.make("generation").put("payload", data)
    fd = fs.open(f"{directory.path}/generation/payload")
    try:
        directory.move("generation", "trash")
        read = b"".join(iter(partial(fs.read, fd), b""))
    finally:
        fs.close(fd)
    _require(read == data, "what is open cannot be read on once its directory was renamed")
    return good("what is open can be read on after its directory was renamed")


def _item(directory: Directory) -> Finding:
    """An item from its fetch to its deletion, by the calls of the program, with a directory that is read-only."""
    fs, path = directory.fs, directory.path
    for name in ("tmp", "items", "history", "trash", "tmp/area", "tmp/area/payload", "tmp/area/payload/tree"):
        directory.make(name)
    directory.put("tmp/area/payload/tree/file", b"d")
    refusal(partial(fs.permit, f"{path}/tmp/area/payload/tree", 0o500))  # where it is refused, none is read-only
    fs.seal(f"{path}/tmp/area/payload", shared=directory.shared)
    directory.put("tmp/area/item.json", b"{}")
    directory.make("tmp/area/use").record("a lease", "lease")
    directory.move("tmp/area", "items/copy")
    usage = fs.usage(f"{path}/items/copy/payload/tree")
    what = f"a published directory has {usage.bytes} bytes in {usage.entries} entries, and not 1 in 2"
    _require((usage.bytes, usage.entries) == (1, 2), what)
    mode = fs.lstat(f"{path}/items/copy/payload/tree/file").st_mode
    directory.move("items/copy/use/lease", "history/lease")
    directory.remove("items/copy/use", is_directory=True)
    directory.move("items/copy", "trash/copy")
    fs.remove_tree(f"{path}/trash/copy")
    _require(not fs.names(f"{path}/trash"), "what was removed is still listed")
    fs.room(path)
    if mode & 0o222:
        return note("published, evicted and deleted, but its files stay writable: do not write into the cache")
    return good("published, evicted and deleted, its files read-only")


def _hard_links(directory: Directory) -> Finding:
    if "link" in _ways_to_create(directory):
        return good("there are hard links, which elections are made of")
    return note("there are none, so nobody can be elected: a download may be done twice, and nothing is lost")


def _names(directory: Directory) -> Finding:
    ours = "n" * (OURS - 8) + "~|,+.x-y"
    for name in (ours, "Upper", "upper"):
        error = refusal(partial(directory.make, name))
        _require(not error, f"a name that we need cannot be made ({name[-12:]}): {error and error.strerror}")
    found = directory.fs.names(directory.path)
    _require(ours in found, "a name does not come back as it was written")
    if "Upper" not in found or "upper" not in found:
        return note("upper and lower case are the same: a payload that has both cannot be unpacked")
    if error := refusal(partial(directory.make, "l" * LONGEST)):
        return note(f"names of {OURS} bytes, but not of {LONGEST} ({error.strerror}): long ones cannot be unpacked")
    return good(f"up to {LONGEST} bytes, and all characters that sc-dtool uses", longest=LONGEST)


def _durability(directory: Directory) -> Finding:
    began = directory.clock.monotonic()
    directory.put("file", b"d" * 4096)
    seconds = directory.clock.monotonic() - began
    text = directory.fs.read_text(f"{directory.path}/file")
    _require(text == "d" * 4096, "what was written and synchronised does not come back")
    return good(f"a file is on stable storage after {1000 * seconds:.1f} ms", fsync=seconds)


def _refreshing(directory: Directory) -> Finding:
    """What is made must show at once, also where its absence was seen before; and a directory can be touched."""
    fs, path = directory.fs, directory.path
    for name in [f"n{number}" for number in range(10)]:
        fs.touch(path)
        is_absent = name not in fs.names(path) and is_refused(partial(fs.lstat, f"{path}/{name}"), GONE)
        _require(is_absent, "a name is shown that nobody has made")
        directory.make(name)
        _require(name in fs.names(path), "a listing does not show what this host has just made")
    return good("a listing shows at once what this host has made; directories can be touched")


def _group(directory: Directory) -> Finding:
    inner = directory.make("shared")
    if error := refusal(partial(directory.fs.share, inner.path)):
        return note(f"directories cannot be given to the group ({error.strerror}): a cache is of one user")
    if not directory.fs.is_shared(inner.path):
        return note("permissions are not kept: whether a group can share a cache, the mount decides")
    return good("directories can be given to a group")


def clock_offset(directory: Directory, name: str) -> tuple[float, float]:
    """By how many seconds the file system's clock is ahead of ours, and its time; our time is that of the middle."""
    before = directory.clock.wall()
    directory.make(name)
    after = directory.clock.wall()
    stamp = directory.fs.lstat(f"{directory.path}/{name}").st_mtime
    return stamp - (before + after) / 2, stamp


def say_offset(seconds: float) -> str:
    """An offset in words, to stand before whose clock it is compared with."""
    size = f"{abs(seconds):.2f} s" if abs(seconds) < 2 else short_duration(abs(seconds))
    return f"{size} ahead of" if seconds > 0 else f"{size} behind"


def _clock(directory: Directory) -> Finding:
    offset, _ = clock_offset(directory, "now")
    text = f"that of the file system is {say_offset(offset)} this host's"
    if abs(offset) > CLOCKS_DIFFER:
        return note(f"{text}: lifetimes last longer by that; set the clocks (NTP)", offset=offset)
    return good(text, offset=offset)


#: In the order in which they are run and shown.
PROBES: dict[str, Callable[[Directory], Finding]] = {
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
