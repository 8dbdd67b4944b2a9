"""How two find each other in a directory. The peer leaves its card, the leader calls, the first to answer stays.

Nothing of it is in the way of a peer that was killed: its card is never answered for.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import stat
from collections.abc import Collection, Iterator
from typing import NamedTuple

from sccache_dtool.disk.names import VERIFICATION, is_of_verification, unique
from sccache_dtool.errors import NOT_EMPTY, TimedOut, UsageError, explain
from sccache_dtool.verify.findings import Place, Tell
from sccache_dtool.verify.refusals import cannot_be_used
from sccache_dtool.verify.role import Role
from sccache_dtool.verify.said import Garbled, Said
from sccache_dtool.verify.talk import RELAXED, Talk, fresh_names, read_said, wait_for

_CARD, _CALL = ".peer", ".call"
_TALK = "talk"
_ROOM = rf"{re.escape(VERIFICATION)}[0-9a-f]{{16}}"

#: Bytes of the longest name that a host has (HOST_NAME_MAX).
_LONGEST_NAME = 64

#: The largest number of a device (st_dev).
_LARGEST_DEVICE = (1 << 64) - 1

#: How often a room is tried to be removed while somebody makes names in it.
_REMOVALS = 20

#: Cards that one leader answers: those of peers that were killed, but hardly so many.
_CARDS_ANSWERED = 20

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
    return Host(name_of(said), said.text("boot"), said.whole("device", _LARGEST_DEVICE))


def name_of(said: Said) -> str:
    """What a host calls itself that introduces itself."""
    return said.text("host")[:_LONGEST_NAME]


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
            _remove(made)
        except FileNotFoundError:
            pass  # a peer that took us for dead has removed it
        except OSError as error:
            tell(f"cannot remove {made.path} ({explain(error)}): remove it by hand")


def _remove(room: Place) -> None:
    """Remove a room, in which a peer that has not heard our goodbye may still be making names to look for it."""
    for tries_left in reversed(range(_REMOVALS)):
        try:
            room.fs.remove_tree(room.path)
            break
        except OSError as error:
            if error.errno not in NOT_EMPTY or not tries_left:
                raise


def find_peer(directory: Place, room: Place, me: Host, role: Role, tell: Tell) -> tuple[Talk, Host] | None:
    """As the leader: somebody to talk to in `room`; None if there is nobody within the time of the role.

    Raises TimedOut, Goodbye or Garbled if somebody comes, and does not go on as a peer does.
    """
    talk = room.make(_TALK)
    called: set[str] = set()
    end = directory.clock.monotonic() + role.wait
    if role.wait:
        tell(f"waiting {role.wait:.0f} s at most for the peer, which is to look at {directory.path}")

    def look() -> bool | None:
        """Whether somebody has answered; no once it is too late."""
        nonlocal end
        for card in itertools.islice(_cards(directory, role.meeting, called), _CARDS_ANSWERED - len(called)):
            called.add(card)
            end = directory.clock.monotonic() + _ANSWER
            directory.record(_room_of(room), f"{card}{_CALL}")
        if "0.peer" in fresh_names(talk):
            return True
        return False if directory.clock.monotonic() > end else None

    try:
        is_answered = wait_for(directory, look, role.wait + _ANSWER + PATIENCE, "the peer", RELAXED)
    finally:
        for card in called:
            directory.remove(f"{card}{_CALL}")
    if not is_answered:
        return None
    conversation = Talk(talk, "leader", "peer", "the peer", PATIENCE)
    try:
        peer = _introduced(conversation.hear())
    except Garbled as error:
        conversation.part(f"broken off: {error}")
        raise
    conversation.name_of_other = peer.name
    conversation.say(host=me.name)
    return conversation, peer


def _cards(directory: Place, meeting: str, called: Collection[str]) -> Iterator[str]:
    """The peers that wait for a leader of this meeting, without those that have been called."""
    found = [name for name in fresh_names(directory) if is_of_verification(name) and name.endswith(_CARD)]
    for card in [name.removesuffix(_CARD) for name in found]:
        if card not in called and _is_for(meeting, read_said(directory, f"{card}{_CARD}")):
            yield card


def _is_for(meeting: str, card: Said | None) -> bool:
    try:
        return card is not None and card.text("meeting") == meeting
    except Garbled:
        return False


def _room_of(room: Place) -> str:
    return json.dumps({"room": room.path.rpartition("/")[2]})


def _called_to(directory: Place, said: Said) -> str | None:
    """The room that somebody calls to; None if it is not there: a directory, and no link to somewhere else."""
    try:
        path = f"{directory.path}/{said.matching('room', _ROOM)}"
        return path if stat.S_ISDIR(directory.fs.lstat(path).st_mode) else None
    except (Garbled, OSError):
        return None


@contextlib.contextmanager
def join(directory: Place, me: Host, role: Role, tell: Tell) -> Iterator[tuple[Place, Talk]]:
    """As the peer: the leader's room, and a talk with it. Raises TimedOut if no leader comes within the role's time.

    What the leader leaves there because it was killed is removed, too.
    """
    card = f"{VERIFICATION}{unique()}"
    introduction = {
        "host": me.name[:_LONGEST_NAME],
        "boot": me.boot,
        "device": me.device,
        "meeting": role.meeting,
        "card": card,
    }
    try:
        directory.record(json.dumps(introduction), f"{card}{_CARD}")
    except OSError as error:
        raise cannot_be_used(directory.path, error) from error
    tell(f"waiting {role.wait:.0f} s at most for the other host, which is to verify {directory.path}, too")

    def look() -> str | None:
        name = f"{card}{_CALL}"
        said = read_said(directory, name) if name in fresh_names(directory) else None
        return None if said is None else _called_to(directory, said)

    try:
        path = wait_for(directory, look, role.wait, "a leader", RELAXED)
    finally:
        directory.remove(f"{card}{_CARD}")
    room = directory._replace(path=path)
    talk = Talk(room._replace(path=f"{room.path}/{_TALK}"), "peer", "leader", "the leader", PATIENCE)
    try:
        talk.say(**introduction)
    except FileExistsError:
        raise UsageError(
            f"another peer takes part in the verification of {directory.path}", hint="two hosts are enough"
        ) from None
    try:
        yield room, talk
    except TimedOut:
        with contextlib.suppress(FileNotFoundError):
            directory.fs.remove_tree(room.path)
        raise
