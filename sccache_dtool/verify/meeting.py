"""How two find each other in a directory. The peer leaves its card, the leader calls, the first to answer stays.

Nothing of it is in the way of a peer that was killed: its card is never answered for.
"""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Iterator
from typing import NamedTuple

from sccache_dtool.errors import TimedOut, UsageError, explain
from sccache_dtool.layout import VERIFICATION, is_of_verification, unique
from sccache_dtool.records import printable
from sccache_dtool.verify.findings import Place, Tell
from sccache_dtool.verify.role import Role
from sccache_dtool.verify.talk import RELAXED, Said, Talk, fresh_names, read_said, wait_for

_CARD, _CALL = ".peer", ".call"
_TALK = "talk"

#: Seconds for each answer. Hosts see each other's names at once here, so that only a stopped one needs so long.
PATIENCE = 120.0

#: Seconds in which a peer that lives answers a call.
_ANSWER = 20.0


class Host(NamedTuple):
    """A host as it introduces itself: its name, and what tells two mounts apart."""

    name: str
    boot: str
    device: int

    def is_independent_of(self, other: Host) -> bool:
        """Whether the two have nothing in common but the file system: another kernel, or at least another mount."""
        return (self.boot, self.device) != (other.boot, other.device)


def _introduced(said: Said) -> Host:
    return Host(printable(str(said.get("host", "?")))[:64], str(said.get("boot")), int(said.get("device", 0)))


def cannot_be_used(directory: str, error: OSError) -> UsageError:
    """That a directory cannot be listed, or nothing be made in it."""
    return UsageError(
        f"cannot verify {directory}: {explain(error)}", hint="give a directory on the mount, in which you may write"
    )


@contextlib.contextmanager
def room(directory: Place, tell: Tell) -> Iterator[Place]:
    """A new directory for all that is tried; removed at the end, whatever happens. `tell`: told if it cannot be."""
    name = f"{VERIFICATION}{unique()}"
    try:
        made = directory.make(name)
    except OSError as error:
        raise cannot_be_used(directory.path, error) from error
    try:
        yield made
    finally:
        try:
            directory.fs.remove_tree(made.path)
        except FileNotFoundError:
            pass  # a peer that took us for dead has removed it
        except OSError as error:
            tell(f"cannot remove {made.path} ({explain(error)}): remove it by hand")


def find_peer(directory: Place, room: Place, me: Host, role: Role, tell: Tell) -> tuple[Talk, Host] | None:
    """As the leader: somebody to talk to in `room`; None if there is nobody within the time of the role."""
    talk = room.make(_TALK)
    called: set[str] = set()
    end = directory.clock.monotonic() + role.wait
    if role.wait:
        tell(f"waiting {role.wait:.0f} s at most for the peer, which is to look at {directory.path}")

    def look() -> Said | None:
        nonlocal end
        for card in _cards(directory, role.meeting) - called:
            called.add(card)
            end = directory.clock.monotonic() + _ANSWER
            directory.record(_room_of(room), f"{card}{_CALL}")
        if "0.peer" in fresh_names(talk):
            return read_said(talk, "0.peer")
        return {} if directory.clock.monotonic() > end else None

    try:
        said = wait_for(directory, look, role.wait + _ANSWER + PATIENCE, "the peer", RELAXED)
    finally:
        for card in called:
            directory.remove(f"{card}{_CALL}")
    if not said:
        return None
    peer = _introduced(said)
    conversation = Talk(talk, "leader", "peer", peer.name, PATIENCE)
    conversation.hear()
    conversation.say(host=me.name)
    return conversation, peer


def _cards(directory: Place, meeting: str) -> set[str]:
    """The peers that wait for a leader of this meeting."""
    found = [name for name in fresh_names(directory) if name.startswith(VERIFICATION) and name.endswith(_CARD)]
    read = {name.removesuffix(_CARD): read_said(directory, name) for name in found}
    return {card for card, said in read.items() if said is not None and said.get("meeting") == meeting}


def _room_of(room: Place) -> str:
    return json.dumps({"room": room.path.rpartition("/")[2]})


def _is_room(directory: Place, name: str) -> bool:
    """Whether a name that somebody has written is that of a room: a directory, and no link to somewhere else."""
    if not is_of_verification(name):
        return False
    try:
        return stat.S_ISDIR(directory.fs.lstat(f"{directory.path}/{name}").st_mode)
    except OSError:
        return False


@contextlib.contextmanager
def join(directory: Place, me: Host, role: Role, tell: Tell) -> Iterator[tuple[Place, Talk]]:
    """As the peer: the leader's room, and a talk with it. Raises TimedOut if no leader comes within the role's time.

    What the leader leaves there because it was killed is removed, too.
    """
    card = f"{VERIFICATION}{unique()}"
    introduction = {"host": me.name[:64], "boot": me.boot, "device": me.device, "meeting": role.meeting, "card": card}
    try:
        directory.record(json.dumps(introduction), f"{card}{_CARD}")
    except OSError as error:
        raise cannot_be_used(directory.path, error) from error
    tell(f"waiting {role.wait:.0f} s at most for the other host, which is to verify {directory.path}, too")

    def look() -> Said | None:
        name = f"{card}{_CALL}"
        said = read_said(directory, name) if name in fresh_names(directory) else None
        return said if said and _is_room(directory, str(said.get("room", ""))) else None

    try:
        called = wait_for(directory, look, role.wait, "a leader", RELAXED)
    finally:
        directory.remove(f"{card}{_CARD}")
    room = directory._replace(path=f"{directory.path}/{called['room']}")
    talk = Talk(room._replace(path=f"{room.path}/{_TALK}"), "peer", "leader", "the leader", PATIENCE)
    try:
        talk.say(**introduction)
    except FileExistsError:
        raise UsageError(
            f"another peer takes part in the verification of {directory.path}", hint="two hosts are enough"
        ) from None
    try:
        talk.name_of_other = str(talk.hear().get("host", "the leader"))
        yield room, talk
    except TimedOut:
        with contextlib.suppress(FileNotFoundError):
            directory.fs.remove_tree(room.path)
        raise
