"""Races that exactly one side may win: what every lease and every eviction depends on.

Here two threads of one host race, and meet at every name. `script` lets two hosts race, which cannot.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from sccache_dtool.errors import GONE, NOT_EMPTY
from sccache_dtool.verify.directory import Directory
from sccache_dtool.verify.findings import Finding, Weight, failed, refusal

Act = Callable[[Directory], object]

#: The outcome of one attempt, a letter in the result: won; refused, as it should be; failed otherwise.
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


def _contest_for_one_name(create: Act) -> Contest:
    return Contest(lambda at: None, create, create, "two would hold what one can hold")


CONTESTS: dict[str, Contest] = {
    "eviction against a new lease": Contest(
        lambda at: at.make("use"),
        lambda at: at.fs.rmdir(f"{at.path}/use"),
        lambda at: at.fs.put_record("a lease", f"{at.path}/use/lease"),
        "data would be deleted under its reader",
    ),
    "two who make one record": _contest_for_one_name(lambda at: at.fs.put_record("a record", f"{at.path}/name")),
    "two who make one directory": _contest_for_one_name(lambda at: at.fs.mkdir(f"{at.path}/name")),
    "two who make one file": _contest_for_one_name(lambda at: at.fs.close(at.fs.create(f"{at.path}/name"))),
    "a heartbeat against a revocation": Contest(
        lambda at: at.record("a holder", "holder.0"),
        lambda at: at.fs.rename(f"{at.path}/holder.0", f"{at.path}/holder.1"),
        lambda at: at.fs.rename(f"{at.path}/holder.0", f"{at.path}/gone"),
        "leases of the living would be ended",
    ),
    "two who publish under one name": Contest(
        lambda at: [at.make(name).make("payload") for name in ("mine", "yours")],
        lambda at: at.fs.rename(f"{at.path}/mine", f"{at.path}/published"),
        lambda at: at.fs.rename(f"{at.path}/yours", f"{at.path}/published"),
        "a copy would be replaced under its reader",
    ),
}


def names(ground: Directory) -> list[Directory]:
    """A directory for each name."""
    return [ground.at(f"r{number}") for number in range(NAMES)]


def prepare(directory: Directory, name: str, contest: Contest) -> Directory:
    """A new ground, with what the contest is about for each name."""
    ground = directory.make(name)
    for number in range(NAMES):
        contest.prepare(ground.make(f"r{number}"))
    return ground


def look_at(ground: Directory) -> None:
    """List what the other side has prepared, so that this host's caches have it."""
    for one in names(ground):
        for entry in one.fs.entries(one.path):
            if entry.is_dir:
                one.fs.names(f"{one.path}/{entry.name}")


def attempt(act: Act, ground: Directory) -> str:
    """Attempt an act; the letter of its outcome. An error that is not an answer is raised."""
    error = refusal(partial(act, ground))
    if error is None:
        return WON
    return REFUSED if error.errno in GONE | NOT_EMPTY else FAILED


def judge(name: str, first: str, second: str, weight: Weight) -> Finding:
    """What the outcomes of both sides, name by name, show; `weight`: of a name that both have won."""
    pairs = list(zip(first, second, strict=True))
    both = pairs.count((WON, WON))
    nobody = sum(WON not in pair for pair in pairs)
    broken = sum(FAILED in pair and WON not in pair for pair in pairs)
    unusual = pairs.count((WON, FAILED)) + pairs.count((FAILED, WON))
    won = f"{pairs.count((WON, REFUSED))} to {pairs.count((REFUSED, WON))}"
    figures = {"rounds": len(pairs), "both": both, "nobody": nobody, "failed": broken}
    if both:
        what = f"both won {both} of {len(pairs)} rounds: {CONTESTS[name].harm}"
    elif broken:
        what = f"{broken} of {len(pairs)} rounds failed"
    elif unusual:
        weight = Weight.TOLD
        what = f"one winner in each of {len(pairs)} rounds; the other was refused for an unusual reason in {unusual}"
    elif nobody:
        weight = Weight.TOLD
        what = f"one winner at most in {len(pairs)} rounds, and none in {nobody}: replies were lost, which is harmless"
    else:
        weight, what = Weight.GOOD, f"one winner in each of {len(pairs)} rounds ({won})"
    return Finding(name, weight, what, figures)


def run_here(directory: Directory) -> Iterator[Finding]:
    """All contests, between two threads of this process."""
    for number, (name, contest) in enumerate(CONTESTS.items()):
        try:
            runs = [_between_threads(prepare(directory, f"c{number}-{run}", contest), contest) for run in range(_RUNS)]
        except OSError as error:
            yield failed(name, error)
        else:
            first, second = map("".join, zip(*runs, strict=True))
            yield judge(name, first, second, Weight.UNFIT)


def _between_threads(ground: Directory, contest: Contest) -> tuple[str, str]:
    barrier = threading.Barrier(2)

    def side(act: Act) -> str:
        outcomes = ""
        try:
            for one in names(ground):
                barrier.wait()
                outcomes += attempt(act, one)
        except BaseException:
            barrier.abort()  # or the other side would wait for ever
            raise
        return outcomes

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
        return first, second.result()
