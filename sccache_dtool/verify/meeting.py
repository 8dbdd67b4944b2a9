"""Which part this process takes, and how two hosts find each other.

The peer makes a scratch directory and waits in it; the leader looks for such directories, and calls one peer after the
other until one answers: there may be some that were killed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from sccache_dtool.disk.names import is_of_verification
from sccache_dtool.errors import FULL, TimedOut, explain
from sccache_dtool.verify.directory import LEADER, PEER, Directory
from sccache_dtool.verify.session import FIRST, HELLO, RELAXED, Session, wait_for

#: Seconds for which two who were told that they are two wait for each other.
WAIT = 120.0

#: Peers that one leader calls: there may be some that were killed, but hardly so many.
_PEERS_CALLED = 20

#: Seconds in which a peer that lives answers a leader: it looks once a second.
ANSWER = 10.0


class RoleKind(StrEnum):
    """What there is to do."""

    LEAD = "lead"
    PEER = "peer"
    NONE = "none"


class Role(NamedTuple):
    """A part, in which meeting, and how many seconds to wait for the other."""

    part: RoleKind
    meeting: str
    wait: float


def role_from(environment: Mapping[str, str], *, peer: bool, wait: float | None) -> Role:
    """The role of this process; `peer` and `wait` are what a person said, who is right.

    Of the tasks that one `srun` has started, the first leads, the second is the peer, and the others have nothing to
    do. The batch script itself is no such task, and leads alone. Who leads by hand waits only when told to: it
    cannot know whether a peer will come.
    """
    tasks, rank = environment.get("SLURM_STEP_NUM_TASKS", ""), environment.get("SLURM_PROCID", "")
    if peer or not (tasks.isdecimal() and rank.isdecimal() and int(tasks) > 1):
        part = RoleKind.PEER if peer else RoleKind.LEAD
        return Role(part, "", wait if wait is not None else WAIT if peer else 0.0)
    meeting = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"
    part = {0: RoleKind.LEAD, 1: RoleKind.PEER}.get(int(rank), RoleKind.NONE)
    return Role(part, meeting, WAIT if wait is None else wait)


def join_as_peer(own: Directory, me: Mapping[str, str], wait: float) -> Session:
    """As the peer: a session with the leader, in a directory of its own. Raises TimedOut if none comes in time."""
    session = Session(own, PEER)
    session.put(HELLO, me)
    own.announce(
        f"waiting {wait:.0f} s at most for the other host, which is to verify {os.path.dirname(own.path)}, too"
    )
    wait_for(own, lambda: session.read(HELLO), wait, "a leader", RELAXED)
    return session


def begin_as_leader(parent: Directory, me: Mapping[str, str], wait: float) -> Session | None:
    """As the leader: a session with the first peer that answers; None if there is none within `wait` seconds."""
    seen, called = set[str](), list[str]()
    if wait:
        parent.announce(f"waiting {wait:.0f} s at most for the peer, which is to look at {parent.path}")

    def look() -> Session | None:
        for name in sorted(set(filter(is_of_verification, parent.fresh_names())) - seen):
            session = Session(parent.at(name), LEADER)
            try:
                hello = session.read(HELLO)
            except OSError as error:  # its host may have given up
                if error.errno in FULL:
                    raise
                continue
            if hello:
                seen.add(name)
                if hello.get("meeting") == me["meeting"] and len(called) < _PEERS_CALLED:
                    called.append(name)
                    return session if _answers(session, me) else look()  # others may have come meanwhile
        return None

    with contextlib.suppress(TimedOut):
        return wait_for(parent, look, wait, "the peer", RELAXED)
    return None


def _answers(session: Session, me: Mapping[str, str]) -> bool:
    """Call a peer; whether it answers, and has no other leader."""
    try:
        session.put(HELLO, me)
        wait_for(session.directory, lambda: FIRST in session.names(), ANSWER, "the peer")
    except FileExistsError:
        return False
    except TimedOut:
        session.end("it has not answered in time")
        return False
    except OSError as error:
        if error.errno in FULL:
            raise
        session.directory.announce(f"cannot take part in {session.directory.path}: {explain(error)}")
        return False
    return True
