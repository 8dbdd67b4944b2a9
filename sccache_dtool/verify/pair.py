"""What only two hosts can try. Of each check one half is the leader's, the other the peer's, who does as asked."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from sccache_dtool.errors import GONE, NOT_EMPTY, explain
from sccache_dtool.liveness.lifetime import ONE_CLOCK
from sccache_dtool.units import short_duration
from sccache_dtool.verify import contests
from sccache_dtool.verify.contests import CONTESTS, Sides
from sccache_dtool.verify.findings import Finding, Place, Tell, Weight
from sccache_dtool.verify.probes import CLOCKS_DIFFER, clock_offset, is_refused, say_offset
from sccache_dtool.verify.talk import Goodbye, PeerFailed, Said, Talk, fresh_names

#: Seconds for which a host is given time to see what the other has made. NFS takes up to 60 by default.
LONGEST_DELAY = 75.0

#: What the contests of one host are called, too, and this.
_BETWEEN = ", between hosts"

#: Seconds by which the leader starts later in one of the runs: the peer hears of the start a little after it.
_HEAD_START = 0.02

_ROUNDS = 20
_SIZE = 1 << 20


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
        except PeerFailed as failure:
            yield Finding(name, Weight.ONE_HOST, f"failed on {pair.talk.name_of_other}: {failure}")


def serve(place: Place, talk: Talk) -> Said:
    """As the peer: do what the leader asks for, until it says goodbye; what it says then."""
    try:
        while True:
            asked = talk.hear()
            try:
                answer = _errand(asked)(_entered(place, str(asked.get("in"))), talk, asked)
            except OSError as error:
                answer = {"failed": explain(error)}
            talk.say(**answer)
    except Goodbye as goodbye:
        with contextlib.suppress(OSError):  # a leader that did not wait for it
            talk.say(goodbye="heard")
        return goodbye.said


def _errand(asked: Said) -> Errand:
    """What is asked for; of another release it may be something that we do not know."""
    errand = _ERRANDS.get(str(asked.get("do")))
    if errand is None:
        raise OSError(errno.EOPNOTSUPP, "does not know what it is asked for: another release?")
    return errand


def _entered(place: Place, name: str) -> Place:
    """The directory of a check, which is in the room and nowhere else, whatever somebody has written."""
    if re.fullmatch(r"p[0-9]+", name) is None:
        raise OSError(errno.EINVAL, "not the directory of a check", name)
    return place._replace(path=f"{place.path}/{name}")


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
    return Sides(first, str(pair.talk.answer()["second"]))


def _peer_first(pair: Pair, attempt: Callable[[], str]) -> Sides:
    pair.talk.say(go=True)
    second = str(pair.talk.answer()["second"])
    return Sides(attempt(), second)


def _both_at_once(pair: Pair, attempt: Callable[[], str], head_start: float = 0.0) -> Sides:
    pair.talk.say(go=True)
    pair.place.clock.sleep(head_start)
    first = attempt()
    return Sides(first, str(pair.talk.answer()["second"]))


def _take_part(place: Place, talk: Talk, asked: Said) -> dict[str, object]:
    grounds = contests.look_at(place, int(asked["names"]))
    talk.say(ready=True)
    talk.hear()
    return {"second": contests.attempt(CONTESTS[asked["name"]].second, grounds[::-1])[::-1]}


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
        if not pair.talk.ask("list", inner, name=f"n{number}")["there"]:
            what = f"{pair.talk.name_of_other} does not see what was made before, even after a create of its own"
            return _finding(Weight.ONE_HOST, f"{what}: living holders would be taken for dead")
    return _finding(Weight.GOOD, f"after a create of its own a host sees all names ({_ROUNDS} rounds)", rounds=_ROUNDS)


def _list(place: Place, talk: Talk, asked: Said) -> dict[str, object]:
    found = fresh_names(place) if asked["name"] else place.fs.names(place.path)
    return {"there": asked["name"] in found}


def _delay(pair: Pair) -> Finding:
    place, inner = _room(pair)
    looked_up, listed = place.make("looked-up"), place.make("listed")
    pair.talk.ask("look", inner)
    for seen in (looked_up, listed):
        seen.make("name")
    pair.tell(f"waiting {pair.longest_delay:.0f} s at most until {pair.talk.name_of_other} sees what was made here")
    answer = pair.talk.ask("watch", inner, longest=pair.longest_delay)
    delays = {how: answer[how] for how in ("looked up", "listed")}
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
    began = place.clock.monotonic()
    delays: dict[str, object] = {"looked up": None, "listed": None}
    while (passed := place.clock.monotonic() - began) < float(asked["longest"]) and None in delays.values():
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
    if pair.talk.answer()["digest"] != hashlib.sha256(data).hexdigest():
        return _finding(Weight.ONE_HOST, f"{pair.talk.name_of_other} reads something else than was published")
    return _finding(Weight.GOOD, "it is complete on the other host, and can be read on after it was moved to the trash")


def _read(place: Place, talk: Talk, asked: Said) -> dict[str, object]:
    fresh_names(place)
    fd = place.fs.open(f"{place.path}/generation/payload")
    try:
        digest = hashlib.sha256(place.fs.read(fd, 4096))
        talk.say(opened=True)
        talk.hear()
        for data in iter(partial(place.fs.read, fd), b""):
            digest.update(data)
    finally:
        place.fs.close(fd)
    return {"digest": digest.hexdigest()}


def _full_target(pair: Pair) -> Finding:
    place, inner = _room(pair)
    target = place.make("target")
    place.make("source").make("payload")
    pair.talk.ask("look at target", inner)
    target.make("payload")
    if pair.talk.ask("rename", inner)["refused"]:
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
    theirs, other_stamp = float(answer["offset"]), float(answer["stamp"])
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
