"""Looking a cache over: all that is not as it should be. Nothing is changed; each finding knows how it is repaired."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Collection, Iterator
from functools import cache, partial

from sccache_dtool.catalog import items
from sccache_dtool.catalog.items import Item
from sccache_dtool.disk import root
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import (
    DIRECTORIES,
    GATE,
    IN_CONTROL,
    ITEM_FILE,
    PAYLOAD,
    PROBE,
    REPORTED,
    TAG_NAME,
    VIEW,
    CheckedName,
    CleaningName,
    EndedSession,
    Generation,
    HolderName,
    KeptName,
    Layout,
    MemoName,
    OutcomeName,
    PinName,
    VersionFile,
    VersionName,
    is_of_verification,
    is_outcomes,
    only_if,
    understood,
)
from sccache_dtool.disk.records import printable
from sccache_dtool.disk.root import Tag
from sccache_dtool.doctor import copies, register
from sccache_dtool.doctor.findings import Finding
from sccache_dtool.doctor.permissions import Permissions
from sccache_dtool.errors import GONE, CacheError, Expected
from sccache_dtool.evict import single
from sccache_dtool.evict.cleaning import Cleaner
from sccache_dtool.evict.leftovers import OLD
from sccache_dtool.log import Collected
from sccache_dtool.lots import table
from sccache_dtool.oddity import Fate, Oddity
from sccache_dtool.policy import config
from sccache_dtool.policy.config import Config
from sccache_dtool.pool import Pool
from sccache_dtool.protocol import downloads, sessions
from sccache_dtool.protocol.leases import Held, Place
from sccache_dtool.protocol.reaping import Reaped
from sccache_dtool.protocol.sessions import Entry
from sccache_dtool.protocol.store import Store

#: What an NFS client makes of a file that was deleted while a process of its host had it open.
_SILLY = re.compile(r"\.nfs[0-9a-f]{8,}\Z", re.ASCII)

#: All that there can be in a copy of an item.
_IN_COPY = frozenset({GATE, PAYLOAD, ITEM_FILE})


def examine(store: Store, pool: Pool) -> list[Finding]:
    """All findings in a cache that has been checked to be one. Nothing is changed.

    The pool finds the items about which there is something to report, and those are examined again here.
    What looks at the cache for other commands logs its anomalies, and each is a finding here.

    While a directory is missing nothing else can be told: repair, and examine again.
    """
    permissions = Permissions(store)
    missing = list(_missing_directories(store, permissions))
    if missing:
        return _each_once(missing, permissions.closed)
    outside, log = store.log, Collected()
    store = store.logging_to(log)
    settings, misunderstood = _settings(store)
    _report_unknown_in(store, store.layout.control, IN_CONTROL)
    _look_at_made_later(store)
    # A finding itself cannot be sent by another process: it has a function that repairs it.
    parts = list(items.survey(store, pool, partial(_sort_out, store)))
    unsettled = [item for _, others in parts for item in others]
    found = [
        *_about_the_root(store),
        *misunderstood,
        *permissions.of_cache(),
        *_in_items(store, [item for suspects, _ in parts for item in suspects], permissions),
        *_left_behind(store, settings, pool, unsettled),
        *_in_sessions(store),
        *_in_lots(store),
    ]
    for _, message in dict.fromkeys(log.messages):
        if isinstance(message, Oddity):
            found.append(_of_oddity(store, message))
        else:
            outside.warning(message)
    return _each_once(found, permissions.closed)


def examine_format(fs: FileSystem, layout: Layout) -> list[Finding]:
    """What is wrong with FORMAT in what is a cache otherwise; nothing else can be told until it is there."""
    damage = root.damage_of_format(fs, layout)
    if damage is None:
        return []
    what = f"{damage}, so no command accepts this directory as a cache"
    return [Finding(layout.format_file, what, partial(root.rewrite_format, fs, layout), "writes it again")]


def _each_once(found: list[Finding], closed: list[str]) -> list[Finding]:
    """Of each path what can be repaired or, if nothing can, what was found first; nothing below what is `closed`."""
    told = {finding.path for finding in found if finding.repair}
    once = []
    for finding in found:
        above = finding.path.startswith(tuple(f"{path}/" for path in closed))
        if finding.repair or not (above or finding.path in told):
            once.append(finding)
            told.add(finding.path)
    return once


def _missing_directories(store: Store, permissions: Permissions) -> Iterator[Finding]:
    made: set[str] = set()
    for name in DIRECTORIES:
        path = f"{store.layout.control}/{name}"
        if os.path.dirname(path) in made:
            continue  # with what it is in
        try:
            store.fs.names(path)
        except FileNotFoundError:
            made.add(path)
            if path == store.layout.holders:
                yield register.missing(store)
            else:
                make = partial(store.fs.make_dirs, path, shared=store.layout.shared)
                yield Finding(path, "missing", make, "creates it")
        except OSError as error:
            unlisted = [Finding(path, f"{error.strerror}", None, "check what it is, and who owns it")]
            yield from list(permissions.of_directory(path)) or unlisted


def _about_the_root(store: Store) -> Iterator[Finding]:
    tag = root.tag(store.fs, store.layout) if TAG_NAME in store.fs.names(store.layout.root) else None
    if tag is None or tag is Tag.BEGUN:
        what = f"{'missing' if tag is None else 'incomplete'}, so backup programs include the cache"
        yield Finding(store.layout.tag_file, what, partial(root.rewrite_tag, store.fs, store.layout), "creates it")
    elif tag is Tag.OTHER:
        what = "not a cache directory tag, so backup programs include the cache"
        yield Finding(store.layout.tag_file, what, None, "remove it; --fix then creates a valid one")
    for path in root.unfinished(store.fs, store.layout):
        if _is_old(store, path):
            what = "left by an interrupted init"
            yield Finding(path, what, partial(root.remove_unfinished, store.fs, path), "removes its empty directories")
    for name in store.fs.names(store.layout.root):
        path = f"{store.layout.root}/{name}"
        if is_of_verification(name) and _is_old(store, path):
            what = "left by an interrupted verification of the file system"
            yield Finding(path, what, partial(store.fs.remove_tree, path), "removes it")
    for path in root.open_to_all(store.fs, store.layout):
        what = "every user of this host can create and delete files here"
        yield Finding(path, what, None, "share it with a group instead (chmod o-w)")


def _is_old(store: Store, path: str) -> bool:
    with Expected(GONE):
        return store.clock.wall() - store.fs.lstat(path).st_ctime > OLD
    return False


def _settings(store: Store) -> tuple[Config, list[Finding]]:
    """What `config.toml` says, with the defaults, and findings, where that cannot be understood."""
    path = store.layout.config_file
    settings = config.load(store.fs, store.layout, store.log)
    return Config(*settings), [
        Finding(path, f"cannot be used: {error.what}", None, error.hint or "correct it") for error in settings.mistakes
    ]


def _look_at_made_later(store: Store) -> None:
    kinds: dict[str, tuple[Callable[[str], object], str]] = {
        store.layout.transfers: (only_if(is_outcomes), downloads.WHAT),
        store.layout.pins: (PinName.parse, "not a pin"),
        store.layout.cleanings: (CleaningName.parse, "not the record of a cleaning"),
    }
    for path, (parse, what) in kinds.items():
        try:
            found = store.fs.names(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            store.report(path, str(error.strerror), Fate.PASSED_OVER)
            continue
        list(understood(path, found, parse, what, store.log))
        for name in filter(is_outcomes, found if path == store.layout.transfers else ()):
            _report_unknown_in(store, f"{path}/{name}", (), OutcomeName.parse)
    _report_unknown_in(store, store.layout.ended_sessions, (), EndedSession.parse)
    for id in sessions.ids(store):
        _report_unknown_in(store, store.layout.session(id), (GATE, VIEW), _is_of_table)
    _report_unknown_in(store, store.layout.lots, (REPORTED,), _is_of_table)
    _report_unknown_in(store, store.layout.reported_usage, (), _is_of_table)
    _report_unknown_in(store, store.layout.facts, (), MemoName.parse)


def _is_of_table(name: str) -> bool:
    return bool(VersionName.parse(name) or VersionFile.parse(name) or name.startswith(PROBE))


def _report_unknown_in(
    store: Store,
    directory: str,
    known: Collection[str],
    is_known: Callable[[str], object] = lambda name: False,
) -> None:
    """Report names in a directory in which the program makes none but these."""
    try:
        found = store.fs.names_if_any(directory)
    except OSError as error:
        if error.errno not in GONE:
            store.report(directory, str(error.strerror), Fate.PASSED_OVER)
        return
    for name in found:
        if name not in known and not is_known(name):
            store.report(f"{directory}/{printable(name)}", "not part of the cache", Fate.LEFT_ALONE)


def _is_mark_of_copy(name: str) -> bool:
    """Whether `use --refresh` or an eviction makes such a name in a copy's directory."""
    return bool(CheckedName.parse(name) or KeptName.parse(name))


def _sort_out(store: Store, looked_at: Iterator[Item]) -> tuple[list[Item], list[Item]]:
    """The items about which there is something to report, and the unsettled ones."""
    log = Collected()
    store = store.logging_to(log)
    permissions = Permissions(store)
    suspects, seen = [], []
    for item in looked_at:
        known = len(log.messages)
        if _in_item(store, item, permissions) or len(log.messages) > known:
            suspects.append(item)
        seen.append(item)
    return suspects, items.unsettled(iter(seen))


def _in_items(store: Store, suspects: list[Item], permissions: Permissions) -> Iterator[Finding]:
    for item in suspects:
        found = _in_item(store, item, permissions)
        gone = tuple(f"{path}/" for path in _evicted(store, item)) if found else ()
        yield from (finding for finding in found if not f"{finding.path}/".startswith(gone))


def _evicted(store: Store, item: Item) -> Iterator[str]:
    """The directories of copies that were evicted after the scan has seen them: nothing is wrong with these."""
    for copy in item.copies:
        directory = store.layout.generation(copy.key, str(copy.generation))
        try:
            if not copy.closed:
                store.fs.names(f"{directory}/{GATE}")
        except FileNotFoundError:
            yield directory
        except OSError:
            continue


def _in_item(store: Store, item: Item, permissions: Permissions) -> list[Finding]:
    found: list[Finding] = []
    found += permissions.of_directory(store.layout.item(item.key))
    with store.fs.near(store.layout.item(item.key)):
        found += permissions.of_item(item)
        for copy in item.copies:
            directory = store.layout.generation(copy.key, str(copy.generation))
            with store.fs.near(directory):
                found += permissions.of_copy(directory)
                if not copy.closed:
                    found += copies.findings(store, copy, permissions, partial(single.remove_copy, store))
                    _report_unknown_in(store, directory, _IN_COPY, _is_mark_of_copy)
    return found


def _in_sessions(store: Store) -> Iterator[Finding]:
    """What is in the place of a session, and links that a view lacks.

    A purge of the file system removes links by their age, and ignores leases.
    """
    for id in sessions.ids(store):
        other = sessions.find_other(store, id)
        if other is not None:
            what = "not a directory, in the place of a session or its gate"
            yield Finding(other, what, None, f"delete the session: {store.command('session', 'rm', id)}")
    for facts in sessions.listing(store):
        view = sessions.view_path(store.layout, facts.id)
        with contextlib.suppress(OSError):  # it has no view, or it cannot be read
            store.fs.names(view)
            for entry in facts.entries if not facts.has_ended else ():
                path, link = f"{view}{entry.mount}", _link_of(store, entry)
                if link is not None and not _is_there(store, path):
                    make = partial(sessions.make_links, store, view, {entry.mount[1:]: link})
                    yield Finding(path, "missing in the view of a set that is held", make, "creates the link again")


def _in_lots(store: Store) -> Iterator[Finding]:
    """Lots that cannot be read, so that nothing is evicted, and versions of them that are in force beside another."""
    looks: tuple[tuple[str, Callable[[Store], object]], ...] = (
        (store.layout.lots, table.read),
        (store.layout.reported_usage, table.reported),
    )
    for directory, look in looks:
        unknown: table.Unknown | None = None
        try:
            look(store)
        except table.Unknown as error:
            unknown = error
            yield Finding(directory, error.message, None, error.hint or "")
        with Expected({*GONE, errno.ENOTDIR}):
            in_force = sorted(filter(None, map(VersionName.parse, store.fs.names(directory))))
            for name in in_force[:-1]:
                if _is_there(store, path := f"{directory}/{name}"):  # otherwise it was about to be renamed
                    what = "an older version that is in force beside a newer one"
                    if unknown is None:
                        yield Finding(path, what, partial(store.fs.unlink, path), "removes it: the newer one counts")
                    else:  # somebody may have made up the newer one
                        yield Finding(path, what, None, f"if this one is right, remove {directory}/{in_force[-1]}")


def _link_of(store: Store, entry: Entry) -> str | None:
    """What a view shows for an entry, if the set holds it."""
    generation = Generation.parse(entry.generation or "")
    if entry.item is None or entry.lease is None or generation is None:
        return None
    payload = items.payload_name(store, entry.item, generation)
    return payload and Place.of(store.layout, entry.item, str(generation), payload).payload


def _left_behind(store: Store, settings: Config, pool: Pool, unsettled: list[Item]) -> Iterator[Finding]:
    for leftover in list(Cleaner(store, settings, pool).leftovers(unsettled)):
        if _is_there(store, leftover.path):  # otherwise a cleaning under way, or its own process, has put it away
            yield Finding(leftover.path, leftover.what, leftover.put_away, "does what clean does with it")
    reaped = single.reap(store, pool, dry_run=True, found=unsettled)
    must_end = _reaping(store, pool)
    for judged in reaped.leases:
        path = _path_of(store, judged.held)
        what = f"a lease of a dead holder: {judged.verdict.evidence}"
        yield Finding(path, what, partial(must_end, path), "ends it")
    if not reaped.leases:
        for holder, evidence in reaped.holders.items():
            yield Finding(holder, f"a dead holder: {evidence}", partial(must_end, holder), "revokes it")
    for id, evidence in reaped.sessions.items():
        what = f"a session of a dead holder: {evidence}"
        yield Finding(store.layout.session(id), what, partial(must_end, id), "ends it")


def _is_there(store: Store, path: str) -> bool:
    try:
        store.fs.lstat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _path_of(store: Store, held: Held) -> str:
    return f"{held.gate(store.layout)}/{held.name}"


def _reaping(store: Store, pool: Pool) -> Callable[[str], None]:
    """Ends the lease at a path, or the holder or session of an id. Raises FileNotFoundError if others were first.

    One reaping repairs many findings: it looks at the whole cache, so that one for each would be too many.
    """

    @cache
    def reap() -> tuple[frozenset[str], Reaped]:
        with pool:
            done = single.reap(store, pool)
        leases = (_path_of(store, judged.held) for judged in done.leases)
        return frozenset((*leases, *done.holders, *done.sessions)), done

    def must_end(name: str) -> None:
        ended, done = reap()
        if name in ended:
            return
        if done.failed:
            raise CacheError(f"{name}: not ended", details=done.failed)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    return must_end


#: What a person can do about an anomaly, by its fate.
_WHAT_TO_DO: dict[Fate | str, str] = {
    Fate.LEFT_ALONE: "left alone; remove it if nobody needs it",
    Fate.PASSED_OVER: "skipped; check what it is, and who owns it",
    Fate.HELD: "counted as held; remove it if nobody needs it",
    Fate.ALIVE: "counted as alive; if you know that it is gone: sc-dtool reap --holder {holder}",
    Fate.IGNORED: "it is ignored",
}


def _of_oddity(store: Store, odd: Oddity) -> Finding:
    if _SILLY.search(odd.path):
        return _deleted_while_open(store, odd.path)
    remedy = _WHAT_TO_DO.get(odd.fate, str(odd.fate)) or "left alone; check what it is"
    holder = HolderName.parse(odd.path.rpartition("/")[2])
    return Finding(odd.path, odd.kind, None, remedy.format(holder=holder.id if holder else "ID"))


def _deleted_while_open(store: Store, path: str) -> Finding:
    what = "an NFS leftover of a file that was deleted while a process had it open"
    if _is_old(store, path):
        return Finding(path, f"{what}, more than a day ago", partial(store.fs.unlink, path), "removes it")
    return Finding(path, what, None, "it disappears when that process closes it")
