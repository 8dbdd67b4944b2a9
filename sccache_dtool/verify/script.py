"""What only two hosts can try: one script that both run, with a barrier after each step, and what its results show.

A step is the leader's, the peer's, or of both at once. What a step returns as a dictionary is its host's result.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import NamedTuple

from sccache_dtool.errors import FULL, GONE, NOT_EMPTY, explain
from sccache_dtool.liveness.lifetime import ONE_CLOCK
from sccache_dtool.units import short_duration
from sccache_dtool.verify import contests
from sccache_dtool.verify.contests import CONTESTS
from sccache_dtool.verify.directory import Directory
from sccache_dtool.verify.findings import Finding, Tell, Weight, good, is_refused, note, one_host
from sccache_dtool.verify.probes import CLOCKS_DIFFER, clock_offset, say_offset
from sccache_dtool.verify.session import LEADER, PEER, Ended, Failed, Fields, Session

BOTH = "both"

#: Seconds for which a host is given time to see what the other has made. NFS takes up to 60 by default.
LONGEST_DELAY = 75.0

#: The runs of a contest: first one after the other, each with its caches as they are, then both at once.
_RUNS = ((LEADER, PEER), (PEER, LEADER), (BOTH,), (BOTH,))

#: Seconds by which the leader starts later in the last run: either host may be the first to pass a barrier.
_HEAD_START = 0.02

_ROUNDS = 20
_SIZE = 1 << 20

#: Seconds since 1970, or between clocks: no time that a host has is larger.
_LARGEST_TIME = 1e12


class Part(NamedTuple):
    """What a host has in a check."""

    session: Session
    directory: Directory
    longest_delay: float
    tell: Tell


Steps = Generator[tuple[str, Callable[[], object]], None, None]
Judge = Callable[[Fields, Fields, str], Finding]  # of the leader's result, the peer's, and the kind of file system
Check = tuple[Callable[[Part], Steps], Judge]


def run(session: Session, result: dict[str, object], longest_delay: float, tell: Tell) -> None:
    """Run all checks with the other host, and keep this host's result file up to date.

    An error is this host's result of that check. One that there is no room is raised.
    """
    of_checks = result["checks"] = dict[str, object]()
    with contextlib.suppress(Ended):
        if session.me == LEADER:
            for number, _ in enumerate(checks(), 1):
                session.directory.make(f"p{number}")
        session.barrier()
        for name, (steps, _) in checks().items():
            session.next_check()
            found: dict[str, object] = {}
            try:
                part = Part(session, session.directory.at(f"p{session.check}"), longest_delay, tell)
                with contextlib.closing(steps(part)) as turns:
                    for turn, act in turns:
                        if turn in (session.me, BOTH) and isinstance(what := act(), dict):
                            found |= what
                        session.barrier()
            except OSError as error:
                if error.errno in FULL:
                    raise
                found["failed"] = explain(error)
            of_checks[name] = found
            session.publish(result)
        session.next_check()
        session.barrier()  # until the other host has published, too


def judge(leader: Fields, peer: Fields, kind: str, *, is_complete: bool) -> Iterator[Finding]:
    """What the results of both hosts show. `is_complete`: both have finished, so that each check must be there."""
    of_checks = [side.fields("checks") for side in (leader, peer)]
    for name, (_, evaluate) in checks().items():
        if not is_complete and not all(name in side for side in of_checks):
            return
        try:
            sides = [side.fields(name) for side in of_checks]
            for side in sides:
                if "failed" in side:
                    raise Failed(f"{side.host}: {side.text('failed')}")
            yield evaluate(sides[0], sides[1], kind)._replace(check=name)
        except Failed as failure:
            yield Finding(name, Weight.ONE_HOST, f"failed on {failure}")


# -- contests ----------------------------------------------------------------------------------------------------------


def _contest(name: str, part: Part) -> Steps:
    contest = CONTESTS[name]
    for number, turns in enumerate(_RUNS):
        ground = part.directory.at(f"run{number}")
        yield LEADER, partial(contests.prepare, part.directory, f"run{number}", contest)
        yield PEER, partial(contests.look_at, ground)
        for turn in turns:
            yield turn, partial(_race, number, ground, part.session.me == LEADER, contest)


def _race(number: int, ground: Directory, is_leader: bool, contest: contests.Contest) -> dict[str, object]:
    """Attempt it with all names: the peer backwards, so that two who start at once meet on the way."""
    if is_leader and number == len(_RUNS) - 1:
        ground.clock.sleep(_HEAD_START)
    act, step = (contest.first, 1) if is_leader else (contest.second, -1)
    outcomes = [contests.attempt(act, one) for one in contests.names(ground)[::step]]
    return {f"run{number}": "".join(outcomes[::step])}


def _judge_contest(name: str, leader: Fields, peer: Fields, kind: str) -> Finding:
    letters = f"[{contests.WON}{contests.REFUSED}{contests.FAILED}]{{{contests.NAMES}}}"
    first, second = (
        "".join(side.text(f"run{number}", letters) for number in range(len(_RUNS))) for side in (leader, peer)
    )
    return contests.judge(name, first, second, Weight.ONE_HOST)


# -- what one makes, and the other sees --------------------------------------------------------------------------------


def _names(part: Part) -> Steps:
    directory = part.directory
    for name in [f"n{number}" for number in range(_ROUNDS)]:
        yield PEER, partial(directory.fs.names, directory.path)
        yield LEADER, partial(directory.make, name)
        yield PEER, lambda name=name: {name: int(name in directory.fresh_names())}  # type: ignore[misc]


def _judge_names(leader: Fields, peer: Fields, kind: str) -> Finding:
    if not all(peer.number(f"n{number}", 0, 1) for number in range(_ROUNDS)):
        what = f"{peer.host} does not see what was made before, even after a create of its own"
        return one_host(f"{what}: living holders would be taken for dead")
    return good(f"after a create of its own a host sees all names ({_ROUNDS} rounds)", rounds=_ROUNDS)


def _full_target(part: Part) -> Steps:
    directory, target = part.directory, part.directory.at("target")
    rename = partial(directory.fs.rename, f"{directory.path}/source", target.path)
    yield LEADER, lambda: (directory.make("target"), directory.make("source").make("payload"))
    yield PEER, partial(directory.fs.names, target.path)
    yield LEADER, partial(target.make, "payload")
    refused = NOT_EMPTY | {errno.EPERM}  # EPERM: what SFTP makes of every refusal
    yield PEER, lambda: {"refused": int(is_refused(rename, refused))}


def _judge_full_target(leader: Fields, peer: Fields, kind: str) -> Finding:
    if peer.number("refused", 0, 1):
        return good("a directory that another host has just filled is not replaced")
    return one_host("a directory that another host has just filled is replaced, and its content lost")


def _published(part: Part) -> Steps:
    """A copy appears by one rename, complete; and whoever has it open reads on when it is moved away."""
    directory, data, opened = part.directory, bytearray(), list[int]()

    def publish() -> None:
        data.extend(os.urandom(_SIZE))
        directory.make("tmp").put("payload", bytes(data))
        directory.move("tmp", "generation")

    def open_it() -> None:
        directory.fresh_names()
        opened.append(directory.fs.open(f"{directory.path}/generation/payload"))
        data.extend(directory.fs.read(opened[0], 4096))

    def read_on() -> None:
        while len(data) <= _SIZE and (more := directory.fs.read(opened[0])):  # it may be a file without end
            data.extend(more)

    try:
        yield LEADER, publish
        yield PEER, open_it
        yield LEADER, partial(directory.move, "generation", "trash")
        yield PEER, read_on
        yield BOTH, lambda: {"digest": hashlib.sha256(data).hexdigest()}
    finally:
        for fd in opened:
            directory.fs.close(fd)


def _judge_published(leader: Fields, peer: Fields, kind: str) -> Finding:
    if leader.text("digest") != peer.text("digest"):
        return one_host(f"{peer.host} reads something else than was published")
    return good("it is complete on the other host, and can be read on after it was moved to the trash")


#: The directories in which the peer looks for a name, and how.
_LOOKS = {"looked-up": "if looked up", "listed": "if listed"}


def _delay(part: Part) -> Steps:
    """How long the peer, which has looked in vain, does not see a name if nothing refreshes what it remembers."""
    fs, path = part.directory.fs, part.directory.path

    def sees(how: str) -> bool:
        if how == "listed":
            return "name" in fs.names(f"{path}/{how}")
        return not is_refused(partial(fs.lstat, f"{path}/{how}/name"), GONE)

    def watch() -> dict[str, object]:
        began, delays = part.directory.clock.monotonic(), dict[str, object]()
        while (passed := part.directory.clock.monotonic() - began) < part.longest_delay and len(delays) < len(_LOOKS):
            delays |= {how: passed for how in _LOOKS if how not in delays and sees(how)}
            part.directory.clock.sleep(0.05)
        return {**delays, "longest": part.longest_delay}

    yield LEADER, lambda: [part.directory.make(how) for how in _LOOKS]
    yield PEER, lambda: [sees(how) for how in _LOOKS]
    yield LEADER, lambda: [part.directory.at(how).make("name") for how in _LOOKS]
    if part.session.me == LEADER:
        part.tell(f"waiting {part.longest_delay:.0f} s at most until {part.session.other} sees what was made here")
    yield PEER, watch


def _judge_delay(leader: Fields, peer: Fields, kind: str) -> Finding:
    longest = peer.number("longest", 0.0, LONGEST_DELAY)
    delays = {how: peer.number(how, 0.0, LONGEST_DELAY) if how in peer else None for how in _LOOKS}
    said = ", ".join(
        f"not within {longest:.0f} s {_LOOKS[how]}" if seconds is None else f"after {seconds:.2f} s {_LOOKS[how]}"
        for how, seconds in delays.items()
    )
    figures = {f"delay_{how.replace('-', '_')}": seconds for how, seconds in delays.items()}
    return good(f"what one host makes shows on the other {said}; nothing depends on it", **figures)


# -- clocks ------------------------------------------------------------------------------------------------------------


def _clocks(part: Part) -> Steps:
    """The peer's stamp is made after the leader's, and within the time that passes on the leader's clock."""
    began = part.directory.clock.monotonic()
    for turn in (LEADER, PEER):
        yield turn, lambda turn=turn: dict(zip(("offset", "stamp"), clock_offset(part.directory, turn), strict=True))  # type: ignore[misc]
    yield LEADER, lambda: {"passed": part.directory.clock.monotonic() - began}


def _judge_clocks(leader: Fields, peer: Fields, kind: str) -> Finding:
    ours, theirs = (side.number("offset", -_LARGEST_TIME, _LARGEST_TIME) for side in (leader, peer))
    stamp, other = (side.number("stamp", -_LARGEST_TIME, _LARGEST_TIME) for side in (leader, peer))
    figures = {"offset": ours, "offset_of_peer": theirs}
    if not -1.0 <= other - stamp <= leader.number("passed", 0.0, _LARGEST_TIME) + 1.0:
        if kind in ONE_CLOCK:
            what = "times come from the hosts, whose clocks differ, and not from a server, as they should on"
            return one_host(f"{what} {kind}: set the clocks (NTP)", **figures)
        what = f"times come from the hosts, whose clocks differ by {short_duration(abs(other - stamp))}"
        return note(f"{what}: set them (NTP); leases do not depend on it", **figures)
    what = f"that of the file system is {say_offset(ours)} this host's, and {say_offset(theirs)} the other's"
    if max(abs(ours), abs(theirs)) > CLOCKS_DIFFER:
        return note(f"{what}: lifetimes last longer by that; set the clocks (NTP)", **figures)
    return good(what, **figures)


_CHECKS: dict[str, Check] = {
    "names made by another host": (_names, _judge_names),
    "rename onto what another host filled": (_full_target, _judge_full_target),
    "a copy published by another host": (_published, _judge_published),
    "clocks of two hosts": (_clocks, _judge_clocks),
    "visibility between hosts": (_delay, _judge_delay),
}


def checks() -> dict[str, Check]:
    """All checks between two hosts, by name, in the order in which they are run and shown."""
    races = {f"{name}, between hosts": (partial(_contest, name), partial(_judge_contest, name)) for name in CONTESTS}
    return races | _CHECKS
