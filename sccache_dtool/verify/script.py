"""How checks are run and evaluated: by one host alone, or by two hosts that run the same steps.

What the steps of a check return on one side is the result of that side. The results of both sides are evaluated
together, and in the same way on both hosts.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from sccache_dtool.fallback import collecting
from sccache_dtool.verify.directory import LEADER, PEER, Directory
from sccache_dtool.verify.findings import Finding, Refuted, Weight, failed
from sccache_dtool.verify.session import Failed, Session, typed

Steps = Callable[[Directory], Finding]


class Check(NamedTuple):
    """What is tried, and why."""

    name: str
    harm: str  # what happens to users if it is refuted
    steps: Steps
    sides: int = 1
    alone: bool = True  # one host can try it, both sides of it with two threads
    combine: Callable[..., Finding] | None = None  # the leader's figures and the peer's

    def title(self, between: bool) -> str:
        """Its name among the findings."""
        return f"{self.name}, between hosts" if between and self.alone else self.name

    def attempt(self, act: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
        """What `act` finds; an error is a finding, too. Raises only an error that means "no space left"."""
        try:
            return act()
        except Refuted as refuted:
            what, figures = refuted.args
            return [Finding("", Weight.UNFIT, f"{what}: {self.harm}", figures)]
        except OSError as error:
            return [failed(error)]

    def evaluate(self, results: Sequence[Finding], between: bool) -> Finding:
        """What the results of all sides show. What goes wrong between hosts may still be right on one host."""
        found = max(results, key=lambda result: result.weight)
        if self.combine and found.weight is Weight.GOOD:
            combine = partial(self.combine, *(result.figures for result in results))
            (found,) = self.attempt(lambda: [combine()])
        weight = min(found.weight, Weight.ONE_HOST) if between else found.weight
        return found._replace(check=self.title(between), weight=weight)


def run_alone(checks: Sequence[Check], directory: Directory) -> Iterator[Finding]:
    """Run the checks of one host, each in a directory of its own. What the program does without is reported, too."""
    for number, check in enumerate(checks):
        if check.alone:
            with collecting() as refused:
                results = check.attempt(partial(_run_sides, check, directory, f"check-{number:02}"))
            yield check.evaluate(results, between=False)
            yield from (Finding(check.name, Weight.TOLD, str(text)) for _, text in refused.messages)


def _run_sides(check: Check, parent: Directory, name: str) -> Sequence[Finding]:
    barrier = threading.Barrier(check.sides)
    directory = replace(parent.make(name), barrier=barrier.wait)

    def play(me: str) -> Finding:
        try:
            return check.steps(replace(directory, me=me))
        except BaseException:
            barrier.abort()  # or the other side would wait for ever
            raise

    if check.sides == 1:
        return [play(LEADER)]
    with ThreadPoolExecutor(1) as pool:
        try:
            peer = pool.submit(play, PEER)
        except RuntimeError as error:  # the system gives no more threads
            raise OSError(errno.EAGAIN, str(error)) from error
        try:
            return play(LEADER), peer.result()
        except threading.BrokenBarrierError:
            peer.result()  # raises what went wrong there
            raise


def run_with(session: Session, checks: Sequence[Check], findings: list[Finding]) -> None:
    """Run the checks between hosts, add what is found on this side, and keep this host's result file up to date.

    Raises Ended if the other host has finished its script.
    """
    directory = replace(session.directory, me=session.me, barrier=session.barrier, is_alone=False)

    def run(check: Check, name: str) -> Sequence[Finding]:
        directory.step(LEADER, partial(directory.make, name))
        return [check.steps(directory.at(name))]

    session.barrier()
    for number, check in enumerate(check for check in checks if check.sides > 1):
        session.next_check()
        (found,) = check.attempt(partial(run, check, f"check-{number:02}"))
        findings.append(found._replace(check=check.title(between=True)))
        session.publish(encode(directory.kind, findings))


def evaluate(
    checks: Sequence[Check], hosts: Sequence[str], results: Sequence[Sequence[Finding]], is_complete: bool
) -> Iterator[Finding]:
    """What the results of two hosts show. `is_complete`: both have finished, so that each check must be there."""
    sides = [(host, {one.check: one for one in result}) for host, result in zip(hosts, results, strict=True)]
    for check in (check for check in checks if check.sides > 1):
        title = check.title(between=True)
        found = [(host, side[title]) for host, side in sides if title in side]
        if len(found) < len(sides) and not is_complete:
            return
        bad = [one._replace(what=f"on {host}: {one.what}") for host, one in found if one.weight >= Weight.ONE_HOST]
        try:
            yield check.evaluate(bad or [side[title] for _, side in sides], between=True)
        except (LookupError, TypeError, ValueError, ArithmeticError):
            what = f"the results of {' and '.join(hosts)} do not match: do both run the same release?"
            yield Finding(title, Weight.ONE_HOST, what)


def encode(kind: str, findings: Sequence[Finding]) -> dict[str, object]:
    """A host's result file: the type of its file system, and what its side of each check has found."""
    return {"kind": kind, "findings": [{**one._asdict(), "figures": dict(one.figures)} for one in findings]}


def decode(host: str, document: object) -> tuple[str, list[Finding]]:
    """A result file that another host has written. Raises Failed if its fields are of other types."""
    fields, findings = typed(host, document, {"kind": str, "findings": list}), list[Finding]()
    for one in fields["findings"]:
        finding = typed(host, one, {"check": str, "weight": int, "what": str, "figures": dict})
        figures = typed(host, finding["figures"], dict.fromkeys(finding["figures"], str | int | float | None))
        if finding["weight"] not in list(Weight):
            raise Failed(f"cannot read what {host} wrote (weight): does it run the same release?")
        findings.append(Finding(finding["check"], Weight(finding["weight"]), finding["what"], figures))
    return fields["kind"], findings
