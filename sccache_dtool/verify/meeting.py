"""Which part this process takes, and how two hosts find each other.

The peer makes a scratch directory and waits in it; the leader looks for such directories. A peer that was killed does
not keep a leader waiting: of all peers that wait, the leader takes the first that answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple, TypeVar

from sccache_dtool.disk.names import is_of_verification
from sccache_dtool.errors import FULL, explain
from sccache_dtool.verify.directory import Directory, remove, scratch
from sccache_dtool.verify.findings import Tell
from sccache_dtool.verify.session import LEADER, PATIENCE, PEER, RELAXED, Failed, Fields, Host, Session, wait_for

#: Seconds for which two who were told that they are two wait for each other.
WAIT = 120.0

#: Peers that one leader calls: there may be some that were killed, but hardly so many.
_PEERS_CALLED = 20

#: Seconds in which a peer that lives answers a leader. After a tenth of them, in which it usually does, the leader
#: calls another one, too: not at once, since that may be the one for which another leader looks.
_ANSWER = 20.0

Seen = TypeVar("Seen")


class Part(StrEnum):
    """What there is to do."""

    LEAD = "lead"
    PEER = "peer"
    NONE = "none"


class Role(NamedTuple):
    """A part, in which meeting, and how many seconds to wait for the other."""

    part: Part
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
        part = Part.PEER if peer else Part.LEAD
        return Role(part, "", wait if wait is not None else WAIT if peer else 0.0)
    meeting = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"
    part = {0: Part.LEAD, 1: Part.PEER}.get(int(rank), Part.NONE)
    return Role(part, meeting, WAIT if wait is None else wait)


@contextlib.contextmanager
def join(parent: Directory, me: Host, role: Role, tell: Tell) -> Iterator[Session]:
    """As the peer: a session with the leader. Raises TimedOut if no leader comes within the role's time."""
    with scratch(parent, tell) as directory:
        session = Session(directory, PEER)
        session.introduce(me, role.meeting)
        tell(f"waiting {role.wait:.0f} s at most for the other host, which is to verify {parent.path}, too")
        wait_for(directory, session.hello, role.wait, "a leader", RELAXED)
        yield session


@contextlib.contextmanager
def lead(parent: Directory, me: Host, role: Role, tell: Tell) -> Iterator[Session | None]:
    """As the leader: a session with the first peer that answers; None if there is none within the role's time."""
    called: list[Session] = []
    seen: set[str] = set()
    chosen: Session | None = None
    next_call = end = parent.clock.monotonic()
    end += role.wait
    if role.wait:
        tell(f"waiting {role.wait:.0f} s at most for the peer, which is to look at {parent.path}")

    def look() -> bool | None:
        """Whether a peer has answered; False once it is too late."""
        nonlocal chosen, next_call, end
        chosen = next((session for session in called if _if_reachable(session.has_answered)), None)
        names = () if chosen else sorted(set(filter(is_of_verification, parent.fresh_names())) - seen)
        for name in names:
            session = Session(parent.at(name), LEADER)
            if (now := parent.clock.monotonic()) < next_call or len(called) == _PEERS_CALLED:
                break
            if hello := _if_reachable(session.hello):
                seen.add(name)
                if _call(session, hello, me, role.meeting, tell):
                    called.append(session)
                    next_call, end = now + _ANSWER / 10, max(end, now + _ANSWER)
        return True if chosen else False if parent.clock.monotonic() > end else None

    try:
        wait_for(parent, look, role.wait + _ANSWER + PATIENCE, "the peer", RELAXED)
        yield chosen
    finally:
        for session in called:
            if session is chosen:
                remove(session.directory, tell)
            else:
                session.end("another peer takes part, or this one has not answered in time")


def _call(session: Session, hello: Fields, me: Host, meeting: str, tell: Tell) -> bool:
    """Call a peer, unless it waits for another leader, or has one."""
    try:
        if hello.text("meeting") != meeting:
            return False
        session.introduce(me, meeting)
    except (Failed, FileExistsError):
        return False
    except OSError as error:
        if error.errno in FULL:
            raise
        tell(f"cannot take part in {session.directory.path}: {explain(error)}")
        return False
    return True


def _if_reachable(look: Callable[[], Seen]) -> Seen | None:
    """What is seen in another host's directory; None if it cannot be looked at: its host may have given up."""
    try:
        return look()
    except OSError as error:
        if error.errno in FULL:
            raise
        return None
