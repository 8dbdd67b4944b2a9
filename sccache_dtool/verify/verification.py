"""A whole verification: what the mount tells, what one host can try, what two can, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.mounts import mount_of
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import FULL, CacheError, TimedOut, explain
from sccache_dtool.liveness.caller import host_name
from sccache_dtool.liveness.process import Proc
from sccache_dtool.verify import contests, kinds, meeting, pair, probes
from sccache_dtool.verify.findings import Finding, Place, Report, Tell, Verdict, Weight
from sccache_dtool.verify.meeting import Host
from sccache_dtool.verify.pair import Pair
from sccache_dtool.verify.refusals import broken_off, cannot_be_used
from sccache_dtool.verify.role import Role
from sccache_dtool.verify.said import Garbled
from sccache_dtool.verify.talk import Goodbye, Talk

TWO_HOSTS = "two hosts"


def verify(
    fs: FileSystem,
    directory: str,
    role: Role,
    tell: Tell,
    *,
    clock: Clock | None = None,
    proc: Proc | None = None,
    mounts: str = "/proc/self/mountinfo",
    longest_delay: float = pair.LONGEST_DELAY,
) -> Report:
    """Try out the file system of `directory`, with the peer that comes within the role's time.

    `tell`: told whom we wait for. `mounts` and what follows `tell` otherwise are for tests. What is made is removed;
    nothing else in `directory` is touched. Raises UsageError if it is no directory that we may write in, and NoSpace if
    the file system is full, which says nothing of it.
    """
    place = _place(fs, directory, clock)
    mount = mount_of(directory, mounts)
    kind = printable(mount.type) if mount else "of unknown type"
    me = _this_host(place, proc or Proc())
    findings = list(kinds.judge(mount))
    alone = Report(directory, kind, (me.name,), independent=False, findings=tuple(findings))
    if _is_settled(findings):
        return alone
    try:
        with meeting.room(place, tell) as room:
            findings += chain(probes.run(room), contests.run_here(room))
            met = _meet(place, room, me, role, tell)
            if isinstance(met, Finding):
                return alone._replace(findings=(*findings, met))
            talk, peer = met
            if all(finding.weight < Weight.UNTRIED for finding in findings):
                findings += _of_two(Pair(room, talk, mount.type if mount else "", longest_delay, tell))
            report = Report(directory, kind, (me.name, peer.name), me.is_independent_of(peer), tuple(findings))
            talk.part(report.verdict[:600], fitness=report.fitness)
    except OSError as error:
        raise broken_off(directory, error) from error
    return report


_ALONE = "no peer took part: start `sc-dtool doctor --verify-filesystem DIR --peer` on another host first"


def assist(
    fs: FileSystem,
    directory: str,
    role: Role,
    tell: Tell,
    *,
    clock: Clock | None = None,
    proc: Proc | None = None,
    mounts: str = "/proc/self/mountinfo",
) -> Verdict:
    """As the peer of somebody's `verify`: the verdict. Raises TimedOut if nobody comes, or goes on."""
    place = _place(fs, directory, clock)
    mount = mount_of(directory, mounts)
    findings = tuple(kinds.judge(mount))
    if _is_settled(findings):
        refused = Report(directory, "", (host_name(),), independent=False, findings=findings)
        return Verdict(refused.fitness, refused.verdict)
    try:
        with meeting.join(place, _this_host(place, proc or Proc()), role, tell) as (room, talk):
            return pair.serve(room, talk)
    except OSError as error:
        raise broken_off(directory, error) from error
    except Garbled as error:
        raise CacheError(
            f"the other host is not a leader: {error}", hint="start both again, with the same release"
        ) from error


def _is_settled(findings: Iterable[Finding]) -> bool:
    """Whether what the mount tells is enough: then nothing is even tried."""
    return any(finding.weight is Weight.UNFIT for finding in findings)


#: How two can fail to come to an end, other than by an error of the file system.
_BREAKS = (TimedOut, Goodbye, Garbled)


def _meet(place: Place, room: Place, me: Host, role: Role, tell: Tell) -> tuple[Talk, Host] | Finding:
    """The peer, and the talk with it; or why there is none."""
    try:
        found = meeting.find_peer(place, room, me, role, tell)
    except OSError as error:
        if error.errno in FULL:
            raise
        return _broken(explain(error))
    except _BREAKS as error:
        return _broken(str(error))
    return Finding(TWO_HOSTS, Weight.TOLD, _ALONE) if found is None else found


def _of_two(both: Pair) -> Iterator[Finding]:
    """What two find; if one of them falls silent or cannot go on, that is said, and the rest is left out.

    If it is we who have no room left, the other hears of it, and the error is raised.
    """
    try:
        yield from pair.run(both)
    except OSError as error:
        if error.errno in FULL:
            both.talk.part(explain(error))
            raise
        yield _broken(explain(error))
    except _BREAKS as error:
        yield _broken(str(error))


def _broken(reason: str) -> Finding:
    return Finding(TWO_HOSTS, Weight.ONE_HOST, f"broken off: {reason}")


def _place(fs: FileSystem, directory: str, clock: Clock | None) -> Place:
    try:
        fs.names(directory)
        return Place(fs, clock or Clock(), directory, fs.is_shared(directory))
    except OSError as error:
        raise cannot_be_used(directory, error) from error


def _this_host(place: Place, proc: Proc) -> Host:
    here = proc.here()
    return Host(host_name(), here[0] if here else "", place.fs.lstat(place.path).st_dev)
