"""`index`: what the archive was ever given."""

from __future__ import annotations

import os

import click

from sccache_dtool.cli import output
from sccache_dtool.cli.archive import import_index
from sccache_dtool.cli.content import files_of
from sccache_dtool.cli.options import Actions, Invocation, common_options, pass_invocation
from sccache_dtool.cli.output import Column
from sccache_dtool.errors import Exit, FetchFailed
from sccache_dtool.fetch import objects
from sccache_dtool.markers import index, marker
from sccache_dtool.markers.archive import LONGEST_COMMENT, Details, Record


@click.group("index", cls=Actions)
@common_options()
def index_command() -> None:
    """List what the archive has, and export it.

    The listing of the archive is the index. Exported files are for other programs: sc-dtool never reads them.

    \b
    Example:
      sc-dtool index ls
    """


@index_command.command("ls")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--comments", is_flag=True, help="Show only entries that have a comment.")
@common_options()
@pass_invocation
def ls(call: Invocation, ids: tuple[str, ...], comments: bool) -> None:
    """List each time that a file was added.

    Each line has the id, size, time, name, user, project and comment.

    \b
    Example:
      sc-dtool index ls --comments
    """
    wanted = [index.digits_of(id) for id in ids]
    archive = call.cache().archive
    found = (one for digits in wanted for one in archive.records(digits)) if wanted else archive.entries()

    def row(record: Record) -> dict[str, object]:
        details = archive.details(record) if record.ms else Details()
        added = output.moment(record.ms / 1000) if record.ms else None
        return {"id": objects.word(record.digits), "bytes": record.bytes, "added": added, **details._asdict()}

    rows = (one for one in map(row, found) if one["comment"] or not comments)
    columns = [
        Column("ID", "id"),
        Column("SIZE", lambda row: output.size(row["bytes"]), right=True),
        Column("ADDED", lambda row: row["added"] or "?"),
        Column("NAME", "name"),
        Column("BY", "by"),
        Column("PROJECT", "project"),
        Column("COMMENT", "comment"),
    ]
    call.out.table("entry", rows, columns, empty="there are no such entries")


@index_command.command("has")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@common_options()
@pass_invocation
def has(call: Invocation, ids: tuple[str, ...]) -> int:
    """Print whether files were ever added.

    The exit code is 1 if one of them was not.

    \b
    Example:
      sc-dtool index has sha256:5d41402abc4b2a76b9719d911017c592ae4b7e1ac0fe2f1f9f0a8d3bb1c6e7d2
    """
    for id in ids:
        index.digits_of(id)
    known = index.IndexCSV(call.cache().archive)
    answers = {id: known.has(id) for id in ids}
    for id, is_known in answers.items():
        call.out.result("known", {"id": id, "known": is_known}, f"{id}  {'yes' if is_known else 'no'}")
    return Exit.DONE if all(answers.values()) else Exit.ERROR


@index_command.command("known")
@common_options()
@pass_invocation
def known(call: Invocation) -> None:
    """Print the ids of all files that were ever added, each once.

    \b
    Example:
      sc-dtool index known | wc -l
    """
    for digits in call.cache().archive.known():
        call.out.path("known", {"id": objects.word(digits), "known": True}, objects.word(digits))


@index_command.command("add")
@click.argument("id", metavar="ID")
@click.option("--comment", default="", metavar="TEXT", help="A text for whoever looks the file up.")
@common_options()
@pass_invocation
def add(call: Invocation, id: str, comment: str) -> None:
    """Record again that a file was added.

    The archive must have the file. Use this to add another comment.

    \b
    Example:
      sc-dtool index add sha256:5d41402abc4b2a76b9719d911017c592ae4b7e1ac0fe2f1f9f0a8d3bb1c6e7d2 --comment "see issue 7"
    """
    digits = index.digits_of(id)
    marker.check_comment(comment, LONGEST_COMMENT)
    record = files_of(call).record(digits, comment)
    call.out.result("entry", {"id": objects.word(record.digits), "bytes": record.bytes}, objects.word(record.digits))


@index_command.command("export")
@click.option("--to", "form", type=click.Choice(index.FORMS), default="csv", help="Form of the file. Default: csv.")
@click.argument("file", metavar="FILE")
@common_options()
@pass_invocation
def export(call: Invocation, form: str, file: str) -> None:
    """Write the index to a file for other programs.

    An earlier file is replaced as a whole. csv: id and time, without a header. json: a list of objects. sqlite: the
    table entries(identifier, timestamp, bytes, name, by).

    \b
    Example:
      sc-dtool index export --to sqlite index.sqlite
    """
    count = index.export(call.cache().archive, form, file)
    call.out.path("exported", {"path": file, "entries": count}, file)
    call.out.note(f"wrote {output.count(count, 'entry', 'entries')}")


@index_command.command("import")
@click.argument("file", metavar="FILE")
@common_options()
@pass_invocation
def import_(call: Invocation, file: str) -> int:
    """Add the files of an index that knew them by MD5.

    FILE is an `index.csv` whose files are beside it: see `sc-dtool archive adopt`.

    \b
    Example:
      sc-dtool index import /tank/old-cache/index.csv
    """
    if not os.path.exists(file):
        raise FetchFailed(f"there is no file {file}")
    return import_index(call, file)
