"""`add`, `save`, `get`, `cat`: files by their content."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import click

from sccache_dtool.cli import output
from sccache_dtool.cli.each import each, each_at_once
from sccache_dtool.cli.options import Invocation, common_options, pass_invocation
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.fetch.request import Request
from sccache_dtool.liveness.caller import running_command
from sccache_dtool.markers import marker, tree
from sccache_dtool.markers.archive import LONGEST_COMMENT
from sccache_dtool.markers.files import AT_A_TIME, Files, Sharing, files_below, meant
from sccache_dtool.markers.files import remove as remove_saved
from sccache_dtool.markers.marker import Marker
from sccache_dtool.protocol.leases import Lease

archive_only_option = click.option("--archive-only", is_flag=True, help="Do not put a copy into the cache.")
later_option = click.option(
    "--later", is_flag=True, help="If the archive is away, keep the file in the cache until `archive push`."
)


@click.command("add")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--comment", default="", metavar="TEXT", help="A text for whoever looks the file up in the index.")
@archive_only_option
@later_option
@common_options()
@pass_invocation
def add_command(call: Invocation, files: tuple[str, ...], comment: str, archive_only: bool, later: bool) -> int:
    """Add files to the archive and the cache; print their ids.

    A file is known by its content: the id is `sha256:` and the SHA-256 of the file. `use`, `get` and `cat` accept it.
    The exit code is 3 if some files could not be added.

    \b
    Example:
      sc-dtool add measurements.h5
    """
    marker.check_comment(comment, LONGEST_COMMENT)
    access = files_of(call)

    def add(path: str) -> None:
        id = access.add(path, comment=comment, archive_only=archive_only, later=later)
        call.out.path("added", {"file": path, "id": id}, id)

    return each(call, files, add)


@click.command("save")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("-r", "--recursive", is_flag=True, help="Save all files in directories, each with its own marker.")
@click.option("--as-one", is_flag=True, help="Save each directory as one, with one marker beside it.")
@click.option("--comment", metavar="TEXT", help="Store a comment in the markers. Default: the earlier comment.")
@click.option("--remove", is_flag=True, help="Remove each file when its marker is written.")
@click.option("--gitignore", is_flag=True, help="Add each file to the .gitignore beside it.")
@click.option("--link", is_flag=True, help="Let each file share its space with the cache, if that is safe.")
@archive_only_option
@later_option
@common_options()
@pass_invocation
def save_command(
    call: Invocation,
    /,
    files: tuple[str, ...],
    recursive: bool,
    as_one: bool,
    comment: str | None,
    remove: bool,
    gitignore: bool,
    link: bool,
    **options: bool,
) -> int:
    """Add files, and write a marker beside each of them.

    A marker, such as data.csv.marker, is a small text file for version control. Whoever has it can restore the file:
    `sc-dtool marker restore`. With -r and --as-one, the cache gets no copies of the files. The exit code is 3 if some
    files could not be saved.

    With --link in a command of `sc-dtool run`, each file becomes a symbolic link to its copy in the cache, which is
    valid until the command ends. Elsewhere, the file and the copy share their blocks if the file system can do that,
    and the file stays as it is if not.

    \b
    Examples:
      sc-dtool save data.csv --gitignore
      sc-dtool save -r raw --comment "run of 2 May"
    """
    if as_one and (recursive or remove):
        raise UsageError("--as-one cannot be combined with -r or --remove")
    if link and (as_one or remove or options["archive_only"] or options["later"]):
        raise UsageError("--link cannot be combined with --as-one, --remove, --archive-only or --later")
    marker.check_comment(comment, LONGEST_COMMENT)
    access = files_of(call, many=recursive or len(files) > 1)
    options["archive_only"] |= (recursive and not link) or as_one
    hold, until = _lasting(call) if link else (None, "")
    paths = list(_to_save(files)) if recursive else list(files)

    def save(path: str) -> tuple[Marker, os.stat_result]:
        before = os.stat(path)
        if as_one and os.path.isdir(path):
            return access.save_directory(path, comment=comment, **options), before
        return access.save(path, comment=comment, **options), before

    def report(path: str, result: tuple[Marker, os.stat_result]) -> None:
        made, before = result
        if gitignore:
            tree.ignore(access.store.fs, path)
        if remove:
            remove_saved(path, made.sha256, before)
        fields = {"file": path, "marker": marker.path_for(path), "sha256": made.sha256, "bytes": made.bytes}
        text = f"saved {path}, {output.size(made.bytes)}"
        if link:
            sharing = access.share(path, made.sha256, before, hold)
            fields["kept"] = str(sharing)
            text += {
                Sharing.LINK: f"; it is a link into the cache now, which is valid until {until} ends",
                Sharing.REFLINK: "; it shares its space with the cache now (reflink)",
                Sharing.COPY: "; it is kept as it is: a link needs a lease that lasts, as in `sc-dtool run`",
            }[sharing]
        call.out.result("saved", fields, text)

    return each_at_once(call, paths, save, report, call.jobs or AT_A_TIME)


def _lasting(call: Invocation) -> tuple[Callable[[Request], Lease] | None, str]:
    """What takes a lease that lasts until the command of `sc-dtool run` ends, and that command; None outside of one."""
    cache = call.cache()
    owner = running_command(cache.store.proc)
    return (None, "") if owner is None else (partial(cache.hold, owner), str(owner))


def _to_save(paths: Sequence[str]) -> Iterator[str]:
    """The files below directories, without markers and the files of git, and the files that are named."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for inner in files_below(path):
            whole = os.path.join(path, inner)
            if os.path.basename(inner) not in (".gitignore", ".gitattributes", ".gitmodules"):
                try:
                    found = marker.read_if_marker(whole)
                except UsageError:  # a marker in a form of later releases is not data either
                    continue
                except CacheError:  # to save it will say why
                    found = None
                if found is None:
                    yield whole


@click.command("get")
@click.argument("what", metavar="ID|MARKER")
@click.option("-o", "--output", "target", required=True, metavar="FILE", help="Where to write the file.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@common_options()
@pass_invocation
def get_command(call: Invocation, what: str, target: str, force: bool) -> None:
    """Write what an id or a marker stands for to a file.

    The file appears when it is complete. If the cache has no room for it, it comes from the archive alone.

    \b
    Example:
      sc-dtool get data.csv.marker -o /tmp/data.csv
    """
    named = meant(what)
    access = files_of(call)
    one = access.marker_of(named if isinstance(named, Marker) else what)
    if one.directory:
        raise UsageError(f"{printable(what)} stands for a directory", hint="sc-dtool marker restore")
    try:
        access.copy_out(one, target, replace=force)
    except FileExistsError as error:
        raise UsageError(f"{printable(target)} exists", hint="give --force to replace it") from error
    call.out.path("file", {"path": target, "sha256": one.sha256}, target)


@click.command("cat")
@click.argument("what", metavar="ID|MARKER")
@click.option("--offset", type=click.IntRange(0), default=0, metavar="N", help="Start at byte N.")
@common_options()
@pass_invocation
def cat_command(call: Invocation, what: str, offset: int) -> None:
    """Print the bytes that an id or a marker stands for.

    \b
    Example:
      sc-dtool cat data.csv.marker --offset 4096 | head
    """
    named = meant(what)
    sys.stdout.flush()
    with files_of(call).open(named if isinstance(named, Marker) else what, "rb", offset=offset) as file:
        while data := file.read(1 << 20):
            sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def files_of(call: Invocation, *, many: bool = False) -> Files:
    """The files of the selected cache, whose leases end with the command. `many`: without a progress bar for each."""
    cache = call.cache(progress=None) if many else call.cache()
    click.get_current_context().call_on_close(cache.close)
    return cache.files
