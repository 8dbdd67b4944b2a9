"""A whole verification: what the mount tells, what one host can try, what two can, and the verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from sccache_dtool import __version__
from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.mounts import mount_of
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import FULL, CacheError
from sccache_dtool.liveness.caller import host_name
from sccache_dtool.liveness.process import Proc
from sccache_dtool.verify import kinds, meeting, script
from sccache_dtool.verify.checks import CHECKS
from sccache_dtool.verify.directory import LEADER, LONGEST_DELAY, Directory, scratch
from sccache_dtool.verify.findings import Announce, Finding, Report, Weight, broken_off, cannot_be_used, reason
from sccache_dtool.verify.session import DONE, Ended, Session

TWO_HOSTS = "two hosts"

_ALONE = "no peer took part: start `sc-dtool doctor --verify-filesystem DIR --peer` on another host first"


def verify(
    fs: FileSystem,
    directory: str,
    role: meeting.Role,
    announce: Announce,
    *,
    clock: Clock | None = None,
    proc: Proc | None = None,
    mounts: str = "/proc/self/mountinfo",
    longest_delay: float = LONGEST_DELAY,
) -> Report:
    """Try out the file system of `directory`, with the other host if it comes within the role's time.

    Both hosts have the same verdict, from the same findings. What is made is removed; nothing else in `directory` is
    touched. `tell`: told what is waited for. `mounts` and what follows `tell` otherwise are for tests.

    Raises UsageError if `directory` is not one in which this user may write, and NoSpace if the file system is full,
    which says nothing about it. The peer also raises TimedOut and CacheError, if the leader does not come, or does not
    reach a verdict; the leader reports that as a finding.
    """
    try:
        fs.names(directory)
        is_shared = fs.is_shared(directory)
    except OSError as error:
        raise cannot_be_used(directory, error) from error
    mount = mount_of(directory, mounts)
    kind = printable(mount.type) if mount else "of unknown type"
    report = Report(directory, kind, (host_name(),), independent=False, findings=tuple(kinds.judge(mount)))
    if report.heaviest.weight is Weight.UNFIT:
        return report  # what the mount tells is enough: nothing is even tried
    parent = Directory(fs, clock or Clock(), directory, is_shared, kind, announce, longest_delay)
    here = (proc or Proc()).here()
    me = {"host": host_name(), "boot": here[0] if here else "", "device": str(fs.lstat(directory).st_dev)}
    me |= {"release": __version__, "meeting": role.meeting}
    try:
        with scratch(parent) as own:
            if role.part is meeting.RoleKind.PEER:
                return _of_two(meeting.join_as_peer(own, me, role.wait), report, me)
            report = report.plus(*script.run_alone(CHECKS, own))
        try:
            session = meeting.begin_as_leader(parent, me, role.wait)
        except OSError as error:
            return report.plus(_broken(error))
        return _of_two(session, report, me) if session else report.plus(Finding(TWO_HOSTS, Weight.TOLD, _ALONE))
    except OSError as error:
        raise broken_off(directory, error) from error


def _of_two(session: Session, report: Report, me: Mapping[str, str]) -> Report:
    """Run the script with the other host; the report that follows from the results of both.

    If the other host falls silent or cannot go on, the leader reports that, after what was found until then. What this
    host has no room for is raised, and the other host is told.
    """
    is_leader, is_fit, findings = session.me == LEADER, report.heaviest.weight < Weight.UNTRIED, list(report.findings)
    with session:
        try:
            other = session.meet(me)
            hosts = (me, other) if is_leader else (other, me)
            independent = any(me[what] != other[what] for what in ("boot", "device"))
            report = report._replace(hosts=tuple(host["host"] for host in hosts), independent=independent)
            with contextlib.suppress(Ended):
                if is_fit or not is_leader:
                    script.run_with(session, CHECKS, findings)
            session.publish(script.encode(report.kind, findings))
            session.barrier(DONE)
            return _judged(report, session, findings, is_complete=True)
        except (OSError, CacheError) as error:
            if not is_leader:
                raise
            session.end(reason(error))
            broken = _broken(error)
        with contextlib.suppress(OSError, CacheError):
            report = _judged(report, session, findings, is_complete=False)
        return report.plus(broken)


def _broken(error: Exception) -> Finding:
    """What it means for the leader that two hosts did not reach the end. Raises an error that means "no space left"."""
    if isinstance(error, OSError) and error.errno in FULL:
        raise error
    return Finding(TWO_HOSTS, Weight.ONE_HOST, f"broken off: {reason(error)}")


def _judged(report: Report, session: Session, own: list[Finding], *, is_complete: bool) -> Report:
    """The report with what the results of both hosts show, which both hosts evaluate in the same way."""
    kind, other = script.decode(session.other, session.read("result-"))
    leader, peer = (own, other) if session.me == LEADER else (other, own)
    between = {check.title(between=True) for check in CHECKS}
    findings = [one for one in leader if one.check not in between]
    is_fit = max((one.weight for one in findings), default=Weight.GOOD) < Weight.UNTRIED
    for one in peer:
        if one.check in (kinds.TYPE, kinds.OPTIONS) and one.weight >= Weight.ONE_HOST:
            findings.append(one._replace(what=f"on {report.hosts[1]}: {one.what}"))
    if is_fit:
        findings += script.evaluate(CHECKS, report.hosts, (leader, peer), is_complete)
    return report._replace(kind=report.kind if session.me == LEADER else kind, findings=tuple(findings))
