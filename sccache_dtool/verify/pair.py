"""What only two hosts can try. Of each check one half is the leader's, the other the peer's, who does as asked."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from sccache_dtool.errors import FULL, GONE, NOT_EMPTY, CacheError, explain
from sccache_dtool.liveness.lifetime import ONE_CLOCK
from sccache_dtool.units import short_duration
from sccache_dtool.verify import contests
from sccache_dtool.verify.contests import CONTESTS, FAILED, REFUSED, WON, Sides
from sccache_dtool.verify.findings import Finding, Fitness, Place, Tell, Verdict, Weight
from sccache_dtool.verify.meeting import name_of
from sccache_dtool.verify.probes import CLOCKS_DIFFER, clock_offset, say_offset
from sccache_dtool.verify.refusals import is_refused
from sccache_dtool.verify.said import Garbled, Said
from sccache_dtool.verify.talk import Goodbye, PeerFailed, Talk, fresh_names

#: Seconds for which a host is given time to see what the other has made. NFS takes up to 60 by default.
LONGEST_DELAY = 75.0

#: What the contests of one host are called, too, and this.
_BETWEEN = ", between hosts"

#: Seconds by which the leader starts later in one of the runs: the peer hears of the start a little after it.
_HEAD_START = 0.02

_ROUNDS = 20
_SIZE = 1 << 20

#: Seconds since 1970, or between clocks: no time that a host has is larger.
_LARGEST_TIME = 1e12

#: The directory of a check, which is in the room and nowhere else.
_INNER = "p[0-9]{1,6}"


class Pair(NamedTuple):
    """What the leader has for a check."""

    place: Place
    talk: Talk
    kind: str  # of the file system
    longest_delay: float
    tell: Tell


Check = Callable[[Pair], Finding]
Errand = Callable[[Place, Talk, Said], dict[str, object]]


def run(pair: Pair) -> Iterator[Finding]:
    """All checks between two hosts. What the peer could not do is a finding; what the leader cannot do is raised."""
    checks: dict[str, Check] = {f"{name}{_BETWEEN}": partial(_contest, name) for name in CONTESTS} | _CHECKS
    for name, check in checks.items():
        try:
            yield check(pair)._replace(check=name)
        except (PeerFailed, Garbled) as failure:
            yield Finding(name, Weight.ONE_HOST, f"failed on {pair.talk.name_of_other}: {failure}")


def serve(place: Place, talk: Talk) -> Verdict:
    """As the peer: do what the leader asks for, until it says goodbye, and with it the verdict.

    Raises Garbled for a leader that is none, and CacheError for a goodbye without a verdict. If we have no room left,
    that is raised, and the leader told.
    """
    try:
        talk.name_of_other = name_of(talk.hear())
        while True:
            talk.say(**_done(place, talk, talk.hear()))
    except Goodbye as goodbye:
        with contextlib.suppress(OSError):  # a leader that did not wait for it
            talk.say(goodbye="heard")
        return _verdict(goodbye.said)


def _done(place: Place, talk: Talk, asked: Said) -> dict[str, object]:
    """Do what is asked for; the answer."""
    try:
        errand = asked.choice("do", _ERRANDS)
        inner = place._replace(path=f"{place.path}/{asked.matching('in', _INNER)}")
        return errand(inner, talk, asked)
    except Garbled as failure:
        return {"failed": str(failure)}
    except OSError as error:
        if error.errno in FULL:
            with contextlib.suppress(OSError):
                talk.say(goodbye=explain(error))
            raise
        return {"failed": explain(error)}


def _verdict(said: Said) -> Verdict:
    text = said.remark("goodbye")
    try:
        return Verdict(said.choice("fitness", {fitness.value: fitness for fitness in Fitness}), text)
    except Garbled:
        raise CacheError(
            f"the leader has ended without a verdict: {text}", hint="see what it says itself, and start both again"
        ) from None


def _finding(weight: Weight, what: str, **figures: float | None) -> Finding:
    return Finding("", weight, what, figures)


# -- contests ----------------------------------------------------------------------------------------------------------


def _contest(name: str, pair: Pair) -> Finding:
    contest = CONTESTS[name]
    runs = []
    for compete in (_leader_first, _peer_first, _both_at_once, partial(_both_at_once, head_start=_HEAD_START)):
        place, inner = _room(pair)
        grounds = contests.grounds(place, contest, contests.NAMES)
        pair.talk.ask("contest", inner, name=name, names=contests.NAMES)
        runs.append(compete(pair, partial(contests.attempt, contest.first, grounds)))
    return contests.judge(name, runs, Weight.ONE_HOST)


def _leader_first(pair: Pair, attempt: Callable[[], str]) -> Sides:
    first = attempt()
    pair.talk.say(go=True)
    return Sides(first, _second(pair))


def _peer_first(pair: Pair, attempt: Callable[[], str]) -> Sides:
    pair.talk.say(go=True)
    second = _second(pair)
    return Sides(attempt(), second)


def _both_at_once(pair: Pair, attempt: Callable[[], str], head_start: float = 0.0) -> Sides:
    pair.talk.say(go=True)
    pair.place.clock.sleep(head_start)
    first = attempt()
    return Sides(first, _second(pair))


def _second(pair: Pair) -> str:
    """What the peer has attained, a letter for each name."""
    return pair.talk.answer().matching("second", f"[{WON}{REFUSED}{FAILED}]{{{contests.NAMES}}}")


def _take_part(place: Place, talk: Talk, asked: Said) -> dict[str, object]:
    contest = asked.choice("name", CONTESTS)
    grounds = contests.look_at(place, asked.whole("names", contests.NAMES))
    talk.say(ready=True)
    talk.hear()
    return {"second": contests.attempt(contest.second, grounds[::-1])[::-1]}


def _room(pair: Pair) -> tuple[Place, str]:
    """A new directory for a check, and its name."""
    name = f"p{len(fresh_names(pair.place))}"
    return pair.place.make(name), name


# -- what one makes, and the other sees --------------------------------------------------------------------------------


def _listing_after_create(pair: Pair) -> Finding:
    place, inner = _room(pair)
    for number in range(_ROUNDS):
        pair.talk.ask("list", inner, name="")
        place.make(f"n{number}")
        if not pair.talk.ask("list", inner, name=f"n{number}").flag("there"):
            what = f"{pair.talk.name_of_other} does not see what was made before, even after a create of its own"
            return _finding(Weight.ONE_HOST, f"{what}: living holders would be taken for dead")
    return _finding(Weight.GOOD, f"after a create of its own a host sees all names ({_ROUNDS} rounds)", rounds=_ROUNDS)


def _list(place: Place, talk: Talk, asked: Said) -> dict[str, object]:
    name = asked.text("name")
    found = fresh_names(place) if name else place.fs.names(place.path)
    return {"there": name in found}


def _delay(pair: Pair) -> Finding:
    place, inner = _room(pair)
    looked_up, listed = place.make("looked-up"), place.make("listed")
    pair.talk.ask("look", inner)
    for seen in (looked_up, listed):
        seen.make("name")
    pair.tell(f"waiting {pair.longest_delay:.0f} s at most until {pair.talk.name_of_other} sees what was made here")
    answer = pair.talk.ask("watch", inner, longest=pair.longest_delay)
    delays = {how: answer.number_if_any(how, 0.0, LONGEST_DELAY) for how in ("looked up", "listed")}
    said = ", ".join(
        f"not within {pair.longest_delay:.0f} s if {how}" if seconds is None else f"after {seconds:.2f} s if {how}"
        for how, seconds in delays.items()
    )
    figures = {f"delay_{how.replace(' ', '_')}": seconds for how, seconds in delays.items()}
    return _finding(Weight.GOOD, f"what one host makes shows on the other {said}; nothing depends on it", **figures)


def _look(place: Place, talk: Talk, asked: Said) -> dict[str, object]:
    """Remember that there is nothing."""
    is_refused(partial(place.fs.lstat, f"{place.path}/looked-up/name"), GONE)
    place.fs.names(f"{place.path}/listed")
    return {}


def _watch(place: Place, talk: Talk, asked: Said) -> dict[str, object]:
    """Look, without anything that would refresh what is remembered."""
    longest = asked.number("longest", 0.0, LONGEST_DELAY)
    began = place.clock.monotonic()
    delays: dict[str, object] = {"looked up": None, "listed": None}
    while (passed := place.clock.monotonic() - began) < longest and None in delays.values():
        if delays["looked up"] is None and not is_refused(
            partial(place.fs.lstat, f"{place.path}/looked-up/name"), GONE
        ):
            delays["looked up"] = passed
        if delays["listed"] is None and "name" in place.fs.names(f"{place.path}/listed"):
            delays["listed"] = passed
        place.clock.sleep(0.05)
    return delays


def _published(pair: Pair) -> Finding:
    """A copy appears by one rename, complete; and who has it open reads on when it is moved away."""
    place, inner = _room(pair)
    data = os.urandom(_SIZE)
    place.make("tmp").put("payload", data)
    place.move("tmp", "generation")
    pair.talk.ask("read", inner)
    place.move("generation", "trash")
    pair.talk.say(go=True)
    if pair.talk.answer().text("digest") != hashlib.sha256(data).hexdigest():
        return _finding(Weight.ONE_HOST, f"{pair.talk.name_of_other} reads something else than was published")
    return _finding(Weight.GOOD, "it is complete on the other host, and can be read on after it was moved to the trash")


def _read(place: Place, talk: Talk, asked: Said) -> dict[str, object]:
    fresh_names(place)
    fd = place.fs.open(f"{place.path}/generation/payload")
    try:
        data = place.fs.read(fd, 4096)
        talk.say(opened=True)
        talk.hear()
        while len(data) <= _SIZE and (more := place.fs.read(fd)):  # it may be a file without end
            data += more
    finally:
        place.fs.close(fd)
    return {"digest": hashlib.sha256(data).hexdigest()}


def _full_target(pair: Pair) -> Finding:
    place, inner = _room(pair)
    target = place.make("target")
    place.make("source").make("payload")
    pair.talk.ask("look at target", inner)
    target.make("payload")
    if pair.talk.ask("rename", inner).flag("refused"):
        return _finding(Weight.GOOD, "a directory that another host has just filled is not replaced")
    return _finding(Weight.ONE_HOST, "a directory that another host has just filled is replaced, and its content lost")


def _look_at_target(place: Place, talk: Talk, asked: Said) -> dict[str, object]:
    return {"empty": not place.fs.names(f"{place.path}/target")}


def _rename(place: Place, talk: Talk, asked: Said) -> dict[str, object]:
    act = partial(place.fs.rename, f"{place.path}/source", f"{place.path}/target")
    return {"refused": is_refused(act, NOT_EMPTY | {errno.EPERM})}  # EPERM: what SFTP makes of every refusal


# -- clocks ------------------------------------------------------------------------------------------------------------


def _clocks(pair: Pair) -> Finding:
    place, inner = _room(pair)
    before = place.clock.monotonic()
    ours, stamp = clock_offset(place, "leader")
    answer = pair.talk.ask("clock", inner)
    passed = place.clock.monotonic() - before
    theirs, other_stamp = (answer.number(name, -_LARGEST_TIME, _LARGEST_TIME) for name in ("offset", "stamp"))
    figures = {"offset": ours, "offset_of_peer": theirs}
    of_clients = not -1.0 <= other_stamp - stamp <= passed + 1.0
    if of_clients and pair.kind in ONE_CLOCK:
        what = f"times come from the hosts, whose clocks differ, and not from a server, as they should on {pair.kind}"
        return _finding(Weight.ONE_HOST, f"{what}: set the clocks (NTP)", **figures)
    if of_clients:
        apart = short_duration(abs(other_stamp - stamp))
        what = f"times come from the hosts, whose clocks differ by {apart}: set them (NTP)"
        return _finding(Weight.TOLD, f"{what}; leases do not depend on it", **figures)
    what = f"that of the file system is {say_offset(ours)} this host's, and {say_offset(theirs)} the other's"
    if max(abs(ours), abs(theirs)) > CLOCKS_DIFFER:
        return _finding(Weight.TOLD, f"{what}: lifetimes last longer by that; set the clocks (NTP)", **figures)
    return _finding(Weight.GOOD, what, **figures)


def _clock(place: Place, talk: Talk, asked: Said) -> dict[str, object]:
    offset, stamp = clock_offset(place, "peer")
    return {"offset": offset, "stamp": stamp}


_CHECKS: dict[str, Check] = {
    "names made by another host": _listing_after_create,
    "rename onto what another host filled": _full_target,
    "a copy published by another host": _published,
    "clocks of two hosts": _clocks,
    "visibility between hosts": _delay,
}

_ERRANDS: dict[str, Errand] = {
    "contest": _take_part,
    "list": _list,
    "look": _look,
    "watch": _watch,
    "read": _read,
    "look at target": _look_at_target,
    "rename": _rename,
    "clock": _clock,
}
