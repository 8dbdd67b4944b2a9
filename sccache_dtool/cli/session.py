"""`session`: lists of items with paths, on which locks are taken until the session is deleted."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import Any

import click

from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.options import LIFETIME, Actions, Invocation, common_options, pass_invocation
from sccache_dtool.cli.output import Column, Fields
from sccache_dtool.cli.use_many import Many
from sccache_dtool.clock import from_iso
from sccache_dtool.disk.names import key_label
from sccache_dtool.errors import UsageError
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.protocol import sessions as on_disk
from sccache_dtool.sets import sessions
from sccache_dtool.sets.sessions import Entry, Object, SessionFacts

_FORM = "give ITEM:/PATH, such as ref.fa:/refs/ref.fa, or 'https://example.org/ref.tar.gz sha256:HEX tar:/refs'"

if_seq_option = click.option(
    "--if-seq", type=int, metavar="N", help="Fail if the number that `session show` prints is not N."
)
force_option = click.option("--force", is_flag=True, help="Remove items even if they are locked. The locks stay valid.")


@click.group("session", cls=Actions)
@common_options()
def session_command() -> None:
    """Create and change sessions: items at paths, with locks.

    A session is a list of items, each at a path. Nothing is fetched until an item is locked (`sc-dtool lock get`). When
    the session is deleted, or its holder has ended, all its locks end. A set that `use --from` holds is a session too.

    \b
    Example:
      id=$(sc-dtool session create --holder slurm:48211 --add /data/hg38.fa:/refs/hg38.fa)
    """


@session_command.command("create")
@click.option("--add", "items", multiple=True, metavar="ITEM:/PATH", help="An item, and its path. Repeatable.")
@click.option("--from", "manifest", metavar="FILE", help="A manifest of items, as for `use`; -: standard input.")
@click.option("--label", default="", metavar="TEXT", help="A text that describes the session.")
@click.option(
    "--holder",
    metavar="WHO",
    help="Who holds the session, which ends with it: auto, pid:N, slurm:ID, or a name. Default: nobody.",
)
@click.option("--ttl", type=LIFETIME, help="End the session this long after its creation or last renewal: 12h.")
@common_options()
@pass_invocation
def create(
    call: Invocation, items: tuple[str, ...], manifest: str | None, label: str, holder: str | None, ttl: float | None
) -> None:
    """Create a session and print its id, alone.

    ITEM is the name or key of an item in the cache, or a source, with its steps if there are any. The path is what
    follows the last `:/`. A whole dtool dataset becomes its items, below the path.

    \b
    Examples:
      sc-dtool session create --ttl 12h --add /data/hg38.fa:/refs/hg38.fa
      sc-dtool session create --ttl 12h --from items.txt
    """
    cache = call.cache()
    if len(label) > 100 or not (label.isprintable()):
        raise UsageError("a label has at most 100 printable characters")
    entries = _entries(cache, items)
    if manifest is not None:
        listed = Many.from_file(cache, manifest).entries
        entries = (*entries, *(found for one in listed for found in cache.session_entries(one.request, f"/{one.path}")))
    id = sessions.new_id()
    if holder is None and ttl is None:
        call.out.note(
            "the session lasts until it is deleted; to limit it, give --ttl, or a process or job with --holder"
        )
    owner = cache.owner(f"session {id}" if holder is None else holder)
    made = cache.create_session(entries, owner=owner, label=label, ttl=ttl, id=id)
    try:
        call.out.path("session", _fields(made.facts), made.id)
    except BaseException:  # a caller that has not got the id cannot delete it
        made.delete()
        raise


@session_command.command("ls")
@common_options()
@pass_invocation
def ls(call: Invocation) -> None:
    """List the sessions.

    \b
    Example:
      sc-dtool session ls
    """
    moment = time.time()
    columns = [
        Column("SESSION", "session"),
        Column("LABEL", "label"),
        Column("ITEMS", lambda row: str(len(row["data_set"])), right=True),
        Column("HOLDER", _holder),
        Column("CREATED", lambda row: output.ago(from_iso(row["created"]), moment)),
        Column("STATE", "state"),
    ]
    call.out.table("session", map(_fields, call.cache().sessions()), columns, empty="no sessions")


@session_command.command("show")
@click.argument("session")
@click.option("--objects", is_flag=True, help="Also show what is at each path, and whether it is in the cache.")
@common_options()
@pass_invocation
def show(call: Invocation, session: str, objects: bool) -> None:
    """Show a session and its items.

    \b
    Example:
      sc-dtool session show s2a00f74596eaf513 --objects
    """
    cache = call.cache()
    facts = cache.session(session).facts
    fields = _fields(facts)
    if objects:
        found = (sessions.find(cache.store, facts, entry.mount) for entry in facts.entries)
        fields["data_set"] = [{**_entry_fields(one.entry), **_object_fields(one)} for one in found if one.entry]
    lines = [
        f"session  {facts.id}, {fields['state']}",
        f"label    {facts.label or 'none'}",
        f"holder   {_holder(fields)}",
        f"created  {facts.created}",
        f"number   {facts.seq}",
        *(f"  {_line(one)}" for one in fields["data_set"]),
    ]
    call.out.result("session", fields, *lines)


@session_command.command("set")
@click.argument("session")
@click.argument("items", nargs=-1, metavar="[ITEM:/PATH]...")
@if_seq_option
@force_option
@common_options()
@pass_invocation
def set_(call: Invocation, session: str, items: tuple[str, ...], if_seq: int | None, force: bool) -> None:
    """Replace the items of a session.

    The number of the session grows by one with each change; see --if-seq. The exit code is 14 if an item that would be
    removed is locked, or if the session has another number.

    \b
    Example:
      sc-dtool session set s2a00f74596eaf513 /data/hg38.fa:/refs/hg38.fa
    """
    cache = call.cache()
    entries = _entries(cache, items)
    _changed(call, cache.session(session).edit(lambda before: entries, if_seq=if_seq, force=force))


@session_command.command("add")
@click.argument("session")
@click.argument("items", nargs=-1, required=True, metavar="ITEM:/PATH...")
@if_seq_option
@common_options()
@pass_invocation
def add(call: Invocation, session: str, items: tuple[str, ...], if_seq: int | None) -> None:
    """Add items to a session.

    The exit code is 14 if --if-seq is given and the session has another number.

    \b
    Example:
      sc-dtool session add s2a00f74596eaf513 /data/genes.gtf:/refs/genes.gtf
    """
    cache = call.cache()
    entries = _entries(cache, items)
    _changed(call, cache.session(session).edit(lambda before: (*before, *entries), if_seq=if_seq))


@session_command.command("remove")
@click.argument("session")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@if_seq_option
@force_option
@common_options()
@pass_invocation
def remove(call: Invocation, session: str, paths: tuple[str, ...], if_seq: int | None, force: bool) -> None:
    """Remove items from a session, by their paths.

    The exit code is 14 if one of them is locked, or if --if-seq is given and the session has another number. With
    --force, locks stay valid until they are released.

    \b
    Example:
      sc-dtool session remove s2a00f74596eaf513 /refs/genes.gtf
    """
    wanted = {f"/{'/'.join(sessions.parts_of(path))}" for path in paths}

    def without(before: Sequence[Entry]) -> list[Entry]:
        missing = wanted - {entry.mount for entry in before}
        if missing:
            raise UsageError(
                f"session {session} has no item at {plain(min(missing))}",
                hint=f"to list its items: {call.command('session', 'show', session)}",
            )
        return [entry for entry in before if entry.mount not in wanted]

    _changed(call, call.cache().session(session).edit(without, if_seq=if_seq, force=force))


@session_command.command("object")
@click.argument("session")
@click.argument("path")
@click.option("--children", is_flag=True, help="Also list the content of a directory.")
@common_options()
@pass_invocation
def object_(call: Invocation, session: str, path: str, children: bool) -> None:
    """Show what is at PATH in a session.

    PATH is the path of an item, a path in an item, or a directory above items. If several items have paths above PATH,
    the one with the longest path is used. Nothing is fetched, and no symbolic link is followed.

    \b
    Example:
      sc-dtool session object s2a00f74596eaf513 /refs --children
    """
    cache = call.cache()
    found = sessions.find(cache.store, cache.session(session).facts, path, children=children)
    fields = {
        "session": session,
        "path": found.path,
        "name": found.name,
        "item": found.entry and found.entry.item,
        "mount": found.entry and found.entry.mount,
        "kind": found.type,  # "type" is the type of the record
        "size": found.size,
        "state": found.state,
        "place": found.place,
        "children": found.children and [one._asdict() for one in found.children],
    }
    below = [f"  {one.name}{'/' if one.type == 'folder' else ''}" for one in found.children or ()]
    call.out.result("object", fields, f"{found.path}: {found.type or 'not in the cache yet'}, {found.state}", *below)


@session_command.command("renew")
@click.argument("session")
@common_options()
@pass_invocation
def renew(call: Invocation, session: str) -> None:
    """Extend the lifetime of a session created with --ttl.

    \b
    Example:
      sc-dtool session renew s2a00f74596eaf513
    """
    renewed = call.cache().session(session).renew()
    text = "renewed" if renewed else "has no lifetime (--ttl), so there is nothing to renew"
    call.out.result("renewed", {"session": session, "renewed": renewed}, f"session {session} {text}")


@session_command.command("rm")
@click.argument("session")
@common_options()
@pass_invocation
def rm(call: Invocation, session: str) -> None:
    """Delete a session, and release all its locks.

    If a running program holds it as a set, the program is told that its leases are lost.

    Deleting a session twice is not an error: the command says when it was deleted.

    \b
    Example:
      sc-dtool session rm s2a00f74596eaf513
    """
    done = on_disk.delete(call.cache().store, session)
    at = output.moment(done.at)
    fields = {"session": done.id, "deleted": at, "by_this_call": done.by_this_call, "released": done.leases}
    if done.by_this_call:
        text = f"deleted session {done.id}, and released {output.count(done.leases, 'lock')}"
    else:
        text = f"session {done.id} was deleted at {at}"
    call.out.result("session-deleted", fields, text)


# -- what is printed, and what is given --------------------------------------------------------------------------------


def _holder(row: Fields) -> str:
    """The holder of a session, without the name that a session gives its own."""
    return str(row["owner"]).replace(f"[session {row['session']}]", "")


def _fields(facts: SessionFacts) -> dict[str, Any]:
    return {
        "session": facts.id,
        "label": facts.label,
        "owner": facts.owner,
        "user": facts.user,
        "seq": facts.seq,
        "data_set": [_entry_fields(entry) for entry in facts.entries],
        "created": facts.created,
        "holder": facts.holder,
        "state": "ending" if facts.has_ended else "active",
    }


def _entry_fields(entry: Entry) -> dict[str, Any]:
    return {"item": entry.item, "mount": entry.mount, "words": list(entry.words)}


def _object_fields(found: Object) -> dict[str, Any]:
    return {"type": found.type, "size": found.size, "state": found.state, "place": found.place}


def _line(one: Fields) -> str:
    what = " ".join(one["words"]) or key_label(one["item"] or "?")
    state = f"  ({one['type'] or 'item'}, {one['state']})" if "state" in one else ""
    return f"{one['mount']}  {what}{state}"


def _changed(call: Invocation, facts: SessionFacts) -> None:
    text = f"session {facts.id} has {output.count(len(facts.entries), 'item')} now; its number is {facts.seq}"
    call.out.result("session", _fields(facts), text)


def _entries(cache: Cache, texts: Sequence[str]) -> tuple[Entry, ...]:
    """The entries that ``ITEM:/PATH`` mean. Raises UsageError."""
    return sessions.normal(entry for text in texts for entry in _entries_of(cache, text))


def _entries_of(cache: Cache, text: str) -> Sequence[Entry]:
    before, colon, mount = text.rpartition(":/")
    if not colon or not before or mount.startswith("/"):
        raise UsageError(f"there is no path after the item in {plain(text)!r}", hint=_FORM)
    try:
        words = shlex.split(before)
    except ValueError as error:
        raise UsageError(f"{plain(text)!r}: {error}", hint=_FORM) from None
    return cache.entries_used(words, f"/{mount}")
