"""The page of a report: HTML from figures, by a template of Jinja2 that escapes everything.

The charts are SVG, whose colours follow the style sheet: a dark page has dark charts. Their texts keep their size on a
narrow screen, because only the curve is scaled.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from sccache_dtool import __version__
from sccache_dtool.clock import iso
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import UsageError
from sccache_dtool.extras import to_install
from sccache_dtool.report.figures import AGES, DAY, SIZES, Figures
from sccache_dtool.units import short_duration

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

#: Lines of a table that are shown.
MOST = 50

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def check() -> None:
    """Raise UsageError if the page cannot be made because Jinja2 is not installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "a report needs Jinja2, which is not installed", hint=f"install it: {to_install('report')}"
        ) from error


def render(it: Figures) -> str:
    """The page as HTML."""
    css = (files("sccache_dtool.report") / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    chart = _size_chart(it)
    by_age = it.idle_by_age
    most = max((one.bytes for one in by_age), default=0)
    page: str = _template().render(
        it=it,
        css=_safe(css),
        digest=_safe(f"sha256-{digest}"),
        most=MOST,
        version=__version__,
        sections=_sections(it),
        gauge=_gauge(it),
        chart=chart,
        uses=_uses_chart(it),
        rows=list(zip(it.periods, _sizes_at_ends(it), strict=True))[::-1],
        ages=[(label, one, _percent(one.bytes, most)) for (_, label), one in zip(AGES, by_age, strict=True)],
        matrix=[(label, row) for (_, label), row in zip(AGES, it.idle, strict=True)],
        size_titles=[f">{label}" for _, label in SIZES],
        of_file_system=any("file system" in one.name for one in it.levels),
        legend=_legend,
    )
    return page


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=shown,
    )
    texts = {"size": _size, "iso": iso, "day": _day, "minute": _minute, "duration": short_duration}
    made.filters.update(texts, count=_count, share=_share)
    return made.from_string((files("sccache_dtool.report") / "page.html").read_text(encoding="utf-8"))


def _safe(text: str) -> Markup:
    from markupsafe import Markup

    return Markup(text)  # a text of this program's


def _sections(it: Figures) -> list[tuple[str, str]]:
    found = [
        ("space", "How full it is"),
        ("use", "Hits and misses"),
        ("idle", "What has been idle"),
        ("users", "By user"),
        ("datasets", "By dataset"),
        ("lots", "By lot"),
        ("leases", "Who holds what"),
        ("clean", "The next clean"),
        ("failed", "What failed"),
        ("unread", "What could not be read"),
    ]
    missing = {"lots": not it.lots, "unread": not (it.unread_count or it.unread_facts)}
    return [pair for pair in found if not missing.get(pair[0])]


# -- texts -------------------------------------------------------------------------------------------------------------


def _size(value: float) -> str:
    from humanize import naturalsize

    return naturalsize(value)


def _day(moment: float) -> str:
    return iso(moment)[:10]


def _minute(moment: float) -> str:
    return f"{iso(moment)[:16].replace('T', ' ')} UTC"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole > 0 else "–"


def _percent(part: float, whole: float) -> float:
    return round(min(100.0, max(0.0, 100 * part / whole)), 2) if whole > 0 else 0.0


# -- charts ------------------------------------------------------------------------------------------------------------


class _Line(NamedTuple):
    """A level in a chart: where it is, and what it is called."""

    at: float
    text: str


def _legend(levels: Sequence[_Line]) -> Markup:
    """How each level is drawn; no level is known by its colour alone."""
    from markupsafe import Markup

    if not levels:
        return Markup()
    sample = (
        '<li><svg aria-hidden="true" focusable="false"><line class="level level{}" x1="0" x2="100%" y1="50%" '
        'y2="50%"/></svg>{}</li>'
    )
    lines = [Markup(sample).format(number % 4, one.text) for number, one in enumerate(levels)]
    return Markup('<ul class="legend">{}</ul>').format(Markup().join(lines))


class _Gauge(NamedTuple):
    used: float
    levels: list[_Line]
    text: str


def _gauge(it: Figures) -> _Gauge:
    full = it.fill
    most = max([it.bytes, *(one.bytes for one in it.levels), *([full.bytes] if full else [])])
    lines = [_Line(_percent(one.bytes, most), f"{one.name}: {_size(one.bytes)}") for one in it.levels]
    words = [f"The cache holds {_size(it.bytes)}"]
    if full is not None and full.bytes:
        words = [f"{words[0]}, {_share(it.bytes, full.bytes)} of {_size(full.bytes)} ({full.name})"]
    words += [f"the {one.name} is {'exceeded' if it.bytes > one.bytes else 'not exceeded'}" for one in it.levels]
    return _Gauge(_percent(it.bytes, most), lines, f"{'; '.join(words)}.")


class _Tick(NamedTuple):
    y: float
    text: str


class _Month(NamedTuple):
    x: float
    text: str
    anchor: str


#: The part of the charts that is drawn on, in pixels from the top; below it are the months.
_TOP, _HEIGHT = 18, 174
_USES_HEIGHT = 136


class _SizeChart(NamedTuple):
    title: str
    text: str
    curve: str
    area: str
    levels: list[_Line]
    grid: list[_Tick]
    months: list[_Month]
    top: int = _TOP
    height: int = _HEIGHT


def _size_chart(it: Figures) -> _SizeChart:
    most = max([*it.sizes, *(one.bytes for one in it.levels), 1])
    top, steps = _ceiling(most)
    number = max(1, len(it.sizes) - 1)
    points = [f"{1000 * day / number:.1f} {1000 - 1000 * size / top:.1f}" for day, size in enumerate(it.sizes)]
    curve = f"M{'L'.join(points)}"
    first, last = it.sizes[0], it.sizes[-1]
    largest = max(range(len(it.sizes)), key=lambda day: it.sizes[day])
    when = _day(it.now - (len(it.sizes) - 1 - largest) * DAY)
    title = "Over the last year" if it.days > 91 else f"Over the last {it.days} days"
    text = (
        f"{title}, the cache went from {_size(first)} to {_size(last)}. The largest was "
        f"{_size(it.sizes[largest])}, on {when}."
    )
    lines = [_Line(_at(one.bytes, top, _HEIGHT), f"{one.name}: {_size(one.bytes)}") for one in it.levels]
    grid = [_Tick(_at(value, top, _HEIGHT), _size(value)) for value in steps]
    return _SizeChart(title, text, curve, f"{curve}L1000 1000L0 1000Z", lines, grid, _months(it))


def _at(value: float, top: float, height: int) -> float:
    return round(_TOP + height - height * value / top, 1)


def _ceiling(most: float) -> tuple[float, list[float]]:
    """A round number that is not less, and round steps up to it."""
    step = 10.0 ** (len(str(int(most))) - 1)
    while most / step > 5:
        step *= 2
    while most / step <= 2:
        step /= 2
    steps = [0.0]
    while steps[-1] < most:
        steps.append(steps[-1] + step)
    return steps[-1], steps


def _months(it: Figures) -> list[_Month]:
    """Where months begin or, in a short time, weeks."""
    begin = it.now - it.days * DAY
    found = []
    for day in range(it.days + 1):
        date = datetime.fromtimestamp(begin + day * DAY, UTC)
        if it.days > 91:
            text = _MONTHS[date.month - 1] if date.day == 1 and date.month % 2 else ""
            text = f"{text} {date.year}" if text == "Jan" else text
        else:
            text = f"{date.day} {_MONTHS[date.month - 1]}" if day % (it.days // 4) == 0 else ""
        if text:
            x = round(100 * day / it.days, 2)
            found.append(_Month(x, text, "start" if x < 6 else "end" if x > 94 else "middle"))
    return found


class _Bar(NamedTuple):
    x: float
    width: float
    y: float
    hits: float
    y2: float
    misses: float


class _UsesChart(NamedTuple):
    title: str
    text: str
    bars: list[_Bar]
    grid: list[_Tick]


def _uses_chart(it: Figures) -> _UsesChart:
    top, steps = _ceiling(max([1, *(one.hits + one.misses for one in it.periods)]))
    width = 100 / len(it.periods)
    bars = []
    for number, one in enumerate(it.periods):
        high, more = (round(_USES_HEIGHT * value / top, 1) for value in (one.hits, one.misses))
        y = _TOP + _USES_HEIGHT - high
        bars.append(_Bar(round(number * width, 3), round(width * 0.8, 3), round(y, 1), high, round(y - more, 1), more))
    unit = "week" if it.days > 91 else "day"
    hits, misses = sum(one.hits for one in it.periods), sum(one.misses for one in it.periods)
    title = f"Uses in each {unit}"
    text = f"{title}: {_count(hits, 'hit')} and {_count(misses, 'miss', 'misses')} in {len(it.periods)} {unit}s."
    grid = [_Tick(_at(value, top, _USES_HEIGHT), f"{value:,.0f}") for value in steps if value == int(value)]
    return _UsesChart(title, text, bars, grid)


def _sizes_at_ends(it: Figures) -> list[int]:
    """The size at the end of each period."""
    step = it.days // len(it.periods)
    return [it.sizes[(number + 1) * step] for number in range(len(it.periods))]
