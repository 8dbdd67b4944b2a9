"""`doctor`: find and repair damage of a cache, and test a file system."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from sccache_dtool.cache import Cache
from sccache_dtool.cli import output
from sccache_dtool.cli.options import DURATION, Invocation, common_options, pass_invocation
from sccache_dtool.cli.output import Column
from sccache_dtool.disk import records
from sccache_dtool.doctor import Finding
from sccache_dtool.errors import CacheError, Exit, UsageError, explain

if TYPE_CHECKING:
    from sccache_dtool.verify import Role

#: Most examinations in a row: a repair may reveal further damage, and other processes may cause new findings.
_ROUNDS = 10

#: Seconds for which two hosts that were told that they are two wait for each other.
_WAIT = 120.0

#: Number of details that a finding shows.
_DETAILS = 3


@click.command("doctor")
@click.option("--fix", is_flag=True, help="Repair the findings that need no decision.")
@click.option(
    "--verify-content", is_flag=True, help="Read the content of all items, and compare it with their digests."
)
@click.option(
    "--verify-filesystem",
    "directory",
    metavar="DIR",
    help="Test whether the file system of DIR is fit for a cache. DIR need not be a cache.",
)
@click.option("--peer", is_flag=True, help="With --verify-filesystem: run on the second host. Start this one first.")
@click.option("--wait", type=DURATION, help="With --verify-filesystem: wait at most TIME for the other host: 10m.")
@common_options()
@pass_invocation
def doctor_command(
    call: Invocation, fix: bool, verify_content: bool, directory: str | None, peer: bool, wait: float | None
) -> int:
    """Find damage and leftovers, and test file systems.

    Without options, `doctor` examines the cache and changes nothing. The exit code is 20 if findings remain, and 0
    otherwise.

    With --verify-filesystem, `doctor` tests a file system, alone or together with a second host. The exit code is 0 if
    the file system is fit for several hosts, 3 if it is fit for one host, 20 if it is unfit, 13 if it is too full for
    the test, and 1 if the test failed for another reason. Under srun with two tasks, each task acts as one host.

    \b
    Examples:
      sc-dtool doctor --fix
      sc-dtool doctor --verify-filesystem /scratch --peer    # on one host
      sc-dtool doctor --verify-filesystem /scratch           # then on another
    """
    if directory is not None:
        if fix or verify_content:
            raise UsageError(
                "--verify-filesystem cannot be combined with --fix or --verify-content",
                hint="run doctor once for the cache, and once for the file system",
            )
        if not directory.strip():
            raise UsageError("--verify-filesystem needs a directory", hint="name one on the mount, such as /scratch")
        return _verify(call, directory, peer, wait)
    if peer or wait is not None:
        raise UsageError("--peer and --wait need --verify-filesystem", hint="add --verify-filesystem DIR")
    return _examine(call, fix, verify_content)


# -- caches ------------------------------------------------------------------------------------------------------------


def _examine(call: Invocation, fix: bool, verify_content: bool) -> int:
    cache = call.cache()
    findings = cache.examine()
    repairs = _Repairs(call)
    for _ in range(_ROUNDS if fix else 0):
        before = {finding.path for finding in findings if finding.repair}
        if not before:
            break
        repairs.attempt(findings)
        findings = cache.examine()
        if before & {finding.path for finding in findings if finding.repair}:
            break
    if verify_content:
        checked = cache.verify_content()
        findings += repairs.attempt(checked.bad) if fix else checked.bad
        fields = {"read": checked.read, "bad": len(checked.bad), "without_digest": checked.without_digest}
        text = f"read {output.count(checked.read, 'payload')}, of which {checked.without_digest} have no digest"
        call.out.result("content", fields, text)
    for finding in findings:
        _print_finding(call, finding, repairs.refused.get(finding.path))
    _print_lot_rights(call, cache)
    text = f"{output.count(len(findings), 'finding')}" + (f", {repairs.done} repaired" if fix else "")
    call.out.result("total", {"findings": len(findings), "repaired": repairs.done}, text)
    return Exit.FINDINGS if findings else Exit.DONE


def _print_lot_rights(call: Invocation, cache: Cache) -> None:
    """Say who may change the lots. That is not a finding: the permissions of their directory are for people to set."""
    try:
        found = cache.lot_rights()
    except CacheError:  # of `config.toml`, which is a finding
        return
    if found is None:
        return
    text = f"all lots may be changed by {found.owner}, who owns {found.directory}"
    if found.managers:
        text += f", and by {', '.join(found.managers)}"
    if found.everybody or found.group is not None:
        who = "every user" if found.everybody else f"every member of group {found.group}"
        text += f"; {who} can write there, so that only rules prevent other changes (to forbid them: chmod go-w)"
    fields = found._asdict()
    call.out.result("lot_rights", fields | {"managers": list(found.managers)}, records.printable(text))


def _print_finding(call: Invocation, finding: Finding, refused: str | None) -> None:
    """Print a finding with its remedy. `refused`: why it could not be repaired."""
    fields = {
        "path": finding.path,
        "finding": finding.what,
        "repairable": finding.repair is not None,
        "remedy": finding.remedy,
        "not_repaired": refused,
    }
    if finding.repair is None:
        remedy = f"; {finding.remedy}"
    elif refused is None:
        remedy = f" (--fix {finding.remedy})"
    else:
        remedy = f"; not repaired: {refused}"
    call.out.result("finding", fields, records.printable(f"{finding.path}: {finding.what}{remedy}"))


class _Repairs:
    """Repairs findings: prints each success at once, and keeps the reason of each failure."""

    def __init__(self, call: Invocation) -> None:
        self._call = call
        self.done = 0
        self.refused: dict[str, str] = {}  # by path

    def attempt(self, findings: Iterable[Finding]) -> list[Finding]:
        """Repair the findings that can be repaired. Returns the others."""
        return [finding for finding in findings if not (finding.repair and self._repair(finding, finding.repair))]

    def _repair(self, finding: Finding, repair: Callable[[], object]) -> bool:
        try:
            repair()
        except FileNotFoundError:
            return False  # repaired by somebody else, or along with another finding
        except OSError as error:
            self.refused[finding.path] = explain(error, known=finding.path)
            return False
        except CacheError as error:
            self.refused[finding.path] = ": ".join((error.message, *_some(error.details)))
            return False
        self.done += 1
        what = {"path": finding.path, "finding": finding.what}
        self._call.out.result("repaired", what, f"repaired {finding.path}: {finding.what}")
        return True


def _some(details: Sequence[str]) -> list[str]:
    """The first details, for one line: an item may have thousands of holders."""
    more = [f"and {len(details) - _DETAILS} more"] if len(details) > _DETAILS else []
    return [*details[:_DETAILS], *more]


# -- file systems ------------------------------------------------------------------------------------------------------


def _verify(call: Invocation, directory: str, peer: bool, wait: float | None) -> int:
    from sccache_dtool import verify
    from sccache_dtool.disk.filesystem import FileSystem

    codes = {
        verify.Fitness.FIT: Exit.DONE,
        verify.Fitness.ONE_HOST: Exit.PARTIAL,
        verify.Fitness.UNDECIDED: Exit.ERROR,
        verify.Fitness.UNFIT: Exit.FINDINGS,
    }
    role = role_from(os.environ, peer=peer, wait=wait)
    path = os.path.abspath(directory)
    if not role:
        call.out.note("a verification needs only two tasks; this task does nothing")
        return Exit.DONE
    report = verify.verify(FileSystem(), path, role, call.out.note)
    fields = {"path": path, "fitness": str(report.fitness), "verdict": report.verdict}
    call.out.result("verdict", fields, f"{path}: {records.printable(report.verdict)}")
    if not role.is_peer:
        rows = (
            {"check": one.check, "result": one.weight.word, "evidence": one.what, "figures": dict(one.figures)}
            for one in report.findings
        )
        columns = [Column("RESULT", "result"), Column("CHECK", "check"), Column("EVIDENCE", "evidence")]
        call.out.table("check", rows, columns)
    return codes[report.fitness]


def role_from(environment: Mapping[str, str], *, peer: bool, wait: float | None) -> Role | None:
    """The role of this process, None for nothing to do; `peer` and `wait` are what a person said, and decide.

    Of the tasks that one `srun` has started, the first leads, the second is the peer, and the others have nothing to
    do. The batch script itself is not such a task, and leads alone. A leader that was started by hand waits only if
    told to: it cannot know whether a peer will come.
    """
    from sccache_dtool.verify import Role

    tasks, rank = environment.get("SLURM_STEP_NUM_TASKS", ""), environment.get("SLURM_PROCID", "")
    is_task = not peer and tasks.isdecimal() and rank.isdecimal() and int(tasks) > 1
    wait = wait if wait is not None else _WAIT if peer or is_task else 0.0
    if not is_task:
        return Role(peer, "", wait)
    step = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"
    return Role(int(rank) == 1, step, wait) if int(rank) < 2 else None
