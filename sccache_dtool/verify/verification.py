"""A whole verification: what the mount tells, what one host can try, what two can, and the verdict."""

from __future__ import annotations

import contextlib

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.mounts import mount_of
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import FULL, CacheError, TimedOut, explain
from sccache_dtool.liveness.caller import host_name
from sccache_dtool.liveness.process import Proc
from sccache_dtool.verify import contests, kinds, meeting, probes, script
from sccache_dtool.verify.directory import Directory, scratch
from sccache_dtool.verify.findings import Finding, Report, Tell, Weight, broken_off, cannot_be_used
from sccache_dtool.verify.meeting import Part, Role
from sccache_dtool.verify.session import LEADER, LONGEST_NAME, Failed, Fields, Host, Session

TWO_HOSTS = "two hosts"

_ALONE = "no peer took part: start `sc-dtool doctor --verify-filesystem DIR --peer` on another host first"


def verify(
    fs: FileSystem,
    directory: str,
    role: Role,
    tell: Tell,
    *,
    clock: Clock | None = None,
    proc: Proc | None = None,
    mounts: str = "/proc/self/mountinfo",
    longest_delay: float = script.LONGEST_DELAY,
) -> Report:
    """Try out the file system of `directory`, with the other host if it comes within the role's time.

    Both hosts have the same verdict. The leader's report has all findings, the peer's those of two hosts and the
    heaviest of the leader's own. What is made is removed; nothing else in `directory` is touched. `tell`: told what is
    waited for. `mounts` and what follows `tell` otherwise are for tests.

    Raises UsageError if `directory` is not one in which this user may write, and NoSpace if the file system is full,
    which says nothing about it. The peer also raises TimedOut and CacheError, if the leader does not come, or does not
    reach a verdict; the leader reports that as a finding.
    """
    parent = _directory(fs, directory, clock)
    mount = mount_of(directory, mounts)
    kind = printable(mount.type) if mount else "of unknown type"
    alone = Report(directory, kind, (host_name(),), independent=False, findings=tuple(kinds.judge(mount)))
    if any(finding.weight is Weight.UNFIT for finding in alone.findings):
        return alone  # what the mount tells is enough: nothing is even tried
    here = (proc or Proc()).here()
    me = Host(host_name()[:LONGEST_NAME], here[0] if here else "", str(fs.lstat(directory).st_dev))
    try:
        if role.part is Part.PEER:
            with meeting.join(parent, me, role, tell) as session:
                return _of_two(session, alone, me, longest_delay, tell)
        with scratch(parent, tell) as own:
            alone = alone.plus(*probes.run(own), *contests.run_here(own))
        try:
            with meeting.lead(parent, me, role, tell) as found:
                if found:
                    return _of_two(found, alone, me, longest_delay, tell)
                return alone.plus(Finding(TWO_HOSTS, Weight.TOLD, _ALONE))
        except (OSError, TimedOut) as error:
            return alone.plus(_broken(error))
    except OSError as error:
        raise broken_off(directory, error) from error
    except Failed as error:
        hint = "start both again, with the same release"
        raise CacheError(f"the other host is not a leader: {error}", hint=hint) from error


def _of_two(session: Session, alone: Report, me: Host, longest_delay: float, tell: Tell) -> Report:
    """Run the script with the other host; the report that follows from the results of both.

    If the other host falls silent or cannot go on, the leader reports that, after what was found until then. What this
    host has no room for is raised, and the other host is told.
    """
    of_me, report = alone.heaviest, alone
    result: dict[str, object] = {"kind": alone.kind, "check": of_me.check, "weight": of_me.weight, "what": of_me.what}
    result["checks"] = {}
    with session:
        try:
            hosts = (me, session.meet()) if session.me == LEADER else (session.meet(), me)
            independent = hosts[0][1:] != hosts[1][1:]
            report = alone._replace(hosts=tuple(host.name for host in hosts), independent=independent)
            if session.me != LEADER or of_me.weight < Weight.UNTRIED:
                script.run(session, result, longest_delay, tell)
            session.publish(result)
            session.end()
            session.wait_for_end()
            return _judged(report, session, Fields(me.name, result), is_complete=True)
        except (OSError, TimedOut, Failed) as error:
            session.end(explain(error) if isinstance(error, OSError) else str(error))
            if session.me != LEADER:
                raise
            broken = _broken(error)
        with contextlib.suppress(OSError, Failed):
            report = _judged(report, session, Fields(me.name, result), is_complete=False)
        return report.plus(broken)


def _broken(error: Exception) -> Finding:
    """What it means for the leader that two hosts did not reach the end. That there is no room is raised."""
    if isinstance(error, OSError) and error.errno in FULL:
        raise error
    reason = explain(error) if isinstance(error, OSError) else str(error)
    return Finding(TWO_HOSTS, Weight.ONE_HOST, f"broken off: {reason}")


def _judged(report: Report, session: Session, own: Fields, *, is_complete: bool) -> Report:
    """The report with what the results of both hosts show, which both hosts evaluate in the same way."""
    other = session.result()
    leader, peer = (own, other) if session.me == LEADER else (other, own)
    of_leader = _heaviest(leader)
    if session.me != LEADER:
        report = report._replace(kind=leader.text("kind"), findings=(of_leader,))
    if is_complete and (of_peer := _heaviest(peer)).weight >= Weight.ONE_HOST:
        report = report.plus(of_peer._replace(what=f"on {peer.host}: {of_peer.what}"))
    if of_leader.weight < Weight.UNTRIED:
        report = report.plus(*script.judge(leader, peer, report.kind, is_complete=is_complete))
    return report


def _heaviest(result: Fields) -> Finding:
    """The heaviest finding that a host has made alone."""
    return Finding(result.text("check"), Weight(int(result.number("weight", 0, max(Weight)))), result.text("what"))


def _directory(fs: FileSystem, directory: str, clock: Clock | None) -> Directory:
    try:
        fs.names(directory)
        return Directory(fs, clock or Clock(), directory, fs.is_shared(directory))
    except OSError as error:
        raise cannot_be_used(directory, error) from error
