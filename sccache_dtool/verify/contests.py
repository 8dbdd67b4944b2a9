"""Races of which exactly one side may win: what every lease and every eviction depends on.

Two hosts first go one after the other, each with what it remembers of directories that the other has changed; then both
at once through the same names, one of them backwards, so that they meet on the way.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from sccache_dtool.errors import GONE, NOT_EMPTY
from sccache_dtool.verify.findings import Finding, Place, Weight
from sccache_dtool.verify.refusals import failed, refusal

Act = Callable[[Place], object]

#: Of one side, letter by letter: who won; who was refused, as it should be; what went wrong otherwise.
WON, REFUSED, FAILED = "1", "0", "x"

#: Names in one run of a contest.
NAMES = 30

#: Runs of a contest between two threads.
_RUNS = 4


class Contest(NamedTuple):
    """What both sides attempt with each name, and what it would cost if both could."""

    prepare: Act
    first: Act
    second: Act
    harm: str


def _nothing(place: Place) -> None:
    """There is nothing to prepare."""


def _gate(place: Place) -> None:
    place.make("use")


def _close(place: Place) -> None:
    place.fs.rmdir(f"{place.path}/use")


def _lease(place: Place) -> None:
    place.fs.put_record("a lease", f"{place.path}/use/lease")


def _record(place: Place) -> None:
    place.fs.put_record("a record", f"{place.path}/name")


def _directory(place: Place) -> None:
    place.fs.mkdir(f"{place.path}/name")


def _file(place: Place) -> None:
    place.fs.close(place.fs.create(f"{place.path}/name"))


def _holder(place: Place) -> None:
    place.record("a holder", "holder.0")


def _beat(place: Place) -> None:
    place.fs.rename(f"{place.path}/holder.0", f"{place.path}/holder.1")


def _revoke(place: Place) -> None:
    place.fs.rename(f"{place.path}/holder.0", f"{place.path}/gone")


def _two_copies(place: Place) -> None:
    for name in ("mine", "yours"):
        place.make(name).make("payload")


def _publish(name: str, place: Place) -> None:
    place.fs.rename(f"{place.path}/{name}", f"{place.path}/published")


CONTESTS: dict[str, Contest] = {
    "eviction against a new lease": Contest(_gate, _close, _lease, "data would be deleted under its reader"),
    "two who make one record": Contest(_nothing, _record, _record, "two would hold what one can hold"),
    "two who make one directory": Contest(_nothing, _directory, _directory, "two would hold what one can hold"),
    "two who make one file": Contest(_nothing, _file, _file, "two would hold what one can hold"),
    "a heartbeat against a revocation": Contest(_holder, _beat, _revoke, "leases of the living would be ended"),
    "two who publish under one name": Contest(
        _two_copies, partial(_publish, "mine"), partial(_publish, "yours"), "a copy would be replaced under its reader"
    ),
}


class Sides(NamedTuple):
    """What each side attained, a letter for each name."""

    first: str
    second: str


def grounds(place: Place, contest: Contest, names: int) -> list[Place]:
    """A place for each name, prepared."""
    made = [place.make(f"r{number}") for number in range(names)]
    for ground in made:
        contest.prepare(ground)
    return made


def look_at(place: Place, names: int) -> list[Place]:
    """The places that the other side has prepared; all are looked at, so that they are remembered."""
    found = [place._replace(path=f"{place.path}/r{number}") for number in range(names)]
    for ground in found:
        for entry in ground.fs.entries(ground.path):
            if entry.is_dir:
                ground.fs.names(f"{ground.path}/{entry.name}")
    return found


def attempt(act: Act, grounds: list[Place]) -> str:
    """Try an act everywhere; a letter for each. An error that is no answer is raised."""
    return "".join(_attempt(act, ground) for ground in grounds)


def _attempt(act: Act, ground: Place) -> str:
    error = refusal(partial(act, ground))
    if error is None:
        return WON
    return REFUSED if error.errno in GONE | NOT_EMPTY else FAILED


def judge(name: str, runs: list[Sides], weight: Weight) -> Finding:
    """What the runs of a contest show; `weight`: of a name that both have won."""
    pairs = [pair for sides in runs for pair in zip(sides.first, sides.second, strict=True)]
    both = pairs.count((WON, WON))
    nobody = sum(WON not in pair for pair in pairs)
    broken = sum(FAILED in pair and WON not in pair for pair in pairs)
    unusual = pairs.count((WON, FAILED)) + pairs.count((FAILED, WON))
    won = f"{pairs.count((WON, REFUSED))} to {pairs.count((REFUSED, WON))}"
    figures = {"rounds": len(pairs), "both": both, "nobody": nobody, "failed": broken}
    if both:
        what = f"both won {both} of {len(pairs)} rounds: {CONTESTS[name].harm}"
        return Finding(name, weight, what, figures)
    if broken:
        return Finding(name, weight, f"{broken} of {len(pairs)} rounds failed", figures)
    if unusual:
        what = f"one winner in each of {len(pairs)} rounds; the other was refused for an unusual reason in {unusual}"
        return Finding(name, Weight.TOLD, what, figures)
    if nobody:
        what = f"one winner at most in {len(pairs)} rounds, and none in {nobody}: replies were lost, which is harmless"
        return Finding(name, Weight.TOLD, what, figures)
    return Finding(name, Weight.GOOD, f"one winner in each of {len(pairs)} rounds ({won})", figures)


def run_here(place: Place) -> Iterator[Finding]:
    """All contests, between two threads of this process."""
    for number, (name, contest) in enumerate(CONTESTS.items()):
        try:
            runs = [_between_threads(place.make(f"c{number}-{run}"), contest) for run in range(_RUNS)]
        except OSError as error:
            yield failed(name, error)
        else:
            yield judge(name, runs, Weight.UNFIT)


def _between_threads(place: Place, contest: Contest) -> Sides:
    """Threads can meet at every name, which two hosts cannot."""
    ground = grounds(place, contest, NAMES)
    met = threading.Barrier(2)

    def together(act: Act, ground: Place) -> str:
        met.wait()
        return _attempt(act, ground)

    def side(act: Act) -> str:
        try:
            return "".join(together(act, one) for one in ground)
        except BaseException:
            met.abort()  # or the other side would wait for ever
            raise

    with ThreadPoolExecutor(1) as pool:
        try:
            second = pool.submit(side, contest.second)
        except RuntimeError as error:  # the system gives no more threads
            raise OSError(errno.EAGAIN, str(error)) from error
        try:
            first = side(contest.first)
        except threading.BrokenBarrierError:
            second.result()  # raises what went wrong there
            raise
        return Sides(first, second.result())
