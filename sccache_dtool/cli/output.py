"""All printing. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TextIO, cast

from sccache_dtool.clock import iso
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import CacheError, UsageError, explain
from sccache_dtool.log import NOTE
from sccache_dtool.tuples import NamedTuple
from sccache_dtool.units import short_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sccache_dtool.cli.progress import Share
    from sccache_dtool.fetch.progress import Progress

#: Version of the field names in JSON. It changes when a field is renamed or removed.
JSON_VERSION = 1

Fields = Mapping[str, Any]

#: Number of rows of a table that are drawn together. They determine the widths of the columns.
_ROWS = 200


class Column(NamedTuple):
    """A column of a table for people."""

    title: str
    source: str | Callable[[Fields], str]  # the field that it shows as it is, or what formats its cell of a row
    right: bool = False

    def show(self, row: Fields) -> str:
        """The cell of a row."""
        return str(row[self.source]) if isinstance(self.source, str) else self.source(row)


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
        """Print one result: `fields` for programs, `lines` for people. Control characters in lines are escaped."""
        if self.format != "human":
            self._machine(kind, fields)
        elif lines:
            _write(sys.stdout, "\n".join(map(printable, lines)))

    def path(self, kind: str, fields: Fields, path: str) -> None:
        """Print one result that is a path. For people and scripts, it is printed as it is, without escapes."""
        if self.format != "human":
            self._machine(kind, fields)
        else:
            _write(sys.stdout, path)

    def text(self, lines: str) -> None:
        """Print a text as it is, in every format."""
        _write(sys.stdout, lines.removesuffix("\n"))

    def table(self, kind: str, rows: Iterable[Fields], columns: Sequence[Column] = (), empty: str = "") -> None:
        """Print many results of one kind. Without `columns`, they are only for programs.

        `empty`: a note that is printed instead of no rows.
        """
        if self.format == "human" and not columns:
            return
        rows = iter(rows)
        first = list(islice(rows, _ROWS if self.format == "human" else 1))
        if not first and empty:
            self.note(empty)
        if self.format != "human":
            for row in chain(first, rows):
                self._machine(kind, row)
        elif first:
            self._table(first, rows, columns)

    def _machine(self, kind: str, fields: Fields) -> None:
        # Fields with an underscore are only for tables.
        fields = {name: value for name, value in fields.items() if not name.startswith("_")}
        if self.format == "json":
            import json

            _write(sys.stdout, json.dumps({"type": kind, "version": JSON_VERSION, **fields}))
            return
        header = ("type", *fields)
        if header != self._header:
            self._header = header
            _write(sys.stdout, "\t".join(header))
        _write(sys.stdout, "\t".join((kind, *(_cell(value) for value in fields.values()))))

    def _table(self, first: list[Fields], rows: Iterator[Fields], columns: Sequence[Column]) -> None:
        """Print a table in parts, so that a million rows are not kept in memory. Most tables have one part."""
        # Without a terminal or colour, rich is not imported, which would take long.
        if sys.stdout.isatty() or self._color == "always":
            self._draw(first, columns)
        else:
            _write(sys.stdout, "\n".join(_plainly(first, columns, titled=True)))
        while piece := list(islice(rows, _ROWS)):  # without rich, which would take minutes for a long table
            _write(sys.stdout, "\n".join(_plainly(piece, columns)))

    def watch(
        self, look: Callable[[], list[dict[str, Any]]], columns: Sequence[Column], empty: str, every: float
    ) -> None:
        """Show the rows of a table on the terminal, again every so many seconds, until Ctrl-C.

        Raises UsageError where that is not possible.
        """
        if self.format != "human" or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
            raise UsageError("--watch needs a terminal", hint="leave it out to print the list once")
        import time

        from rich.live import Live
        from rich.text import Text

        with suppress(KeyboardInterrupt), Live(console=self._console(sys.stdout), auto_refresh=False) as live:
            while True:
                rows = look()
                live.update(_drawn(rows, columns) if rows else Text(empty), refresh=True)
                time.sleep(every)

    def _draw(self, rows: list[Fields], columns: Sequence[Column]) -> None:
        from io import StringIO

        drawn = StringIO()  # rich's own capture would write to the file as well
        self._console(drawn, like=sys.stdout).print(_drawn(rows, columns))
        _write(sys.stdout, "\n".join(line.rstrip() for line in drawn.getvalue().splitlines()))

    # -- everything else ---------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Print a note, unless --quiet is given."""
        if not self._quiet:
            _write(sys.stderr, printable(text))

    def detail(self, text: str) -> None:
        """Print a detail, if --verbose is given."""
        if self._verbose:
            _write(sys.stderr, printable(text))

    def warning(self, text: str) -> None:
        """Print a warning. The same text is printed only once."""
        if text in self._warned:
            return
        self._warned.add(text)
        _write(sys.stderr, printable(f"warning: {text}"))

    def message(self, level: int, text: str) -> None:
        """A message of the package's loggers."""
        (self.warning if level > NOTE else self.note if level == NOTE else self.detail)(text)

    def error(self, error: CacheError) -> None:
        """Print an error with its details and its hint."""
        _write(sys.stderr, printable(f"Error: {error.message}"))
        for line in error.details:
            _write(sys.stderr, printable(f"  {line}"))
        if error.hint:
            _write(sys.stderr, printable(f"hint: {error.hint}"))

    def scanned(self, done: int, total: int) -> None:
        """Show the progress of a scan, on a terminal, if it takes long."""
        if self._share is None:
            from sccache_dtool.cli.progress import Share

            self._share = Share("scanning the cache", sys.stderr if _is_animated() and not self._quiet else None)
        self._share.show(done, total)

    def progress(self) -> Progress | None:
        """A progress bar on a terminal, and one line a minute elsewhere; None with --quiet."""
        return None if self._quiet else cast("Progress", _Later(self._make_progress))

    def _make_progress(self) -> Progress:
        from sccache_dtool.cli.progress import Bar, Lines

        return Bar(lambda: self._console(sys.stderr)) if _is_animated() else Lines(self.note)

    def _console(self, file: TextIO, like: TextIO | None = None) -> Console:
        """A rich console that writes to `file`, formatted as for `like`."""
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


def _drawn(rows: Iterable[Fields], columns: Sequence[Column]) -> Table:
    """The rows as a table of rich's."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(column.show(row))) for column in columns))
    return table


class _Later:
    """A Progress that is created when it is first used: most commands find the item in the cache."""

    def __init__(self, make: Callable[[], Progress]) -> None:
        self._make = functools.cache(make)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._make(), name)


def _plainly(rows: list[Fields], columns: Sequence[Column], *, titled: bool = False) -> Iterator[str]:
    """Rows in aligned columns. `titled`: below their titles."""
    shows = [column.show for column in columns]
    cells = [[show(row) for show in shows] for row in rows]
    cells = [texts if "".join(texts).isprintable() else [*map(printable, texts)] for texts in cells]
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
    """The free space as text. Not every file system reports it."""
    return "free space unknown" if value is None else f"{size(value)} free"


def ago(moment: float | None, now: float) -> str:
    """The time since `moment`: ``3 days ago``, or ``never`` if it is None. Both are in seconds since 1970."""
    if moment is None:
        return "never"
    seconds = max(0.0, now - moment)
    # Rounded to what is shown, so that the cache of texts is effective for a million rows.
    return _natural(seconds // 60 * 60 if seconds >= 60 else seconds // 1)


@functools.lru_cache
def _natural(seconds: float) -> str:
    import humanize

    return humanize.naturaltime(seconds)


def duration(seconds: float | None) -> str:
    """``90 s``, or ``?`` if it is not known."""
    return "?" if seconds is None else short_duration(seconds)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 item``, ``1,234 items``. `plural`: if it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def moment(seconds: float | None) -> str | None:
    """A time in ISO 8601 and UTC. `seconds` are since 1970."""
    return None if seconds is None else iso(seconds)


def _is_animated() -> bool:
    """Whether standard error is a terminal that can overwrite a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _cell(value: Any) -> str:
    text = "" if value is None else " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return printable(text)


def _write(file: TextIO, line: str) -> None:
    """Write a line to `file`. Only for standard output is an error raised."""
    try:
        print(line, file=file, flush=True)
    except OSError as error:
        if file is not sys.stdout:
            return
        if isinstance(error, BrokenPipeError):
            raise
        raise cannot_write_result(error) from error


def cannot_write_result(error: OSError) -> CacheError:
    """The error for standard output that cannot be written."""
    return CacheError(f"cannot write the result: {explain(error)}")
