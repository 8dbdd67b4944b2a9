"""Options that several commands share, the types of their values, and the invocation that they configure."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sccache_dtool import log
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.cli.output import Output
from sccache_dtool.disk import root
from sccache_dtool.errors import CacheError, UsageError, did_you_mean
from sccache_dtool.policy.thresholds import parse_entries_mark, parse_limit, parse_mark
from sccache_dtool.tuples import NamedTuple
from sccache_dtool.units import parse_duration, parse_lifetime, parse_size, parse_until

if TYPE_CHECKING:
    from concurrent.futures import Executor

Command = TypeVar("Command", bound=Callable[..., Any])


class Quantity(click.ParamType):  # type: ignore[type-arg]  # older releases of click have none
    """A value with a unit. The error names the accepted forms."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        """`name`: its metavariable in the help."""
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value that a text means."""
        try:
            return self._parse(value)
        except CacheError as error:
            self.fail(f"{error.message}; {error.hint}", param, ctx)


#: A size and a limit for `clean` in bytes, a duration and a lifetime in seconds, and a date or a duration from now in
#: seconds since 1970.
SIZE, LIMIT = Quantity("SIZE", parse_size), Quantity("SIZE", parse_limit)
DURATION, LIFETIME = Quantity("TIME", parse_duration), Quantity("TIME", parse_lifetime)
UNTIL = Quantity("WHEN", parse_until)

#: Watermarks for bytes, and for files and directories.
MARK, FILES_MARK = Quantity("MARK", parse_mark), Quantity("MARK", parse_entries_mark)


#: What the types of options mean, for the help of each command that has them.
_UNITS = {
    "TIME": "TIME is a number with a unit: s, m, h, d or w.",
    "SIZE": "SIZE is a number of bytes, or a number with a unit: kB, MB, GB, TB, PB, or KiB, MiB, GiB, TiB, PiB.",
}


def explained(command: click.Command) -> click.Command:
    """The command, whose help says what the types of its options mean."""
    used = {option.type.name for option in command.params}
    command.epilog = " ".join(text for name, text in _UNITS.items() if name in used) or None
    return command


class Actions(click.Group):
    """A command with actions, such as `session`: its help lists them in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all actions."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The action of that name; None if there is none."""
        found = super().get_command(ctx, cmd_name)
        return found and explained(found)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As in click, but the error for an unknown action suggests similar names."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(f"No such action {args[0]!r}{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


class Invocation:
    """The options that all commands have, and the cache and the output that they select."""

    cache_dir: str | None = None
    upstream: str | None = None
    format: str = "human"
    color: str = "auto"
    quiet: bool = False
    verbose: bool = False
    no_input: bool = False
    jobs: int | None = None
    debug: bool = False
    executor: str | None = None
    insecure_executor: bool = False
    spread: Executor | None = None  # runs parts of a scan in other processes

    def __init__(self, owns_process: bool = False) -> None:
        """`owns_process`: whether this process ends with the command."""
        self.owns_process = owns_process

    @functools.cached_property
    def out(self) -> Output:
        """Prints results and messages."""
        output = Output(self.format, self.color, quiet=self.quiet, verbose=self.verbose or self.debug)
        log.show(log.DEBUG if self.debug else log.INFO if self.verbose else log.NOTE, output.message)
        return output

    def cache(self, directory: str | None = None, *, parents: bool = False, **more: Any) -> Cache:
        """The cache in `directory`, or in the one that the options select.

        `parents`: create missing parent directories of a new cache. `more`: further arguments of `Cache`.
        """
        choice = root.choose(self.cache_dir if directory is None else directory, os.environ)
        self.out.detail(f"cache: {choice.path} (from {choice.origin})")
        return Cache(
            choice.path,
            upstream=root.choose_upstream(self.upstream, os.environ, choice.path),
            may_hold_data=choice.may_hold_data,
            parents=parents or choice.parents,
            jobs=self.jobs,
            executor=self.spread,
            **{"progress": self.out.progress(), "on_scan": self.out.scanned, **more},
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


def add_options(*add: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decorator that adds options to a command, in the order in which the help lists them."""
    return lambda function: functools.reduce(lambda extended, one: one(extended), reversed(add), function)


@functools.cache
def common_options(hidden: bool = True) -> Callable[[Command], Command]:
    """The options that may precede or follow the name of a command. `hidden`: leave them out of the help."""
    # All commands have the same objects: a module of commands makes those of each of its commands when it is loaded.
    shared: Any = functools.cache(click.Option)
    option = functools.partial(click.option, cls=shared, expose_value=False, callback=_keep, hidden=hidden)
    return add_options(
        option(
            "-C",
            "--cache-dir",
            metavar="DIR",
            help="Directory of the cache. Default: $DTOOL_CACHE_DIRECTORY, or else dtool's cache directory.",
        ),
        option(
            "--upstream",
            metavar="DIR",
            help="Another cache, from which missing items are copied. Default: $SC_DTOOL_UPSTREAM, or config.toml.",
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


class ItemOptions(NamedTuple):
    """Which item is meant, and in which caches: what `use`, `unuse` and `run` have in common."""

    words: tuple[str, ...]
    name: str | None
    directories: str | None  # separated by colons

    def caches(self, call: Invocation, *, parents: bool = False, **more: Any) -> list[Cache]:
        """The caches in `directories`; without them, the cache of the invocation. `more`: for each `Cache`."""
        if self.directories is None:
            return [call.cache(parents=parents, **more)]
        found = [directory for directory in self.directories.split(os.pathsep) if directory]
        if not found:
            raise UsageError("-d names no directory", hint="give one or more, with colons between: -d /scratch:/tmp")
        return [call.cache(directory, parents=parents, **more) for directory in found]


def _with_item(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def run(*arguments: Any, **values: Any) -> Any:
        item = ItemOptions(*(values.pop(name) for name in ItemOptions._fields))
        return function(*arguments, item=item, **values)

    return run


def _item_options(name: str, directories: str) -> Callable[[Command], Any]:
    """Options that say which item is meant; the help of each."""
    add = add_options(
        click.option("-n", "--name", metavar="NAME", help=name),
        click.option("-d", "--directories", metavar="DIR:DIR", help=directories),
        click.argument("words", nargs=-1, metavar="[SOURCE] [STEP]..."),
    )
    return lambda function: add(_with_item(function))


#: Which item, and where, for commands that fetch it. The command is given `item`, ItemOptions.
item_options = _item_options(
    "Identify the item by NAME. Without SOURCE: count references only, without data.",
    "Caches to look in instead of -C. If none has the item, it goes into the first with enough space.",
)

#: The same for commands that fetch nothing.
find_options = _item_options(
    "The NAME that `use` was given.",
    "Caches to look in instead of -C.",
)


def use_options(function: Command) -> Any:
    """How a lease is taken, and how an item is fetched. The command is given `options`, UseOptions, and `parents`."""

    @functools.wraps(function)
    def run(*arguments: Any, refresh: bool, **values: Any) -> Any:
        given = UseOptions(**{name: values.pop(name) for name in UseOptions._fields})
        if refresh and given.max_age is not None:
            raise UsageError("--refresh and --max-age cannot be combined", hint="--refresh is the same as --max-age 0s")
        if given.rate is not None and given.rate < 1:
            raise UsageError("--max-rate must be at least one byte a second")
        return function(*arguments, options=given._replace(max_age=0.0) if refresh else given, **values)

    add = add_options(
        click.option("--size", type=SIZE, help="Space that the item needs: 10GB."),
        click.option("--ttl", type=LIFETIME, help="Let other hosts end the lease after this time: 12h."),
        click.option("--wait", type=DURATION, help="Wait at most this long for another process's download: 1h."),
        click.option("--max-rate", "rate", type=SIZE, help="Download at most this much per second: 10MB."),
        click.option("--make-room", is_flag=True, help="Remove idle items if there is not enough space."),
        click.option(
            "--refresh", is_flag=True, help="Ask the source whether it has changed, and fetch again if it has."
        ),
        click.option("--max-age", type=DURATION, help="Like --refresh, but only if the copy is older than this: 1d."),
        click.option("--parents", is_flag=True, help="Create missing parent directories of a new cache."),
    )
    return add(run)


#: For commands that are given the words of `use`, and need no space.
size_ignored_option = click.option(
    "--size", type=SIZE, expose_value=False, help="Accepted as in `use`, and ignored: this command fetches nothing."
)

holder_option = click.option(
    "--holder",
    default="auto",
    metavar="WHO",
    help="Who holds the lease: auto (the batch job or calling process, the default), pid:N, slurm:ID, or a name.",
)


def user_options(function: Command) -> Any:
    """Whose leases are meant. The command is given `user`, None for everybody's."""

    @functools.wraps(function)
    def run(*arguments: Any, mine: bool, user: str | None, **values: Any) -> Any:
        if mine and user is not None:
            raise UsageError("--mine and --user cannot be combined")
        if mine:
            from sccache_dtool.liveness.caller import user_name

            user = user_name()
        return function(*arguments, user=user, **values)

    add = add_options(
        click.option("--mine", is_flag=True, help="Show what you hold, and until when."),
        click.option("--user", metavar="USER", help="Show what USER holds, and until when."),
    )
    return add(run)


#: Options of the commands that remove something.
dry_run_option = click.option("-n", "--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
trash_option = click.option("--trash", type=DURATION, help="Keep removed items in the trash for this time: 7d.")
