"""Options that several commands share, the types of their values, and the invocation that they configure."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from sccache_dtool import log
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.cli.output import Output
from sccache_dtool.disk import root
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.policy.thresholds import Mark, parse_entries_mark, parse_limit, parse_mark
from sccache_dtool.units import parse_duration, parse_lifetime, parse_size, parse_until

if TYPE_CHECKING:
    from concurrent.futures import Executor

Command = TypeVar("Command", bound=Callable[..., Any])
Value = TypeVar("Value")


def size(text: str) -> int:
    """A size in bytes. The error names the accepted forms."""
    return _convert(parse_size, text)


def limit(text: str) -> int:
    """A limit for `clean` in bytes. The error names the accepted forms."""
    return _convert(parse_limit, text)


def duration(text: str) -> float:
    """A duration in seconds. The error names the accepted forms."""
    return _convert(parse_duration, text)


def lifetime(text: str) -> float:
    """A lifetime in seconds. The error names the accepted forms."""
    return _convert(parse_lifetime, text)


def until(text: str) -> float:
    """A time in seconds since 1970, given as a date or as a duration from now."""
    return _convert(parse_until, text)


def mark(text: str) -> Mark:
    """A watermark for bytes. The error names the accepted forms."""
    return _convert(parse_mark, text)


def files_mark(text: str) -> Mark:
    """A watermark for files and directories. The error names the accepted forms."""
    return _convert(parse_entries_mark, text)


def _convert(parse: Callable[[str], Value], text: str) -> Value:
    try:
        return parse(text)
    except CacheError as error:
        raise click.BadParameter(f"{error.message}; {error.hint}") from None


class Invocation:
    """The options that all commands have, and the cache and the output that they select."""

    def __init__(self, owns_process: bool = False) -> None:
        """`owns_process`: whether this process ends with the command."""
        self.owns_process = owns_process
        self.cache_dir: str | None = None
        self.format = "human"
        self.color = "auto"
        self.quiet = False
        self.verbose = False
        self.no_input = False
        self.jobs: int | None = None
        self.debug = False
        self.executor: str | None = None
        self.insecure_executor = False
        self.spread: Executor | None = None  # runs parts of a scan in other processes
        self._output: Output | None = None

    @property
    def out(self) -> Output:
        """Prints results and messages."""
        if self._output is None:
            self._output = Output(self.format, self.color, quiet=self.quiet, verbose=self.verbose or self.debug)
            level = log.DEBUG if self.debug else log.INFO if self.verbose else log.NOTE
            log.show(level, self._output.message)
        return self._output

    def cache(self, directory: str | None = None, *, parents: bool = False, **more: Any) -> Cache:
        """The cache in `directory`, or in the one that the options select.

        `parents`: create missing parent directories of a new cache. `more`: further arguments of `Cache`.
        """
        choice = root.choose(self.cache_dir if directory is None else directory, os.environ)
        self.out.detail(f"cache: {choice.path} (from {choice.origin})")
        return Cache(
            choice.path,
            may_hold_data=choice.may_hold_data,
            parents=parents or choice.parents,
            jobs=self.jobs,
            on_scan=self.out.scanned,
            executor=self.spread,
            **{"progress": self.out.progress(), **more},
        )

    def command(self, *words: str) -> str:
        """A command line for the same cache, quoted for a shell."""
        import shlex

        where = () if self.cache_dir is None else ("-C", self.cache_dir)
        return shlex.join(("sc-dtool", *where, *words))

    def confirm(self, question: str) -> None:
        """Ask a question. Raises CacheError if the answer is no, and UsageError if there is no terminal to ask on."""
        if self.no_input or not sys.stdin.isatty():
            raise UsageError("confirmation is needed, but there is no terminal to ask on", hint="add -y to confirm")
        if not click.confirm(question, err=True):
            raise CacheError("nothing was removed")


def invocation(ctx: click.Context) -> Invocation:
    """The invocation of a context, made if there is none."""
    found = ctx.find_object(Invocation)
    if found is None:
        found = ctx.find_root().obj = Invocation()
    return found


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value not in (None, False) and param.name is not None:
        setattr(invocation(ctx), param.name, value)


def common_options(hidden: bool = True) -> Callable[[Command], Command]:
    """The options that may precede or follow the name of a command. `hidden`: leave them out of the help."""

    def option(*names: str, **attributes: Any) -> Callable[[Command], Command]:
        return click.option(*names, expose_value=False, callback=_keep, hidden=hidden, **attributes)

    options = (
        option(
            "-C",
            "--cache-dir",
            metavar="DIR",
            help="Directory of the cache. Default: $DTOOL_CACHE_DIRECTORY, or else dtool's cache directory.",
        ),
        option(
            "-f", "--format", type=click.Choice(["human", "json", "tsv"]), help="Format of results. Default: human."
        ),
        option("--color", type=click.Choice(["auto", "always", "never"]), help="Use colour. Default: auto."),
        option("-q", "--quiet", is_flag=True, help="Print only results, warnings and errors."),
        option("-v", "--verbose", is_flag=True, help="Print more details on standard error."),
        option(
            "-j", "--jobs", type=click.IntRange(1), metavar="N", help="Number of concurrent file system operations."
        ),
        option("--executor", metavar="WHO", help="Share large scans among processes: mpi, none, or dask:ADDRESS."),
        option("--insecure-executor", is_flag=True, help="Accept a Dask scheduler without TLS."),
        option("--no-input", is_flag=True, help="Never ask a question; fail instead."),
        option("--debug", is_flag=True, help="Print debug messages, and a traceback with an error."),
    )
    return lambda function: with_options(function, *options)


def with_options(function: Any, *options: Callable[[Any], Any]) -> Any:
    """The function with these options, in the order in which the help lists them."""
    for add in reversed(options):
        function = add(function)
    return function


class ItemOptions(NamedTuple):
    """Which item is meant, and in which caches: what `use`, `unuse` and `run` have in common."""

    words: tuple[str, ...]
    name: str | None
    size: int | None  # bytes that it needs
    directories: str | None  # separated by colons

    def caches(self, now: Invocation, *, parents: bool = False, **more: Any) -> list[Cache]:
        """The caches in `directories`; without them, the cache of the invocation. `more`: for each `Cache`."""
        if self.directories is None:
            return [now.cache(parents=parents, **more)]
        found = [directory for directory in self.directories.split(os.pathsep) if directory]
        if not found:
            raise UsageError("-d names no directory", hint="give one or more, with colons between: -d /scratch:/tmp")
        return [now.cache(directory, parents=parents, **more) for directory in found]


def item_options(function: Command) -> Any:
    """Which item, and where. The command is given `item`, ItemOptions."""

    @functools.wraps(function)
    def run(*arguments: Any, **values: Any) -> Any:
        item = ItemOptions(*(values.pop(name) for name in ItemOptions._fields))
        return function(*arguments, item=item, **values)

    return with_options(
        run,
        click.option(
            "-n",
            "--name",
            metavar="NAME",
            help="Identify the item by NAME. Without SOURCE: count references only, without data.",
        ),
        click.option("--size", type=size, metavar="SIZE", help="Space that the item needs: 10GB."),
        click.option(
            "-d",
            "--directories",
            metavar="DIR:DIR",
            help="Caches to look in instead of -C. If none has the item, it goes into the first with enough space.",
        ),
        click.argument("words", nargs=-1, metavar="[SOURCE] [STEP]..."),
    )


def use_options(function: Command) -> Any:
    """How a lease is taken, and how an item is fetched. The command is given `options`, UseOptions, and `parents`."""

    @functools.wraps(function)
    def run(
        *arguments: Any,
        ttl: float | None,
        wait: float | None,
        max_rate: int | None,
        make_room: bool,
        refresh: bool,
        max_age: float | None,
        **values: Any,
    ) -> Any:
        if refresh and max_age is not None:
            raise UsageError("--refresh and --max-age cannot be combined", hint="--refresh is the same as --max-age 0s")
        if max_rate is not None and max_rate < 1:
            raise UsageError("--max-rate must be at least one byte a second")
        age = 0.0 if refresh else max_age
        options = UseOptions(ttl=ttl, wait=wait, rate=max_rate, make_room=make_room, max_age=age)
        return function(*arguments, options=options, **values)

    return with_options(
        run,
        click.option(
            "--ttl", type=lifetime, metavar="TIME", help="Let other hosts end the lease after this time: 12h."
        ),
        click.option(
            "--wait", type=duration, metavar="TIME", help="Wait at most this long for another process's download: 1h."
        ),
        click.option("--max-rate", type=size, metavar="SIZE", help="Download at most this much per second: 10MB."),
        click.option("--make-room", is_flag=True, help="Remove idle items if there is not enough space."),
        click.option(
            "--refresh", is_flag=True, help="Ask the source whether it has changed, and fetch again if it has."
        ),
        click.option(
            "--max-age",
            type=duration,
            metavar="TIME",
            help="Like --refresh, but only if the copy is older than this: 1d.",
        ),
        click.option("--parents", is_flag=True, help="Create missing parent directories of a new cache."),
    )


def holder_option(function: Command) -> Command:
    """Option that says who holds the lease."""
    return click.option(
        "--holder",
        default="auto",
        metavar="WHO",
        help="Who holds the lease: auto (the batch job or calling process, the default), pid:N, slurm:ID, or a name.",
    )(function)


#: Options of the commands that remove something.
dry_run_option = click.option("-n", "--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
trash_option = click.option(
    "--trash", type=duration, metavar="TIME", help="Keep removed items in the trash for this time: 7d."
)
