"""`archive`: sets the archive up, completes it, and checks it."""

from __future__ import annotations

import os

import click

from sccache_dtool.cli import output
from sccache_dtool.cli.content import files_of
from sccache_dtool.cli.options import Actions, Invocation, common_options, pass_invocation
from sccache_dtool.errors import CacheError, Exit, UsageError
from sccache_dtool.fetch import objects
from sccache_dtool.markers import orphans, tree
from sccache_dtool.markers.predecessor import predecessors_of


@click.group("archive", cls=Actions)
@common_options()
def archive_command() -> None:
    """Administer the archive of files that are known by content.

    The archive is a directory that config.toml of the cache names: `url` in the table `[archive]`. It keeps every file
    that was added. The cache has copies of some of them.

    \b
    Example:
      sc-dtool archive verify
    """


@archive_command.command("init")
@common_options()
@pass_invocation
def init(call: Invocation) -> None:
    """Set up the archive in the directory that config.toml names.

    The directory must exist. If its group can write in it, the archive is shared with the group.

    \b
    Example:
      mkdir -m 2775 /tank/archive
      sc-dtool archive init
    """
    archive = call.cache().archive
    if not archive.init():
        call.out.note(f"{archive.url} is already an archive")
    call.out.path("archive", {"url": archive.url}, archive.url)


@archive_command.command("push")
@common_options()
@pass_invocation
def push(call: Invocation) -> int:
    """Archive the files that were added with --later.

    Until then, each of them is pinned in the cache. The exit code is 3 if some could not be archived.

    \b
    Example:
      sc-dtool archive push
    """
    done = failed = 0
    for id, error in files_of(call).push():
        if error is None:
            done += 1
            call.out.result("pushed", {"id": id}, f"archived {id}")
        else:
            failed += 1
            call.out.error(error)
    call.out.note(f"archived {output.count(done, 'object')}, {failed:,} failed")
    return Exit.PARTIAL if failed else Exit.DONE


@archive_command.command("verify")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@common_options()
@pass_invocation
def verify(call: Invocation, ids: tuple[str, ...]) -> int:
    """Read objects of the archive, and compare them with their ids.

    The default is all objects. Damaged objects are named, and not removed: restore them from a backup, or move them
    away and add the file again. The exit code is 20 if there is one.

    \b
    Example:
      sc-dtool archive verify
    """
    from sccache_dtool.markers.index import digits_of

    wanted = [digits_of(id) for id in ids]
    archive, bad, number = call.cache().archive, 0, 0
    for digits in wanted if ids else archive.objects():
        number += 1
        for wrong in archive.verify([digits]):
            bad += 1
            call.out.error(wrong)
    call.out.result(
        "verified", {"objects": number, "bad": bad}, f"verified {output.count(number, 'object')}, {bad:,} bad"
    )
    return Exit.FINDINGS if bad else Exit.DONE


@archive_command.command("adopt")
@click.argument("directory", metavar="DIR")
@common_options()
@pass_invocation
def adopt(call: Invocation, directory: str) -> int:
    """Add the files of an archive that knew them by MD5.

    DIR has an `index.csv` and files that are called after their MD5, such as 9e107d9d372bb6826bd81d3542a419d6.cache.
    Afterwards, `get` and `cat` accept md5:HEX for them as well. A file that has another MD5 is named and left out. The
    exit code is 3 if there is one.

    \b
    Example:
      sc-dtool archive adopt /tank/old-cache
    """
    return import_index(call, os.path.join(directory, "index.csv"))


def import_index(call: Invocation, path: str) -> int:
    """Adopt what an index names, and report it."""
    failed = 0
    rows = predecessors_of(path)
    for one in files_of(call).adopt(path, rows):
        if one.identifier is None:
            failed += 1
            call.out.error(CacheError(f"md5:{one.md5} was left out: {one.wrong}"))
        else:
            fields = {"md5": one.md5, "id": one.identifier}
            call.out.result("adopted", fields, f"md5:{one.md5} is {one.identifier}")
    return Exit.PARTIAL if failed else Exit.DONE


@archive_command.command("orphans")
@click.option("--markers", "directories", multiple=True, metavar="DIR", help="A project that has markers. Repeatable.")
@click.option("--delete", is_flag=True, help="Delete the objects that are listed, after 7 days in the trash.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@common_options()
@pass_invocation
def find_orphans(call: Invocation, directories: tuple[str, ...], delete: bool, yes: bool) -> None:
    """List objects that no marker names.

    Give all projects that use the archive: an object that only another project names is listed as well. Objects that
    were added within 7 days are not listed.

    \b
    Example:
      sc-dtool archive orphans --markers ~/study --markers ~/thesis
    """
    if not directories:
        raise UsageError("name the projects that use the archive", hint="--markers DIR, once for each of them")
    named = tree.digits_named(tree.find(directories))
    access = files_of(call)
    if delete:
        access.archive.require_removal()
    for marked in [one.marked for one in tree.find(directories) if one.marked and one.marked.marker.directory]:
        named |= {each.sha256 for _, each in access.entries(marked.marker)}
    found = list(orphans.find(access.archive, named))
    for digits, size in found:
        id = objects.word(digits)
        call.out.result("orphan", {"id": id, "bytes": size}, f"{id}  {output.size(size)}")
    if delete and found:
        total = output.size(sum(size for _, size in found))
        if not yes:
            call.confirm(f"Delete {output.count(len(found), 'object')}, {total}, in 7 days?")
        moved = sum(orphans.remove(access.archive, digits) for digits, _ in found)
        call.out.note(f"moved {output.count(moved, 'object')} to the trash of the archive")
    if delete:
        deleted = orphans.empty_trash(access.archive)
        call.out.note(f"deleted {output.count(deleted, 'object')} that had been there for 7 days")
