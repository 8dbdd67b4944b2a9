"""Every check, in the order of the report: its name, what happens to users if it is refuted, and its steps.

What the steps rest on is in docs/explanation/protocol.md. A check of both sides is also run by two threads of one host.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from threading import BrokenBarrierError
from typing import Any, NamedTuple

from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.records import LIMIT
from sccache_dtool.errors import FULL, GONE, NOT_EMPTY, explain
from sccache_dtool.liveness.lifetime import ONE_CLOCK
from sccache_dtool.units import short_duration
from sccache_dtool.verify.directory import BOTH, LEADER, PEER, Directory
from sccache_dtool.verify.findings import Finding, Refuted, Weight, good, is_answer, note, refusal, require

#: Bytes of the longest names: that the program makes itself (flufl.lock's claims, with a host's name of 64); that POSIX
#: systems usually have (payloads are called like their source).
OURS, LONGEST = 160, 255

#: Seconds by which clocks may differ before it is worth a word: the margin that lifetimes have.
CLOCKS_DIFFER = 60.0

#: Names in one run of a race; the runs between two threads; names that one side creates and the other lists.
NAMES, RUNS_ALONE, LISTED = 30, 4, 20

#: The runs of a race between hosts: first one after the other, each with its caches as they are, then both at once. In
#: the last run, the leader starts later by these seconds: either host may be the first to pass a barrier.
_RUNS, _HEAD_START = ((LEADER, PEER), (PEER, LEADER), (BOTH,), (BOTH,)), 0.02

#: The outcome of one attempt, a letter in the result: won; refused, as it should be; failed otherwise.
_WON, _REFUSED, _FAILED = "1", "0", "x"

#: What would happen to users, for several checks.
_REPLACED, _TWICE = "a copy would be replaced under its reader", "two processes would hold what one can hold"

_EXISTS = frozenset({errno.EEXIST})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})

_Act = Callable[[Directory], object]
Steps = Callable[[Directory], Finding]


class Check(NamedTuple):
    """What is tried, and why."""

    name: str
    harm: str  # what happens to users if it is refuted
    steps: Steps
    sides: int = 1
    alone: bool = True  # one host can try it, both sides of it with two threads
    combine: Callable[..., Finding] | None = None  # the leader's figures and the peer's

    def title(self, between: bool) -> str:
        """Its name among the findings."""
        return f"{self.name}, between hosts" if between and self.alone else self.name

    def attempt(self, act: Callable[[], Finding]) -> Finding:
        """What `act` finds; an error is a finding, too. Raises only an error that means "no space left"."""
        try:
            return act()
        except BrokenBarrierError:
            return good()  # the other side has the finding
        except Refuted as refuted:
            what, figures = refuted.args
            return Finding("", Weight.UNFIT, f"{what}: {self.harm}", figures)
        except OSError as error:
            if error.errno in FULL:
                raise
            weight, how = (Weight.UNFIT, "failed") if is_answer(error) else (Weight.UNTRIED, "could not be tried")
            return Finding("", weight, f"{how}: {explain(error)}")

    def play(self, at: Directory, name: str) -> Finding:
        """What this side finds in a directory that the leader makes for the check."""

        def act() -> Finding:
            at.step(LEADER, partial(at.make, name))
            return self.steps(at.at(name))

        return self.attempt(act)

    def evaluate(self, results: Sequence[Finding], between: bool) -> Finding:
        """What the results of all sides show. What goes wrong between hosts may still be right on one host."""
        found, combine = max(results, key=lambda result: (result.weight, bool(result.what))), self.combine
        if combine and found.weight is Weight.GOOD:
            found = self.attempt(lambda: combine(*(result.figures for result in results)))
        weight = min(found.weight, Weight.ONE_HOST) if between else found.weight
        return found._replace(check=self.title(between), weight=weight)


#: All of them, as they are defined below.
CHECKS: list[Check] = []


def _check(name: str, harm: str, **more: Any) -> Callable[[Steps], object]:
    """Enter the steps of a check into the table."""
    return lambda steps: CHECKS.append(Check(name, harm, steps, **more))


#: Ways to create a name, each given its path.
_WAYS: dict[str, Callable[[FileSystem, str], object]] = {
    "record": lambda fs, path: fs.put_record("a record", path),
    "directory": lambda fs, path: fs.mkdir(path),
    "file": lambda fs, path: fs.close(fs.create(path)),
}


def _ways_to_create(at: Directory) -> dict[str, Callable[[str], object]]:
    """All ways to create a name that there are here. Makes the file `source`, for links to it."""
    at.put("source", "")
    ways: dict[str, Callable[[str], object]] = {way: partial(make, at.fs) for way, make in _WAYS.items()}
    ways["link"] = partial(at.fs.link, f"{at.path}/source")
    refused = {way: refusal(partial(make, f"{at.path}/s.{way}"), _NO_LINKS | _EXISTS) for way, make in ways.items()}
    return {way: make for way, make in ways.items() if not (error := refused[way]) or error.errno in _EXISTS}


@_check("exclusive creation", _TWICE)
def _exclusive_creation(at: Directory) -> Finding:
    ways = _ways_to_create(at)
    for way, make in ways.items():
        tries = [refusal(partial(make, f"{at.path}/{way}"), _EXISTS) for _ in range(2)]
        require(tries[1], f"a name that exists can be created ({way})")
    return good(f"creating a name that exists fails: {', '.join(ways)}")


@_check("symbolic links", "nobody would know whose a lease is")
def _symbolic_links(at: Directory) -> Finding:
    text = "r" * LIMIT
    if (error := refusal(partial(at.fs.symlink, text, f"{at.path}/record"))) and error.errno not in _EXISTS:
        require(error.errno in _NO_LINKS, f"no record of {LIMIT} bytes can be kept ({explain(error)})")
        return note("not supported: records are files, which takes more requests")
    require(at.fs.readlink(f"{at.path}/record") == text, "the text of a link is not what was written")
    at.make("history")
    at.move("record", "history/ended")
    require(at.fs.readlink(f"{at.path}/history/ended") == text, "a renamed link has lost its text")
    return good(f"records of {LIMIT} bytes are kept, and can be renamed")


@_check("rmdir", "data would be deleted under its reader")
def _rmdir(at: Directory) -> Finding:
    gate, ways = at.make("use"), _ways_to_create(at)
    for way, make in ways.items():
        refusal(partial(make, f"{gate.path}/{way}"), _EXISTS)  # if it exists, the reply to a first request was lost
        require(refusal(partial(at.fs.rmdir, gate.path), NOT_EMPTY), f"it removes a directory with an entry ({way})")
        gate.remove(way, is_directory=way == "directory")
    at.remove("use", is_directory=True)
    for way, make in ways.items():
        refused = refusal(partial(make, f"{gate.path}/{way}"), GONE)
        require(refused, f"an entry can be created in a directory that was removed ({way})")
    return good("fails while the directory has an entry; no entry can be created in it afterwards")


@_check("a whole item", "no item can be kept")
def _item(at: Directory) -> Finding:
    """By the calls of the program, with a payload that has a read-only directory."""
    for name in ("tmp", "items", "history", "trash", "tmp/area", "tmp/area/payload", "tmp/area/payload/tree"):
        at.make(name)
    at.put("tmp/area/payload/tree/file", "d")
    refusal(partial(at.fs.permit, f"{at.path}/tmp/area/payload/tree", 0o500))  # where it is refused, none is read-only
    at.fs.seal(f"{at.path}/tmp/area/payload", shared=at.shared)
    at.put("tmp/area/item.json", "{}")
    at.make("tmp/area/use").record("a lease", "lease")
    at.move("tmp/area", "items/copy")
    usage = at.fs.usage(f"{at.path}/items/copy/payload/tree")
    shown = f"{usage.bytes} bytes in {usage.entries} entries"
    require((usage.bytes, usage.entries) == (1, 2), f"a published directory has {shown}, and not 1 in 2")
    mode = at.fs.lstat(f"{at.path}/items/copy/payload/tree/file").st_mode
    at.move("items/copy/use/lease", "history/lease")
    at.remove("items/copy/use", is_directory=True)
    at.move("items/copy", "trash/copy")
    at.fs.remove_tree(f"{at.path}/trash/copy")
    require(not at.fs.names(f"{at.path}/trash"), "a removed directory is still listed")
    at.fs.room(at.path)
    if mode & 0o222:
        return note("published, evicted and deleted, but its files stay writable: do not write into the cache")
    return good("published, evicted and deleted; its files are read-only")


@_check("hard links", "nobody can be elected")
def _hard_links(at: Directory) -> Finding:
    if "link" in _ways_to_create(at):
        return good("supported")
    return note("not supported, so nobody can be elected: a download may be done twice, and nothing is lost")


@_check("names", "elections would fail")
def _names(at: Directory) -> Finding:
    ours = "n" * (OURS - 8) + "~|,+.x-y"
    for name in (ours, "Upper", "upper"):
        error = refusal(partial(at.make, name))
        require(not error, f"a name that sc-dtool needs cannot be created ({name[-12:]}: {error and error.strerror})")
    found = at.fs.names(at.path)
    require(ours in found, "a name is not listed as it was created")
    if "Upper" not in found or "upper" not in found:
        return note("upper and lower case are the same: a payload that has both cannot be unpacked")
    if error := refusal(partial(at.make, "l" * LONGEST)):
        return note(f"up to {OURS} bytes, but not {LONGEST} ({error.strerror}): longer names cannot be unpacked")
    return good(f"up to {LONGEST} bytes, and all characters that sc-dtool uses", longest=LONGEST)


@_check("fsync", "what was published may be lost")
def _durability(at: Directory) -> Finding:
    began = at.clock.monotonic()
    at.put("file", "d" * 4096)
    seconds = at.clock.monotonic() - began
    require(at.fs.read_text(f"{at.path}/file") == "d" * 4096, "a file does not have the content that was synchronised")
    return good(f"a file is on stable storage after {1000 * seconds:.1f} ms", fsync=seconds)


@_check("permissions", "a group cannot share a cache")
def _permissions(at: Directory) -> Finding:
    inner = at.make("shared")
    if error := refusal(partial(at.fs.share, inner.path)):
        return note(f"directories cannot be given to the group ({error.strerror}): a cache is of one user")
    if not at.fs.is_shared(inner.path):
        return note("permissions are not kept: the mount decides whether a group can share a cache")
    return good("directories can be given to a group")


def _one_winner(leader: Mapping[str, Any], peer: Mapping[str, Any]) -> Finding:
    """What the outcomes of both sides, name by name, show."""
    pairs = list(zip(leader["outcomes"], peer["outcomes"], strict=True))
    both, nobody = pairs.count((_WON, _WON)), sum(_WON not in pair for pair in pairs)
    broken = sum(_FAILED in pair and _WON not in pair for pair in pairs)
    unusual = pairs.count((_WON, _FAILED)) + pairs.count((_FAILED, _WON))
    figures = {"rounds": len(pairs), "both": both, "nobody": nobody, "failed": broken}
    require(not both, f"both sides won {both} of {len(pairs)} rounds", figures)
    require(not broken, f"{broken} of {len(pairs)} rounds failed", figures)
    what = f"one winner in each of {len(pairs)} rounds"
    if unusual:
        return note(f"{what}; the other was refused for an unusual reason in {unusual}", **figures)
    if nobody:
        return note(f"{what}, except {nobody}, which nobody won: replies were lost, which is harmless", **figures)
    return good(f"{what} ({pairs.count((_WON, _REFUSED))} to {pairs.count((_REFUSED, _WON))})", **figures)


def _race(name: str, harm: str, prepare: _Act, of_leader: _Act, of_peer: _Act) -> None:
    """A check that exactly one side achieves what both attempt with each name."""

    @_check(name, harm, sides=2, combine=_one_winner)
    def run(at: Directory) -> Finding:
        """Threads meet at every name. Hosts cannot: the peer goes backwards, so that the two meet on the way."""
        act, order = (of_leader, 1) if at.me == LEADER else (of_peer, 1 if at.is_alone else -1)
        outcomes = list[str]()

        def race(names: Sequence[str], delay: float) -> None:
            at.clock.sleep(delay)
            of_run = list[str]()
            for name in names[::order]:
                if at.is_alone:
                    at.barrier()
                error = refusal(partial(act, at.at(name)))
                of_run.append(_WON if not error else _REFUSED if error.errno in GONE | NOT_EMPTY else _FAILED)
            outcomes.extend(of_run[::order])

        for number, turns in enumerate([(BOTH,)] * RUNS_ALONE if at.is_alone else _RUNS, 1):
            names = [f"r{number}{name:02}" for name in range(NAMES)]
            at.step(LEADER, partial(lambda names: [prepare(at.make(name)) for name in names], names))
            at.step(PEER, partial(at.fs.usage, at.path))  # so that its caches have what the leader has made
            is_late = number == len(_RUNS) and at.me == LEADER and not at.is_alone
            for turn in turns:
                at.step(turn, partial(race, names, _HEAD_START * is_late))
        return good(outcomes="".join(outcomes))


_race(
    "eviction against a new lease",
    "data would be deleted under its reader",
    lambda at: at.make("use"),
    lambda at: at.fs.rmdir(f"{at.path}/use"),
    lambda at: at.fs.put_record("a lease", f"{at.path}/use/lease"),
)
for _kind, _make in _WAYS.items():
    _create: _Act = partial(lambda make, at: make(at.fs, f"{at.path}/name"), _make)
    _race(f"concurrent creation of a {_kind}", _TWICE, lambda at: None, _create, _create)
_race(
    "a heartbeat against a revocation",
    "leases of living holders would be ended",
    lambda at: at.record("a holder", "holder.0"),
    lambda at: at.fs.rename(f"{at.path}/holder.0", f"{at.path}/holder.1"),
    lambda at: at.fs.rename(f"{at.path}/holder.0", f"{at.path}/gone"),
)
_race(
    "concurrent publication under one name",
    _REPLACED,
    lambda at: [at.make(name).make("payload") for name in ("mine", "yours")],
    lambda at: at.fs.rename(f"{at.path}/mine", f"{at.path}/published"),
    lambda at: at.fs.rename(f"{at.path}/yours", f"{at.path}/published"),
)


@_check("rename", _REPLACED, sides=2)
def _rename(at: Directory) -> Finding:
    target, refused = at.at("target"), list[OSError]()
    rename = partial(at.fs.rename, f"{at.path}/source", target.path)

    def try_it() -> None:
        error = refusal(rename, NOT_EMPTY | {errno.EPERM})
        require(error, "a directory can be renamed onto one that the other side has filled")
        at.move("source", "moved")
        texts = [at.fs.get_record(f"{at.path}/{name}/file") for name in ("target", "moved")]
        require(texts == ["target", "source"], "a renamed directory does not have its content")
        require(refusal(rename, GONE), "a name that does not exist can be renamed")
        refused.extend([error] if error and error.errno == errno.EPERM else [])  # what SFTP makes of every refusal

    at.step(LEADER, partial(at.make, "target"))
    at.step(LEADER, lambda: at.make("source").record("source", "file"))
    at.step(PEER, partial(at.fs.names, target.path))
    at.step(LEADER, partial(target.record, "target", "file"))
    at.step(PEER, try_it)
    what = "moves whole directories, and never onto one that is not empty"
    if refused:
        return note(f"{what}; the reason given for that is unusual: {refused[0].strerror}")
    return good(what)


@_check("publication", "jobs would read wrong data", sides=2)
def _publication(at: Directory) -> Finding:
    """Both sides know the data, which is made from the name of the scratch directory, new in each verification."""
    name = os.path.basename(os.path.dirname(at.path))
    data, read = hashlib.shake_256(name.encode()).hexdigest(1 << 19), bytearray()

    def parts() -> Generator[None, None, None]:
        """Read the payload: its beginning, and the rest after a pause. It may be a file without end."""
        at.fresh_names()
        fd = at.fs.open(f"{at.path}/generation/payload")
        try:
            read.extend(at.fs.read(fd, 4096))
            yield
            while len(read) <= len(data) and (more := at.fs.read(fd)):
                read.extend(more)
        finally:
            at.fs.close(fd)

    with contextlib.closing(parts()) as reader:
        at.step(LEADER, lambda: at.make("tmp").put("payload", data))
        at.step(LEADER, partial(at.move, "tmp", "generation"))
        at.step(PEER, partial(next, reader))
        at.step(LEADER, partial(at.move, "generation", "trash"))
        at.step(PEER, partial(next, reader, None))
    what = "an open file does not have the content that the other side has published"
    require(at.me == LEADER or read == data.encode(), what)
    return good("a renamed directory is complete; an open file can be read after its directory was renamed")


@_check("listings", "living holders would be taken for dead", sides=2)
def _listings(at: Directory) -> Finding:
    """Even if its absence was seen before. Between hosts, the listing side first creates a name of its own."""

    def look(name: str, is_made: bool) -> None:
        if is_made:
            found = at.fs.names(at.path) if at.is_alone else at.fresh_names()
            require(name in found, "a name is not shown that was created before")
        else:
            is_absent = name not in at.fs.names(at.path) and refusal(partial(at.fs.lstat, f"{at.path}/{name}"), GONE)
            require(is_absent, "a name is shown that nobody has created")

    for name in [f"n{number}" for number in range(LISTED)]:
        at.step(LEADER, partial(at.fs.touch, at.path))
        at.step(PEER, partial(look, name, is_made=False))
        at.step(LEADER, partial(at.make, name))
        at.step(PEER, partial(look, name, is_made=True))
    return good(f"show every new name ({LISTED} tried)")


def _compare_clocks(leader: Mapping[str, Any], peer: Mapping[str, Any]) -> Finding:
    offsets = {"this host's": leader["offset"]}
    if not leader["is_alone"]:
        offsets = {"the leader's": leader["offset"], "the peer's": peer["offset"]}
    figures = dict(zip(("offset", "offset_of_peer"), offsets.values(), strict=False))
    apart = peer["stamp"] - leader["stamp"]
    if not -1.0 <= apart <= leader["passed"] + 1.0:
        what = f"times come from the hosts, whose clocks differ by {short_duration(abs(apart))}: set the clocks (NTP)"
        require(leader["kind"] not in ONE_CLOCK, what, figures)
        return note(f"{what}; leases do not depend on it", **figures)
    sizes = {whose: f"{abs(by):.2f} s" if abs(by) < 2 else short_duration(abs(by)) for whose, by in offsets.items()}
    said = [f"{size} {'ahead of' if offsets[whose] > 0 else 'behind'} {whose}" for whose, size in sizes.items()]
    what = f"that of the file system is {' and '.join(said)}"
    if max(map(abs, offsets.values())) > CLOCKS_DIFFER:
        return note(f"{what}: lifetimes last longer by that; set the clocks (NTP)", **figures)
    return good(what, **figures)


@_check("clock", "lifetimes are measured by a server's clock", sides=2, combine=_compare_clocks)
def _clock(at: Directory) -> Finding:
    """The peer's stamp is made after the leader's, and within the time that passes on the leader's clock."""
    began, figures = at.clock.monotonic(), dict[str, Any](kind=at.kind, is_alone=at.is_alone)

    def stamp() -> None:
        before = at.clock.wall()
        at.make(at.me)
        middle, stamp = (before + at.clock.wall()) / 2, at.fs.lstat(f"{at.path}/{at.me}").st_mtime
        figures.update(stamp=stamp, offset=stamp - middle)

    at.step(LEADER, stamp)
    at.step(PEER, stamp)
    return good(**figures, passed=at.clock.monotonic() - began)


@_check("visibility between hosts", "nothing depends on it", sides=2, alone=False)
def _delay(at: Directory) -> Finding:
    """How long the peer, which has looked in vain, does not see a name if nothing refreshes what it remembers."""
    looks: dict[str, Callable[[], object]] = {
        "looked_up": lambda: not refusal(partial(at.fs.lstat, f"{at.path}/looked_up/name"), GONE),
        "listed": lambda: "name" in at.fs.names(f"{at.path}/listed"),
    }
    delays = dict[str, float]()

    def watch() -> None:
        began = at.clock.monotonic()
        while (passed := at.clock.monotonic() - began) < at.longest_delay and len(delays) < len(looks):
            delays.update({how: passed for how, sees in looks.items() if how not in delays and sees()})
            at.clock.sleep(0.05)

    at.step(LEADER, lambda: [at.make(how) for how in looks])
    at.step(PEER, lambda: [sees() for sees in looks.values()])
    at.step(LEADER, lambda: [at.at(how).make("name") for how in looks])
    if at.me == LEADER:
        at.announce(f"waiting {at.longest_delay:.0f} s at most until the other host sees what was created here")
    at.step(PEER, watch)
    if at.me == LEADER:
        return good()
    never = f"not within {at.longest_delay:.0f} s"
    said = [f"{f'after {delays[how]:.2f} s' if how in delays else never} if {how}".replace("_", " ") for how in looks]
    figures = {f"delay_{how}": delays.get(how) for how in looks}
    return good(f"the other host sees a new name {', '.join(said)}; nothing depends on it", **figures)
