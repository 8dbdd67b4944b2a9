"""The lots of a cache on disk: one table of all of them, because what must hold concerns all of them.

`lots/` has the versions of the table (see `protocol/versions.py`), and `lots/reported/` those of the usage that was
reported of data elsewhere, so that such reports never delay a change of lots. The directory is made whole at the first
change. Without it there is only the default lot, without any limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sccache_dtool.clock import iso
from sccache_dtool.disk import records
from sccache_dtool.disk.names import REPORTED, WorkName, unique
from sccache_dtool.disk.records import Damaged, OtherFormat
from sccache_dtool.errors import GONE, NOT_EMPTY, CacheError, UsageError, explain
from sccache_dtool.liveness.caller import host_name, user_name
from sccache_dtool.lots.model import DATES, LARGEST, LIMITS, Attribution, Claim, Lot, Lots, Usage
from sccache_dtool.protocol import program, versions
from sccache_dtool.protocol.store import Store

Found = TypeVar("Found")

#: Version of the form of a table.
FORMAT = 1

#: Versions before the one in force that stay, for `lot log` and `lot restore`.
KEPT = 64

#: Bytes of the largest table: it has more than 100,000 lots.
_LIMIT = 1 << 26

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
        _check_format(document)
        if document.get("format") != FORMAT or not isinstance(lots, dict):
            raise Damaged("not a table of lots that this release can read")
        when, by, why = (records.printable(str(document.get(name, "?"))) for name in ("when", "by", "why"))
        return cls(Lots(lot_of(name, value) for name, value in lots.items()), number, when, by, why)


def _check_format(document: Mapping[str, Any]) -> None:
    form = document.get("format")
    if type(form) is int and form > FORMAT:
        raise OtherFormat(f"a newer release of sc-dtool has written it, in the format {form}")


def fields(lot: Lot) -> dict[str, Any]:
    """A lot as it is written: sizes in bytes, times in seconds since 1970; null for none."""
    written: dict[str, Any] = {
        "owner": lot.owner,
        "parents": sorted(lot.parents),
        "paths": [claim._asdict() for claim in lot.claims],
        **{name: getattr(lot, name) for name in LIMITS},
    }
    if lot.attributions:
        written["attributions"] = [one._asdict() for one in lot.attributions]
    return written


def lot_of(name: str, value: Any) -> Lot:
    """The lot that was written so. Raises Damaged."""
    if not isinstance(value, dict) or value.keys() - {"owner", "parents", "paths", "attributions", *LIMITS}:
        raise Damaged(f"not a lot: {records.printable(name)}")
    owner, parents, paths = value.get("owner"), value.get("parents"), value.get("paths")
    attributions = value.get("attributions", [])
    limits = {limit: value.get(limit) for limit in LIMITS}
    if not (
        isinstance(owner, str)
        and isinstance(parents, list)
        and isinstance(paths, list)
        and isinstance(attributions, list)
        and all(isinstance(one, str) for one in parents)
        and all(
            one is None or type(one) is int or (name in DATES and type(one) is float) for name, one in limits.items()
        )
        and None not in (limits["dedicated"], limits["created"])
    ):
        raise Damaged(f"not a lot: {records.printable(name)}")
    claims, attributed = tuple(map(_claim_of, paths)), tuple(map(_attribution_of, attributions))
    return Lot(name, owner, frozenset(parents), claims, **limits, attributions=attributed)  # type: ignore[arg-type]


def _claim_of(value: Any) -> Claim:
    match value:
        case {"path": str(path), "recursive": bool(recursive), "exclude": bool(exclude)}:
            return Claim(path, recursive, exclude)
    raise Damaged("not a path of a lot")


def _attribution_of(value: Any) -> Attribution:
    if isinstance(value, dict) and value.keys() == set(Attribution._fields):
        parent, *amounts = (value[name] for name in Attribution._fields)
        if isinstance(parent, str) and all(one is None or type(one) is int for one in amounts):
            return Attribution(parent, *amounts)
    raise Damaged("not what comes from a parent of a lot")


# -- reading -----------------------------------------------------------------------------------------------------------


def read(store: Store) -> Table:
    """The lots that are in force. Raises Unknown if that cannot be known."""
    try:
        return _decoded(store, _version(store, store.layout.lots))
    except FileNotFoundError:
        return Table(Lots())
    except (OSError, Damaged) as error:
        raise _unknown(store, error) from error


def stamp(store: Store) -> tuple[str, ...]:
    """What changes with each change of the lots, and of the usage that was reported."""
    found = []
    for directory in (store.layout.lots, store.layout.reported_usage):
        try:
            found.append(str(_looking_twice(store, partial(versions.look, store, directory)).name))
        except FileNotFoundError:
            break
        except (OSError, Damaged):
            found.append(unique())  # it equals no other, so that they are read again, which says what is wrong
    return tuple(found)


def log(store: Store) -> Iterator[Table]:
    """The version in force and those before it, the newest first, as far as they are kept and can be read."""
    try:
        seen = _looking_twice(store, lambda: versions.look(store, store.layout.lots))
    except FileNotFoundError:
        return
    except (OSError, Damaged) as error:
        raise _unknown(store, error) from error
    for name in versions.earlier(seen.beside, seen.name):
        with contextlib.suppress(OSError, Damaged, UsageError):
            yield Table.decode(name.number, versions.text_of(store, store.layout.lots, seen.beside, name, _LIMIT))


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
    return _looking_twice(store, lambda: versions.read(store, directory, _LIMIT))


def _looking_twice(store: Store, act: Callable[[], Found]) -> Found:
    with contextlib.suppress(FileNotFoundError):
        return act()
    store.fs.look_anew(store.layout.control)
    return act()


def _decoded(store: Store, version: versions.Version) -> Table:
    try:
        return Table.decode(version.name.number, version.text)
    except UsageError as error:  # edited by hand
        raise _unknown(store, error) from error


def _unknown(store: Store, error: Exception) -> Unknown:
    back = "`sc-dtool lot restore N` brings back an earlier version, which `sc-dtool lot log` lists"
    if isinstance(error, OtherFormat):
        back = "clean with that release; or, if somebody has forged it: " + back
    return Unknown(
        f"the lots in {store.layout.lots} cannot be read: {_text_of(error)}",
        hint=f"nothing is evicted until they can; {back}",
    )


def _unknown_usage(store: Store, error: Exception) -> Unknown:
    directory = store.layout.reported_usage
    return Unknown(
        f"the usage of lots that was reported, in {directory}, cannot be read: {_text_of(error)}",
        hint=f"nothing is evicted until it can; move {directory} away, and report it again: sc-dtool lot report",
    )


def _text_of(error: Exception) -> str:
    return explain(error) if isinstance(error, OSError) else str(error)


# -- changing ----------------------------------------------------------------------------------------------------------


def change(store: Store, make: Callable[[Lots], Lots], why: str) -> Table:
    """Put other lots in force, which `make` makes of those in force; returns what is in force then.

    `make` is called again if somebody else was first, and may raise; then nothing is changed. `why`: for the log.
    """
    gone: set[str] = set()

    def text(version: versions.Version) -> str | None:
        before = _decoded(store, version).lots
        after = make(before)
        gone.clear()
        gone.update(lot.name for lot in before if lot.name not in after)
        return None if after == before else _text(store, after, version.name.number + 1, why)

    made: Table | None = None
    with _turn(store):
        while made is None:
            try:
                make_change = partial(versions.change, store, store.layout.lots, text, keep=KEPT, limit=_LIMIT)
                made = _decoded(store, _looking_twice(store, make_change))
            except FileNotFoundError:
                lots = make(Lots())
                if lots == Lots():
                    return Table(lots)
                if _begin(store, _text(store, lots, 1, why)):
                    return read(store)
            except Damaged as error:
                raise _unknown(store, error) from error
    with contextlib.suppress(OSError, CacheError):  # until the next report, it counts for nobody
        if gone & reported(store).keys():
            report(store, lambda used: used)
    return made


def forget(store: Store, names: Sequence[str], seen: Lots) -> None:
    """Remove lots without data; each of which has no lots below it once those before it are gone.

    `seen`: the lots by which this was decided; what somebody has changed since then stays.
    """

    def make(lots: Lots) -> Lots:
        for name in names:
            if name in lots and lots[name] == seen[name] and not lots.children(name):
                lots = lots.remove(name, caller=None)
        return lots

    try:
        change(store, make, f"forget {' '.join(names)}")
    except (OSError, CacheError) as error:
        store.log.warning(f"{store.layout.lots}: {error}; lots that are past their deletion stay")


def note(store: Store, why: str) -> None:
    """Say something in the log of the lots, which stay as they are."""
    try:
        versions.change(
            store,
            store.layout.lots,
            lambda version: _text(store, _decoded(store, version).lots, version.name.number + 1, why),
            keep=KEPT,
            limit=_LIMIT,
        )
    except (OSError, CacheError, Damaged) as error:
        store.log.warning(f"{store.layout.lots}: {error}; the log of the lots does not say: {why}")


def restore(store: Store, number: int, who: str | None = None) -> Table:
    """Put an earlier version in force again, also if the one in force cannot be read. Raises UsageError.

    `who`: the user who must have the right to change each lot that becomes another; None for who may do everything.
    """
    earlier = at(store, number).lots
    if who is not None:
        read(store).lots.check_change(earlier, who)
    with _turn(store):
        try:
            made = versions.replace(
                store,
                store.layout.lots,
                lambda name: _text(store, earlier, name.number + 1, f"version {number} again"),
                keep=KEPT,
            )
        except Damaged as error:
            raise CacheError(
                f"no version of the lots in {store.layout.lots} can come after the one in force: {error}",
                hint="somebody has forged its name; remove the name that begins with now~ and has the largest number",
            ) from error
    return _decoded(store, made)


def _text(store: Store, lots: Lots, number: int, why: str) -> str:
    """The text of a table that can be read again: what cannot is refused before anybody has to read it."""
    text = Table(lots, number, iso(store.clock.wall()), f"{user_name()}@{host_name()}", why).encode()
    if len(text) > _LIMIT // 2:  # a character has up to four bytes; they are names and paths that people type
        raise UsageError(f"{sum(1 for _ in lots):,} lots with all their paths are too many for one table")
    try:
        Table.decode(number, text)
    except Damaged as error:
        raise UsageError(f"such lots cannot be written: {error}") from error
    return text


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
    from sccache_dtool.protocol.election import make_election  # of changes only: it loads flufl.lock

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
        raise _unknown_usage(store, error) from error


def report(store: Store, make: Callable[[Mapping[str, Usage]], Mapping[str, Usage]]) -> dict[str, Usage]:
    """Put another usage in force, which `make` makes of the one in force. Raises UsageError without any lot.

    What was reported of lots that are gone is forgotten: a new lot of the same name must not have it.
    """
    known = read(store).lots

    def text(version: versions.Version) -> str | None:
        before = _decode_usage(version.text)
        after = {name: used for name, used in make(before).items() if name in known}
        if any(max(used) > LARGEST for used in after.values()):
            raise UsageError(f"more than {LARGEST:,} bytes or objects cannot be reported")
        return None if after == before else _encode_usage(after)

    with _turn(store):
        while True:
            try:
                make_change = partial(versions.change, store, store.layout.reported_usage, text, limit=_LIMIT)
                return _decode_usage(_looking_twice(store, make_change).text)
            except FileNotFoundError:
                if not store.fs.names_if_any(store.layout.lots):
                    raise UsageError("this cache has no lots", hint="make one with: sc-dtool lot create NAME") from None
                _begin_reported(store)
            except Damaged as error:
                raise _unknown_usage(store, error) from error


def _begin_reported(store: Store) -> None:
    """Make the directory of reported usage again, which somebody has moved away."""
    fs, layout = store.fs, store.layout
    with program.worker(store, _TTL) as worker:
        area = f"{layout.tmp}/{WorkName(worker.next_lease(), LOTS)}"
        fs.mkdir(area, shared=layout.shared)
        try:
            versions.begin(store, area, _encode_usage({}))
            fs.rename(area, layout.reported_usage)
        except OSError as error:
            if error.errno not in NOT_EMPTY | GONE:  # else it is there: somebody else has made it, or this process
                raise
        finally:
            with contextlib.suppress(OSError):
                fs.remove_tree(area)


def _encode_usage(used: Mapping[str, Usage]) -> str:
    return records.encode_document({"format": FORMAT, "usage": {name: one._asdict() for name, one in used.items()}})


def _decode_usage(text: str) -> dict[str, Usage]:
    document = records.decode_document(text)
    usage = document.get("usage")
    _check_format(document)
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
