"""The only place that prints. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from sccache_dtool.clock import iso
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import CacheError, explain
from sccache_dtool.log import NOTE

if TYPE_CHECKING:
    from rich.console import Console

    from sccache_dtool.cli.progress import Share
    from sccache_dtool.fetch.progress import Progress

#: Version of the field names in JSON; it changes when one is renamed or taken away.
JSON_VERSION = 1

Fields = Mapping[str, Any]

#: Rows of a table that are drawn at a time, their columns as wide as these need.
_ROWS = 200


class Column(NamedTuple):
    """A column of a table that people read: its title, and how a record's field is shown."""

    title: str
    show: Callable[[Fields], str]
    right: bool = False


class Output:
    """Prints in one of three formats: for people, as JSON Lines, or as tab-separated values with a header."""

    def __init__(self, format: str, color: str, *, quiet: bool, verbose: bool) -> None:
        self.format = format
        self._color = color
        self._quiet = quiet
        self._verbose = verbose
        self._header: tuple[str, ...] = ()
        self._warned: set[str] = set()
        self._share: Share | None = None

    # -- results -----------------------------------------------------------------------------------------------------

    def result(self, kind: str, fields: Fields, *lines: str) -> None:
        """One result; `lines` are what a person reads of it. What others have put into a line cannot begin another."""
        if self.format != "human":
            self._machine(kind, fields)
        elif lines:
            _write(sys.stdout, "\n".join(map(printable, lines)))

    def path(self, kind: str, fields: Fields, path: str) -> None:
        """One result of which people and scripts want the path, as it is: its names are of those who called us."""
        if self.format != "human":
            self._machine(kind, fields)
        else:
            _write(sys.stdout, path)

    def text(self, lines: str) -> None:
        """A text in a form of its own, whatever the format."""
        _write(sys.stdout, lines.removesuffix("\n"))

    def table(self, kind: str, rows: Iterable[Fields], columns: Sequence[Column]) -> None:
        """Many results of one kind."""
        if self.format == "human":
            self._table(iter(rows), columns)
        else:
            for row in rows:
                self._machine(kind, row)

    def _machine(self, kind: str, fields: Fields) -> None:
        fields = {name: value for name, value in fields.items() if not name.startswith("_")}  # a table's own
        if self.format == "json":
            import json

            _write(sys.stdout, json.dumps({"type": kind, "version": JSON_VERSION, **fields}))
            return
        header = ("type", *fields)
        if header != self._header:
            self._header = header
            _write(sys.stdout, "\t".join(header))
        _write(sys.stdout, "\t".join((kind, *(_cell(value) for value in fields.values()))))

    def _table(self, rows: Iterator[Fields], columns: Sequence[Column]) -> None:
        """Drawn in pieces, so that there need not be a million rows in memory; most tables are of one."""
        first = list(islice(rows, _ROWS))
        if first and self._is_decorated(sys.stdout):
            self._draw(first, columns)
        elif first:
            _write(sys.stdout, "\n".join(_plainly(first, columns, titled=True)))
        while piece := list(islice(rows, _ROWS)):  # nobody looks at so many, and rich would take minutes for them
            _write(sys.stdout, "\n".join(_plainly(piece, columns)))

    def _draw(self, rows: list[Fields], columns: Sequence[Column]) -> None:
        from io import StringIO

        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(column.show(row))) for column in columns))
        drawn = StringIO()  # and not rich's own capture, which writes to the file all the same, if only nothing
        self._console(drawn, like=sys.stdout).print(table)
        _write(sys.stdout, "\n".join(line.rstrip() for line in drawn.getvalue().splitlines()))

    def _is_decorated(self, file: TextIO) -> bool:
        """Whether what is written is folded and coloured. If not, rich need not be loaded, which takes its time."""
        return file.isatty() or self._color == "always"

    # -- everything else ---------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something worth knowing, unless --quiet."""
        if not self._quiet:
            _write(sys.stderr, printable(text))

    def detail(self, text: str) -> None:
        """Something worth knowing with --verbose."""
        if self._verbose:
            _write(sys.stderr, printable(text))

    def warning(self, text: str) -> None:
        """Something that is not as it should be, and was passed over; said once, however often it is met."""
        if text in self._warned:
            return
        self._warned.add(text)
        _write(sys.stderr, printable(f"warning: {text}"))

    def message(self, level: int, text: str) -> None:
        """A message of the package's loggers."""
        (self.warning if level > NOTE else self.note if level == NOTE else self.detail)(text)

    def error(self, error: CacheError) -> None:
        """What went wrong, who is concerned, and what to do."""
        _write(sys.stderr, printable(f"Error: {error.message}"))
        for line in error.details:
            _write(sys.stderr, printable(f"  {line}"))
        if error.hint:
            _write(sys.stderr, printable(f"hint: {error.hint}"))

    def scanned(self, done: int, total: int) -> None:
        """How much of a scan is done, on a terminal, once it has taken a while."""
        if self._share is None:
            from sccache_dtool.cli.progress import Share

            watched = sys.stderr.isatty() and not self._quiet and os.environ.get("TERM") != "dumb"
            self._share = Share("working through the cache", sys.stderr if watched else None)
        self._share.show(done, total)

    def progress(self) -> Progress | None:
        """A progress bar, where there is a terminal to show it on, and elsewhere a line a minute."""
        return None if self._quiet else _Later(self._make_progress)

    def _make_progress(self) -> Progress:
        from sccache_dtool.cli.progress import Bar, Lines

        if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            return Lines(self.note)
        return Bar(lambda: self._console(sys.stderr))

    def _console(self, file: TextIO, like: TextIO | None = None) -> Console:
        """A console that writes to `file`, in a way that is fit for `like`."""
        from rich.console import Console

        plain = self._color == "never" or (
            self._color == "auto" and (bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb")
        )
        on_terminal = (like or file).isatty()
        return Console(
            file=file,
            highlight=False,
            markup=False,
            color_system=None if plain else "standard" if self._color == "always" else "auto",
            force_terminal=True if on_terminal or self._color == "always" else None,
            width=None if on_terminal else 1000,
        )


class _Later:
    """A Progress that is made once there is something to show: most commands find what they want in the cache."""

    def __init__(self, make: Callable[[], Progress]) -> None:
        self._make = make
        self._made: Progress | None = None

    def start(self, label: str, total: int | None, there: int = 0) -> None:
        self._progress().start(label, total, there)

    def advance(self, n: int) -> None:
        self._progress().advance(n)

    def stage(self, text: str) -> None:
        self._progress().stage(text)

    def done(self) -> None:
        self._progress().done()

    def _progress(self) -> Progress:
        if self._made is None:
            self._made = self._make()
        return self._made


def _plainly(rows: list[Fields], columns: Sequence[Column], *, titled: bool = False) -> Iterator[str]:
    """Rows in columns as wide as they need; `titled`: below their titles."""
    cells = [[printable(column.show(row)) for column in columns] for row in rows]
    if titled:
        cells.insert(0, [column.title for column in columns])
    widths = [max(map(len, texts)) for texts in zip(*cells, strict=True)]
    for texts in cells:
        placed = zip(texts, widths, columns, strict=True)
        yield "  ".join(
            text.rjust(width) if column.right else text.ljust(width) for text, width, column in placed
        ).rstrip()


# -- how values are shown to people ------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 14)
def size(value: int) -> str:
    """Bytes with a decimal unit: ``1.5 GB``."""
    import humanize

    return humanize.naturalsize(value)


def free(value: int | None) -> str:
    """How much is free, which not every file system says."""
    return "unknown how much is free" if value is None else f"{size(value)} free"


def ago(moment: float | None, now: float) -> str:
    """How long ago a time was: ``3 days ago``; ``never`` for none."""
    if moment is None:
        return "never"
    seconds = max(0.0, now - moment)
    return _long_ago(int(seconds // 60) * 60) if seconds > 3600 else _natural(seconds)


@functools.lru_cache
def _long_ago(seconds: int) -> str:
    """Minutes make no difference to hours: few texts for a million rows."""
    return _natural(seconds)


def _natural(seconds: float) -> str:
    import humanize

    return humanize.naturaltime(seconds)


def count(number: int, noun: str) -> str:
    """``1 item``, ``1,234 items``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def moment(seconds: float | None) -> str | None:
    """A time for machines: ISO 8601 in UTC."""
    return None if seconds is None else iso(seconds)


def field(name: str) -> Callable[[Fields], str]:
    """A column that shows a field as it is."""
    return lambda row: str(row[name])


def _cell(value: Any) -> str:
    text = "" if value is None else " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return printable(text)


def _write(file: TextIO, line: str, end: str = "\n") -> None:
    """Write a result, or a message: one that cannot be written stops nothing."""
    if file is not sys.stdout:
        with contextlib.suppress(OSError):
            print(line, file=file, end=end, flush=True)
        return
    try:
        print(line, file=file, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise cannot_write_result(error) from error


def cannot_write_result(error: OSError) -> CacheError:
    """The error for standard output that takes nothing more."""
    return CacheError(f"cannot write the result: {explain(error)}")
