"""What a monitor wants to know, as Prometheus reads it: from names alone, so that it may be asked every few minutes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from sccache_dtool.catalog.items import Item
from sccache_dtool.disk.names import CleaningName
from sccache_dtool.policy.totals import Sums


class Saved(NamedTuple):
    """What keeping items has saved: all uses but those that fetched, as far as their copies are there."""

    bytes: int = 0
    seconds: float = 0.0


def saved(items: Iterator[Item]) -> Saved:
    """What the items have saved."""
    size, seconds = 0, 0.0
    for item in items:
        if not item.copies:
            continue
        again = max(0, item.uses - len(item.copies))
        size += again * item.copies[0].generation.bytes
        took = [copy.generation.took for copy in item.copies if copy.generation.took is not None]
        if took:
            seconds += again * sum(took) / len(took) / 1000
    return Saved(size, seconds)


def misses(sums: Sums, cleanings: Iterable[CleaningName]) -> int:
    """Number of fetches, except those of copies that `rm` removed."""
    return max(0, sums.copies + sum(one.copies - one.loose - one.restored for one in cleanings))


class Snapshot(NamedTuple):
    """What is known of a cache at a moment."""

    cache_id: str
    root: str
    sums: Sums
    saved: Saved
    loose_files: int
    loose_bytes: int
    cleanings: tuple[CleaningName, ...]
    holders: int
    fetching: int
    trashed: int
    free: int | None  # None: the file system does not say so
    now: float


class _Metric(NamedTuple):
    name: str
    help: str
    value: float | None  # None: it is not known, and left out


def text(state: Snapshot) -> Iterator[str]:
    """The lines of a Prometheus text file (exposition format 0.0.4)."""
    labels = _labels({"cache": state.cache_id, "root": state.root})
    for one in _metrics(state):
        if one.value is not None:
            yield f"# HELP sc_dtool_{one.name} {one.help}\n"
            yield f"# TYPE sc_dtool_{one.name} {'counter' if one.name.endswith('_total') else 'gauge'}\n"
            yield f"sc_dtool_{one.name}{labels} {one.value:.15g}\n"


def _metrics(state: Snapshot) -> Iterable[_Metric]:
    sums = state.sums
    evicted, evicted_bytes = sum(one.copies for one in state.cleanings), sum(one.bytes for one in state.cleanings)
    reaped = sum(one.reaped for one in state.cleanings)
    fetched = misses(sums, state.cleanings)
    idle = 0.0 if sums.oldest_idle is None else max(0.0, state.now - sums.oldest_idle)
    return (
        _Metric("bytes", "Size of everything in the cache.", sums.bytes + state.loose_bytes),
        _Metric("items", "Number of items in the cache.", sums.items),
        _Metric("entries", "Number of files and directories of all items.", sums.entries),
        _Metric("loose_files", "Number of files that dtool wrote without the plugin.", state.loose_files),
        _Metric("loose_bytes", "Size of files that dtool wrote without the plugin.", state.loose_bytes),
        _Metric("free_bytes", "Free space on the file system.", state.free),
        _Metric("idle_bytes", "Size of items that are not in use.", sums.idle_bytes),
        _Metric("oldest_idle_seconds", "Time since the last use of the item that was unused for longest.", idle),
        _Metric("leases", "Number of leases.", sums.leases),
        _Metric("items_in_use", "Number of items with a lease.", sums.busy_items),
        _Metric("holders", "Number of processes and jobs that may hold leases.", state.holders),
        _Metric("fetching", "Number of downloads in progress.", state.fetching),
        _Metric("trashed", "Number of evicted copies that are not yet deleted.", state.trashed),
        _Metric("uses_total", "Number of leases since the cache was set up.", sums.uses),
        # No counters: what `rm` removes is not counted any more, and a counter that falls is taken for a new one.
        _Metric("misses", "Number of fetches, except those of copies that rm removed.", fetched),
        _Metric("hits", "Number of uses that found the item in the cache.", max(0, sums.uses - fetched)),
        _Metric("evictions_total", "Number of copies and loose files that clean has removed.", evicted),
        _Metric("evicted_bytes_total", "Size of copies and loose files that clean has removed.", evicted_bytes),
        _Metric("reaped_total", "Number of leases of dead holders that clean has ended.", reaped),
        _Metric(
            "saved_bytes", "Size of downloads that cache hits on present items made unnecessary.", state.saved.bytes
        ),
        _Metric("saved_seconds", "Download time that cache hits on present items saved.", state.saved.seconds),
        _Metric("scrape_time_seconds", "Time of this report, in seconds since 1970.", state.now),
    )


def _labels(labels: Mapping[str, str]) -> str:
    def escaped(value: str) -> str:
        value = value.encode(errors="replace").decode()  # names need not be UTF-8, and the file must be
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items()) + "}"
