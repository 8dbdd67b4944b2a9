"""What `summary` draws on a terminal: how full the cache is, what has been idle, and its size over the last year."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from sccache_dtool.cli import output
from sccache_dtool.errors import CacheError
from sccache_dtool.policy.rules import Rules
from sccache_dtool.report.figures import AGES, Level, class_of, days_ago, fullness, levels, span
from sccache_dtool.report.gathering import look_back

if TYPE_CHECKING:
    from sccache_dtool.cache import Cache
    from sccache_dtool.catalog.items import Item
    from sccache_dtool.catalog.loose import LooseDirectory

#: Characters of a bar.
_WIDTH = 36

_SPARKS = "▁▂▃▄▅▆▇█"
_PARTS = " ▏▎▍▌▋▊▉"


def summary(cache: Cache, items: Iterable[Item], left: Iterable[LooseDirectory], now: float) -> Table:
    """The drawing. `now`: seconds since 1970."""
    ages, added = Counter[int](), Counter[int]()
    for item in items:
        if not item.leases:
            ages[class_of(now - item.idle_since, AGES)] += item.bytes
        for copy in item.copies:
            added[days_ago(copy.generation.created, now)] += copy.generation.bytes
    for loose in left:
        ages[class_of(now - loose.newest, AGES)] += loose.bytes
        added[days_ago(loose.newest, now)] += loose.bytes
    sizes = fullness(added, look_back(cache, now).gone)
    days = span(sizes)
    drawn = Table(box=None, show_header=False, pad_edge=False)
    for overflow in ("fold", "crop", "fold"):
        drawn.add_column(no_wrap=overflow == "crop", overflow=overflow)
    _add_levels(drawn, cache, sizes[-1])
    most = max(ages.values(), default=0)
    for number, (_, label) in enumerate(AGES):
        title = "idle" if number == 0 else ""
        drawn.add_row(title, bar(ages[number], most), f"{output.size(ages[number])} for {label}")
    largest = output.size(max(sizes[-days - 1 :]))
    when = "the last year" if days > 91 else f"{days} days"
    drawn.add_row("size", Text(sparks(sizes[-days - 1 :], _WIDTH)), f"over {when}, {largest} at most")
    return drawn


def _add_levels(drawn: Table, cache: Cache, own: int) -> None:
    """How full the cache is, with its marks below."""
    try:
        rules = cache.policy()
    except CacheError:  # `config` and `clean` report it
        rules = Rules()
    room = cache.store.fs.room(cache.store.layout.root)
    found = levels(rules.limits, rules.retain_size, room, own)
    full = max([own, *(one.bytes for one in found), *([] if found or room is None else [own + room.free])])
    of = found[0].name if found else "cache and free space"
    percent = 100 * own / (found[0].bytes if found else full or 1) if full else 0
    whole = found[0].bytes if found else full
    drawn.add_row("full", bar(own, full), f"{percent:.0f} % of {output.size(whole)} ({of})")
    for one in found:
        drawn.add_row("", pointer(one, full), f"{one.name}: {output.size(one.bytes)}")


def bar(value: float, most: float) -> Text:
    """A bar of block elements, an eighth of a character fine."""
    eighths = round(8 * _WIDTH * value / most) if most else 0
    blocks = "█" * (eighths // 8) + (_PARTS[eighths % 8] if eighths % 8 else "")
    return Text(blocks, style="blue")


def pointer(level: Level, most: float) -> Text:
    """An arrow that points to a level of the bar above."""
    return Text(" " * min(_WIDTH - 1, int(_WIDTH * level.bytes / most) if most else 0) + "▲")


def sparks(values: Sequence[float], width: int) -> str:
    """A curve of one line: the largest of the values that a character stands for."""
    steps = [number * len(values) // width for number in range(width + 1)]
    pieces = [values[begin : max(end, begin + 1)] for begin, end in itertools.pairwise(steps)]
    most = max(values, default=0)
    return "".join(_SPARKS[round((len(_SPARKS) - 1) * max(piece) / most) if most else 0] for piece in pieces)
