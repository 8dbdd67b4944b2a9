"""The lots of a cache on disk: one table of all of them, because what must hold concerns all of them.

`lots/` has the versions of the table (see `protocol/versions.py`), and `lots/reported/` those of the usage that was
reported of data elsewhere, so that such reports never delay a change of lots. The directory is made whole at the first
change. Without it there is only the default lot, without any limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sccache_dtool.clock import iso
from sccache_dtool.disk import records
from sccache_dtool.disk.names import REPORTED, VersionName, WorkName
from sccache_dtool.disk.records import Damaged
from sccache_dtool.errors import GONE, NOT_EMPTY, CacheError, UsageError
from sccache_dtool.liveness.caller import host_name, user_name
from sccache_dtool.lots.model import LIMITS, Claim, Lot, Lots, Usage
from sccache_dtool.protocol import program, versions
from sccache_dtool.protocol.election import make_election
from sccache_dtool.protocol.store import Store

#: Version of the form of a table.
FORMAT = 1

#: Versions before the one in force that stay, for `lot log` and `lot restore`.
KEPT = 64

#: The purpose of the work area in which the directory is made.
LOTS = "lots"

#: Seconds for which a change waits for its turn. It needs none: to change at the same time only costs repetitions.
_LONGEST_TURN = 2.0
_PAUSE = 0.02

#: Lifetime in seconds of the holder in whose name the directory is made.
_TTL = 3600.0


class Unknown(CacheError):
    """The lots of a cache cannot be read. Nothing may be evicted then: it may be protected by its lot."""


class Table(NamedTuple):
    """A version of the lots, and who put it in force, when and why."""

    lots: Lots
    number: int = 0
    when: str = ""  # ISO 8601
    by: str = ""
    why: str = ""

    def encode(self) -> str:
        """The text of the table."""
        return records.encode_document(
            {
                "format": FORMAT,
                "when": self.when,
                "by": self.by,
                "why": self.why,
                "lots": {lot.name: fields(lot) for lot in self.lots},
            }
        )

    @classmethod
    def decode(cls, number: int, text: str) -> Table:
        """Raises Damaged for what this release has not written, and UsageError for lots that contradict each other."""
        document = records.decode_document(text)
        lots = document.get("lots")
        if document.get("format") != FORMAT or not isinstance(lots, dict):
            raise Damaged("not a table of lots that this release can read")
        when, by, why = (records.printable(str(document.get(name, "?"))) for name in ("when", "by", "why"))
        return cls(Lots(lot_of(name, value) for name, value in lots.items()), number, when, by, why)


def fields(lot: Lot) -> dict[str, Any]:
    """A lot as it is written: sizes in bytes, times in seconds since 1970; null for none."""
    return {
        "owner": lot.owner,
        "parents": sorted(lot.parents),
        "paths": [claim._asdict() for claim in lot.claims],
        **{name: getattr(lot, name) for name in LIMITS},
    }


def lot_of(name: str, value: Any) -> Lot:
    """The lot that was written so. Raises Damaged."""
    if not isinstance(value, dict) or value.keys() - {"owner", "parents", "paths", *LIMITS}:
        raise Damaged(f"not a lot: {records.printable(name)}")
    owner, parents, paths = value.get("owner"), value.get("parents"), value.get("paths")
    limits = {limit: value.get(limit) for limit in LIMITS}
    if not (
        isinstance(owner, str)
        and isinstance(parents, list)
        and isinstance(paths, list)
        and all(isinstance(one, str) for one in parents)
        and all(one is None or type(one) in (int, float) for one in limits.values())
        and None not in (limits["dedicated"], limits["created"])
    ):
        raise Damaged(f"not a lot: {records.printable(name)}")
    return Lot(name, owner, frozenset(parents), tuple(map(_claim_of, paths)), **limits)  # type: ignore[arg-type]


def _claim_of(value: Any) -> Claim:
    match value:
        case {"path": str(path), "recursive": bool(recursive), "exclude": bool(exclude)}:
            return Claim(path, recursive, exclude)
    raise Damaged("not a path of a lot")


# -- reading -----------------------------------------------------------------------------------------------------------


def read(store: Store) -> Table:
    """The lots that are in force. Raises Unknown if that cannot be known."""
    try:
        return _decoded(store, _version(store, store.layout.lots))
    except FileNotFoundError:
        return Table(Lots())
    except (OSError, Damaged) as error:
        raise _unknown(store, error) from error


def log(store: Store) -> Iterator[Table]:
    """The version in force and those before it, the newest first, as far as they are kept and can be read."""
    try:
        version = _version(store, store.layout.lots)
    except FileNotFoundError:
        return
    except (OSError, Damaged) as error:
        raise _unknown(store, error) from error
    for name in versions.chain(version.beside):
        with contextlib.suppress(OSError, Damaged, UsageError):
            yield _earlier(store, version, name)


def at(store: Store, number: int) -> Table:
    """An earlier version. Raises UsageError if it is not kept."""
    for table in log(store):
        if table.number == number:
            return table
    raise UsageError(f"there is no version {number} of the lots", hint="list the versions with: sc-dtool lot log")


def _version(store: Store, directory: str) -> versions.Version:
    """As `versions.read`; a directory is missing only if it is also missing when this host looks anew.

    Otherwise a host that had looked before another made the first lot would evict what that lot protects.
    """
    return _looking_twice(store, lambda: versions.read(store, directory))


def _looking_twice(store: Store, act: Callable[[], versions.Version]) -> versions.Version:
    with contextlib.suppress(FileNotFoundError):
        return act()
    store.fs.look_anew(store.layout.control)
    return act()


def _earlier(store: Store, version: versions.Version, name: VersionName) -> Table:
    return Table.decode(name.number, versions.text_of(store, store.layout.lots, version.beside, name))


def _decoded(store: Store, version: versions.Version) -> Table:
    try:
        return Table.decode(version.name.number, version.text)
    except UsageError as error:  # edited by hand
        raise _unknown(store, error) from error


def _unknown(store: Store, error: Exception) -> Unknown:
    return Unknown(
        f"the lots in {store.layout.lots} cannot be read: {error}",
        hint="nothing is evicted until they can; `sc-dtool lot restore N` brings back an earlier version",
    )


# -- changing ----------------------------------------------------------------------------------------------------------


def change(store: Store, make: Callable[[Lots], Lots], why: str) -> Table:
    """Put other lots in force, which `make` makes of those in force; returns what is in force then.

    `make` is called again if somebody else was first, and may raise; then nothing is changed. `why`: for the log.
    """

    def text(version: versions.Version) -> str | None:
        before = _decoded(store, version).lots
        after = make(before)
        return None if after == before else _text(store, after, version.name.number + 1, why)

    with _turn(store):
        while True:
            try:
                made = _looking_twice(store, lambda: versions.change(store, store.layout.lots, text, keep=KEPT))
                return _decoded(store, made)
            except FileNotFoundError:
                lots = make(Lots())
                if lots == Lots():
                    return Table(lots)
                if _begin(store, _text(store, lots, 1, why)):
                    return read(store)
            except Damaged as error:
                raise _unknown(store, error) from error


def forget(store: Store, names: Sequence[str]) -> None:
    """Remove lots without data; each of which has no lots below it once those before it are gone."""

    def make(lots: Lots) -> Lots:
        for name in names:
            if name in lots and not lots.children(name):
                lots = lots.remove(name, caller=None)
        return lots

    try:
        change(store, make, f"forget {' '.join(names)}")
    except (OSError, CacheError) as error:
        store.log.warning(f"{store.layout.lots}: {error}; lots that are past their deletion stay")


def restore(store: Store, number: int) -> Table:
    """Put an earlier version in force again, also if the one in force cannot be read. Raises UsageError."""
    earlier = at(store, number).lots
    with _turn(store):
        made = versions.change(
            store,
            store.layout.lots,
            lambda version: _text(store, earlier, version.name.number + 1, f"version {number} again"),
            keep=KEPT,
        )
    return _decoded(store, made)


def _text(store: Store, lots: Lots, number: int, why: str) -> str:
    return Table(lots, number, iso(store.clock.wall()), f"{user_name()}@{host_name()}", why).encode()


def _begin(store: Store, text: str) -> bool:
    """Make the directory with its first version; False if somebody else has made it meanwhile."""
    fs, layout = store.fs, store.layout
    with program.worker(store, _TTL) as worker:
        area = f"{layout.tmp}/{WorkName(worker.next_lease(), LOTS)}"
        fs.mkdir(area, shared=layout.shared)
        try:
            version = versions.begin(store, area, text)
            fs.mkdir(f"{area}/{REPORTED}", shared=layout.shared)
            versions.begin(store, f"{area}/{REPORTED}", _encode_usage({}))
            try:
                fs.rename(area, layout.lots)
                return True
            except OSError as error:
                if error.errno in NOT_EMPTY:
                    return False
                if error.errno in GONE and str(version) in fs.names_if_made(layout.lots):
                    return True  # the server has done it, and its reply was lost
                raise
        finally:
            with contextlib.suppress(OSError):
                fs.remove_tree(area)


@contextlib.contextmanager
def _turn(store: Store) -> Iterator[None]:
    """Wait a little for others who are making a change. Without that, many who want to would keep repeating theirs."""
    election = make_election(store, LOTS)
    end = store.clock.monotonic() + _LONGEST_TURN
    try:
        with contextlib.suppress(OSError):  # without an election there are only more repetitions
            while not election.poll() and store.clock.monotonic() < end:
                store.clock.sleep(_PAUSE)
        yield
    finally:
        election.resign()


# -- usage that was reported -------------------------------------------------------------------------------------------


def reported(store: Store) -> dict[str, Usage]:
    """What was reported of data elsewhere, by lot. Raises Unknown."""
    try:
        return _decode_usage(_version(store, store.layout.reported_usage).text)
    except FileNotFoundError:
        return {}
    except (OSError, Damaged) as error:
        raise _unknown(store, error) from error


def report(store: Store, make: Callable[[Mapping[str, Usage]], Mapping[str, Usage]]) -> dict[str, Usage]:
    """Put another usage in force, which `make` makes of the one in force. Raises UsageError without any lot."""

    def text(version: versions.Version) -> str | None:
        before = _decode_usage(version.text)
        after = make(before)
        return None if after == before else _encode_usage(after)

    with _turn(store):
        try:
            directory = store.layout.reported_usage
            return _decode_usage(_looking_twice(store, lambda: versions.change(store, directory, text)).text)
        except FileNotFoundError:
            raise UsageError("this cache has no lots", hint="make one with: sc-dtool lot create NAME") from None
        except Damaged as error:
            raise _unknown(store, error) from error


def _encode_usage(used: Mapping[str, Usage]) -> str:
    return records.encode_document({"format": FORMAT, "usage": {name: one._asdict() for name, one in used.items()}})


def _decode_usage(text: str) -> dict[str, Usage]:
    document = records.decode_document(text)
    usage = document.get("usage")
    if document.get("format") != FORMAT or not isinstance(usage, dict):
        raise Damaged("not usage that this release can read")
    found = {}
    for name, values in usage.items():
        if not isinstance(values, dict) or values.keys() != set(Usage._fields):
            raise Damaged("not usage that this release can read")
        if not all(type(value) is int and value >= 0 for value in values.values()):
            raise Damaged("not usage that this release can read")
        found[name] = Usage(**values)
    return found
