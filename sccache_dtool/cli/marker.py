"""`marker`: whether the files that markers stand for are there, and putting them back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from sccache_dtool.cli import output
from sccache_dtool.cli.content import files_of
from sccache_dtool.cli.each import each_at_once
from sccache_dtool.cli.options import Actions, Invocation, common_options, pass_invocation
from sccache_dtool.cli.output import Column
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import CacheError, Exit, FetchFailed
from sccache_dtool.markers import marker, tree
from sccache_dtool.markers.archive import LONGEST_COMMENT
from sccache_dtool.markers.files import AT_A_TIME
from sccache_dtool.markers.marker import Marker
from sccache_dtool.markers.tree import Found, Marked, Memory, State

paths_argument = click.argument("paths", nargs=-1, metavar="[DIR|MARKER]...")


@click.group("marker", cls=Actions)
@common_options()
def marker_command() -> None:
    """Restore and check the files that markers stand for.

    A marker is a small file in version control that stands for a large file in the archive. `sc-dtool save` writes it.
    A marker is recognized by its content, whatever its name is.

    \b
    Example:
      git clone https://example.org/study.git && cd study && sc-dtool marker restore
    """


@marker_command.command("status")
@click.option("--verify", is_flag=True, help="Read all files, including those unchanged since they were last read.")
@paths_argument
@common_options()
@pass_invocation
def status(call: Invocation, verify: bool, paths: tuple[str, ...]) -> int:
    """Show which files are the same as their markers.

    The default is the working directory. The states are: same, changed, absent (can be restored), lost (neither here
    nor in the archive), and bad (the marker cannot be read). A file is read again only if its size, times or inode have
    changed. The exit code is 20 if a file is not the same.

    \b
    Example:
      sc-dtool marker status
    """
    access = files_of(call, many=True)
    memory = Memory(access.store.fs)
    rows: list[dict[str, Any]] = []
    for one in tree.find(paths or ["."]):
        if one.marked is None:
            rows.append(_row(one, State.BAD, one.error))
            continue
        try:
            state = tree.state_of_all(access, one.marked, memory, read=verify)
            rows.append(_row(one, state))
        except (CacheError, OSError) as error:
            rows.append(_row(one, State.BAD, error))
    memory.keep()
    shown = rows if call.format != "human" else [row for row in rows if row["state"] != State.SAME]
    columns = [Column("STATE", "state"), Column("FILE", "file"), Column("", lambda row: row["error"] or "")]
    call.out.table("marker", shown, columns)
    wrong = sum(row["state"] != State.SAME for row in rows)
    call.out.note(f"{output.count(len(rows), 'marker')}: {len(rows) - wrong:,} the same as their files, {wrong:,} not")
    return Exit.FINDINGS if wrong else Exit.DONE


def _row(one: Found, state: State, error: Exception | None = None) -> dict[str, Any]:
    found = one.marked
    return {
        "marker": one.place,
        "file": found.target if found else one.place,
        "state": str(state),
        "sha256": found.marker.sha256 if found else None,
        "bytes": found.marker.bytes if found else None,
        "comment": found.marker.comment if found else None,
        "error": None if error is None else getattr(error, "message", str(error)),
    }


@marker_command.command("restore")
@click.option("--force", is_flag=True, help="Replace files that differ from their markers.")
@click.option("--delete-markers", is_flag=True, help="Delete each marker when its file is in place.")
@paths_argument
@common_options()
@pass_invocation
def restore(call: Invocation, force: bool, delete_markers: bool, paths: tuple[str, ...]) -> int:
    """Put back the files that markers stand for.

    The default is all markers in the working directory and below. Each file is written beside its place and renamed. A
    file that differs from its marker is left as it is, unless --force is given. If some files cannot be restored, the
    others are, and the exit code is 3.

    \b
    Examples:
      sc-dtool marker restore
      sc-dtool marker restore raw/scan.h5.marker --force
    """
    access = files_of(call, many=True)
    memory = Memory(access.store.fs)
    found = list({os.path.abspath(one.place): one for one in tree.find(paths or ["."])}.values())
    written = kept = failed = 0

    def act(one: Found) -> Sequence[tuple[Marked, bool | CacheError]]:
        if one.marked is None:
            raise one.error or CacheError(one.place)
        return tree.restore(access, one.marked, memory, force=force, durable=delete_markers)

    def report(one: Found, results: Sequence[tuple[Marked, bool | CacheError]]) -> None:
        nonlocal written, kept, failed
        wrong = 0
        for each, result in results:
            if isinstance(result, CacheError):
                wrong += 1
                call.out.error(result)
                continue
            written += result
            kept += not result
            fields = {"file": each.target, "marker": one.place, "written": result}
            call.out.result("restored", fields, *([f"restored {each.target}"] if result else []))
        failed += wrong
        if delete_markers and not wrong and one.marked is not None:
            _delete(access.store.fs, one.marked)

    code = each_at_once(call, found, act, report, call.jobs or AT_A_TIME)
    memory.keep()
    call.out.note(f"restored {output.count(written, 'file')}, {kept:,} already there, {failed:,} not restored")
    return Exit.PARTIAL if failed or code else Exit.DONE


def _delete(fs: FileSystem, one: Marked) -> None:
    """Delete a marker, if it is still there: the file may have been put in its place."""
    if marker.read_if_marker(one.place) == one.marker:
        fs.unlink(one.place)


@marker_command.command("verify")
@paths_argument
@common_options()
@pass_invocation
def verify(call: Invocation, paths: tuple[str, ...]) -> int:
    """Read the objects of markers in the archive.

    Each object that is damaged or missing is named. The exit code is 20 if there is one.

    \b
    Example:
      sc-dtool marker verify raw
    """
    archive, bad, number = call.cache().archive, 0, 0
    for one in tree.find(paths or ["."]):
        if one.marked is None:
            bad += 1
            call.out.error(one.error or CacheError(one.place))
            continue
        number += 1
        for wrong in archive.verify(part.sha256 for part in one.marked.marker.parts):
            bad += 1
            call.out.error(FetchFailed(f"{one.place}: {wrong.message}", details=wrong.details, hint=wrong.hint))
    call.out.note(f"verified {output.count(number, 'marker')}, {bad:,} bad")
    return Exit.FINDINGS if bad else Exit.DONE


@marker_command.command("comment")
@click.argument("path", metavar="MARKER")
@click.argument("text")
@common_options()
@pass_invocation
def comment(call: Invocation, path: str, text: str) -> None:
    """Change the comment of a marker.

    The comment is also recorded in the archive, where everybody who has the same file can see it:
    `sc-dtool index ls --comments ID`.

    \b
    Example:
      sc-dtool marker comment data.csv.marker "calibrated again on 3 May"
    """
    marker.find(path)
    marker.check_comment(text, LONGEST_COMMENT)
    _changed(call, path, files_of(call).comment(path, text))


@marker_command.command("append")
@click.argument("path", metavar="MARKER")
@click.argument("file", metavar="FILE")
@common_options()
@pass_invocation
def append(call: Invocation, path: str, file: str) -> None:
    """Append the bytes of a file to what a marker stands for.

    Only the new bytes are stored, as an object of their own. The marker is replaced when they are in the archive.

    \b
    Example:
      sc-dtool marker append log.csv.marker today.csv
    """
    marker.find(path)
    _changed(call, path, files_of(call).append(path, file))


def _changed(call: Invocation, path: str, made: Marker) -> None:
    place = marker.find(path)[0]
    fields = {"marker": place, "sha256": made.sha256, "bytes": made.bytes, "comment": made.comment}
    call.out.result("marker", fields, f"{place}: {output.size(made.bytes)}, {output.count(len(made.parts), 'object')}")
