"""A whole verification: what the mount tells, what one host can try, what two can, and the verdict.

Each side runs the steps of the checks. What they return is the result of that side. The results of both sides are
evaluated together, and in the same way on both hosts.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from sccache_dtool import __version__
from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.mounts import mount_of
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import FULL, CacheError
from sccache_dtool.fallback import collecting
from sccache_dtool.liveness.caller import host_name
from sccache_dtool.liveness.process import Proc
from sccache_dtool.verify import kinds
from sccache_dtool.verify.checks import CHECKS, Check
from sccache_dtool.verify.directory import LEADER, LONGEST_DELAY, PEER, Directory, scratch
from sccache_dtool.verify.findings import Announce, Finding, Report, Weight, broken_off, cannot_be_used, reason
from sccache_dtool.verify.session import Result, Session, begin_as_leader, join_as_peer

TWO_HOSTS = "two hosts"

_ALONE = "no peer took part: start `sc-dtool doctor --verify-filesystem DIR --peer` on another host first"


class Role(NamedTuple):
    """Which of the two hosts this is, in which meeting, and how many seconds it waits for the other."""

    is_peer: bool
    meeting: str
    wait: float


def verify(
    fs: FileSystem,
    directory: str,
    role: Role,
    announce: Announce,
    *,
    clock: Clock | None = None,
    proc: Proc | None = None,
    mounts: str = "/proc/self/mountinfo",
    longest_delay: float = LONGEST_DELAY,
) -> Report:
    """Try out the file system of `directory`, with the other host if it comes within the role's time.

    Both hosts have the same verdict, from the same findings. What is made is removed; nothing else in `directory` is
    touched. `announce`: told what is waited for. `clock` and what follows are for tests.

    Raises UsageError if `directory` is not one in which this user may write, and NoSpace if the file system is full,
    which says nothing about it. The peer also raises TimedOut and CacheError, if the leader does not come, or does not
    reach a verdict; the leader reports that as a finding.
    """
    try:
        fs.names(directory)
        is_shared, device = fs.is_shared(directory), str(fs.lstat(directory).st_dev)
    except OSError as error:
        raise cannot_be_used(directory, error) from error
    mount, here = mount_of(directory, mounts), (proc or Proc()).here()
    kind, boot = printable(mount.type) if mount else "of unknown type", here[0] if here else ""
    own = Result(host_name(), boot, device, __version__, role.meeting, kind, [*kinds.judge(mount)], [])
    if any(one.weight is Weight.UNFIT for one in own.alone):
        return _judge(directory, own)  # what the mount tells is enough: nothing is even tried
    parent = Directory(fs, clock or Clock(), directory, is_shared, kind, announce, longest_delay)
    try:
        with scratch(parent) as place:
            if role.is_peer:
                return _of_two(directory, join_as_peer(place, own, role.wait))
            own.alone.extend(_run_alone(place))
        try:
            session = begin_as_leader(parent, own, role.wait)
        except OSError as error:
            return _judge(directory, own).plus(_broken(error))
        if session:
            return _of_two(directory, session)
        return _judge(directory, own).plus(Finding(TWO_HOSTS, Weight.TOLD, _ALONE))
    except OSError as error:
        raise broken_off(directory, error) from error


def _of_two(directory: str, session: Session) -> Report:
    """Run the checks with the other host; the report that follows from the results of both.

    If the other host falls silent or cannot go on, the leader reports that, after what was found until then. What this
    host has no room for is raised, and the other host is told.
    """
    is_leader, other, broken = session.me == LEADER, None, list[Finding]()
    with session:
        try:
            session.barrier()
            other = session.read_result()
            if (session.own if is_leader else other).is_worth_trying:
                _run_with(session)
            session.next_check()
            session.barrier()
            other = session.read_result()
        except (OSError, CacheError) as error:
            if not is_leader:
                raise
            session.end(reason(error))
            broken.append(_broken(error))
            with contextlib.suppress(OSError, CacheError):
                other = other and session.read_result()
        if is_leader or not other:
            return _judge(directory, session.own, other, is_complete=not broken).plus(*broken)
        return _judge(directory, other, session.own)


def _broken(error: Exception) -> Finding:
    """What it means for the leader that two hosts did not reach the end. Raises an error that means "no space left"."""
    if isinstance(error, OSError) and error.errno in FULL:
        raise error
    return Finding(TWO_HOSTS, Weight.ONE_HOST, f"broken off: {reason(error)}")


def _judge(directory: str, leader: Result, peer: Result | None = None, *, is_complete: bool = True) -> Report:
    """The report that follows from the results, in the same way on both hosts."""
    if not peer:
        return Report(directory, leader.kind, (leader.host,), independent=False, findings=(*leader.alone,))
    of_peer = (one.on(peer.host) for one in peer.alone if one.weight >= Weight.ONE_HOST)
    between = evaluate(CHECKS, (leader, peer), is_complete) if leader.is_worth_trying else ()
    independent = (leader.boot, leader.device) != (peer.boot, peer.device)
    return Report(directory, leader.kind, (leader.host, peer.host), independent, (*leader.alone, *of_peer, *between))


def _run_alone(directory: Directory) -> Iterator[Finding]:
    """Run the checks of one host, each in a directory of its own. What the program does without is reported, too."""
    for number, check in enumerate(CHECKS):
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


def _run_with(session: Session) -> None:
    """Run the checks between hosts, and keep this host's result file up to date with what its side finds."""
    directory = replace(session.directory, me=session.me, barrier=session.barrier, is_alone=False)

    def run(check: Check, name: str) -> Sequence[Finding]:
        directory.step(LEADER, partial(directory.make, name))
        return [check.steps(directory.at(name))]

    for number, check in enumerate(check for check in CHECKS if check.sides > 1):
        session.next_check()
        (found,) = check.attempt(partial(run, check, f"check-{number:02}"))
        session.own.between.append(found._replace(check=check.title(between=True)))
        session.publish()


def evaluate(checks: Sequence[Check], results: Sequence[Result], is_complete: bool) -> Iterator[Finding]:
    """What the results of two hosts show. `is_complete`: both have finished, so that each check must be there."""
    sides = [(result.host, {one.check: one for one in result.between}) for result in results]
    for check in (check for check in checks if check.sides > 1):
        title = check.title(between=True)
        found = [(host, side[title]) for host, side in sides if title in side]
        if len(found) < len(sides) and not is_complete:
            return
        bad = [one.on(host) for host, one in found if one.weight >= Weight.ONE_HOST]
        try:
            yield check.evaluate(bad or [side[title] for _, side in sides], between=True)
        except (LookupError, TypeError, ValueError, ArithmeticError):
            hosts = " and ".join(result.host for result in results)
            what = f"the results of {hosts} do not match: do both run the same release?"
            yield Finding(title, Weight.ONE_HOST, what)
