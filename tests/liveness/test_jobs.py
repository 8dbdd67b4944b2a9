"""Which batch job a process runs in: the environment is believed only where the kernel says the same."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from faults import FakeProc
from liveness.asked import Commands
from sccache_dtool.errors import UsageError
from sccache_dtool.liveness import caller
from sccache_dtool.liveness import job as jobs
from sccache_dtool.liveness.batch import query
from sccache_dtool.liveness.batch.query import Unanswered
from sccache_dtool.liveness.caller import CALLER, JOB, NAMED, Owner
from sccache_dtool.liveness.job import EnclosingJob, Job

SLURM = {
    "SLURM_JOB_ID": "48211",
    "SLURM_CLUSTER_NAME": "lab",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NAME": "align",
}
TASK = {"SLURM_ARRAY_JOB_ID": "48200", "SLURM_ARRAY_TASK_ID": "7"}
EXPECTED = Job("slurm", "lab", "48211", "0", "", "n[1-2]")

Above = Callable[..., None]


@pytest.fixture
def above(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> Above:
    """Puts processes above this one, the furthest first: `command` or (`command`, its command line)."""

    def above(*chain: str | tuple[str, str], environ: Mapping[str, str] = {}) -> None:
        parent = 1
        for number, link in enumerate(chain, start=100):
            command, line = (link, link) if isinstance(link, str) else link
            proc.add(number, command, parent=parent, words=line.split())
            (Path(proc.root, str(number), "environ")).write_text("".join(f"{k}={v}\0" for k, v in environ.items()))
            parent = number
        monkeypatch.setattr("os.getppid", lambda: parent)

    return above


def cgroup(proc: FakeProc, text: str) -> None:
    Path(proc.root, str(os.getpid()), "cgroup").write_text(text)


STEPD = ("slurmstepd", "slurmstepd: [48211.batch]")


# -- Slurm -------------------------------------------------------------------------------------------------------------


def test_a_process_below_slurms_keeper_is_in_its_job(proc: FakeProc, above: Above) -> None:
    """No lease would belong to a job, and each would end with the step that took it."""
    above("slurmd", STEPD, "bash")
    assert jobs.find_job(proc, SLURM) == EnclosingJob(EXPECTED, "align", True)


def test_variables_without_a_keeper_prove_nothing(proc: FakeProc, above: Above) -> None:
    """A shell in `screen`, begun in a job that has ended, would take leases that end at once."""
    above("screen", "bash")
    assert jobs.find_job(proc, SLURM) is None
    cgroup(proc, "0::/user.slice/session-3.scope\n")
    assert jobs.find_job(proc, SLURM) is None


def test_a_keeper_of_another_job_proves_nothing(proc: FakeProc, above: Above) -> None:
    """A job whose variables were handed on from another would take leases for that one."""
    above(("slurmstepd", "slurmstepd: [999.batch]"), "bash")
    assert jobs.find_job(proc, SLURM) is None


@pytest.mark.parametrize(
    "text",
    [
        "0::/system.slice/slurmstepd.scope/job_48211/step_batch/user/task_0\n",
        "4:memory:/slurm/uid_1000/job_48211/step_0\n1:cpu:/\n",
        "1:cpuset:/slurm/uid_1000/job_48211\n",
    ],
)
def test_a_container_in_a_job_is_known_by_its_control_group(proc: FakeProc, above: Above, text: str) -> None:
    """In a container that hides the processes above, leases would belong to a process that nobody else can see."""
    above("sh")
    cgroup(proc, text)
    assert jobs.find_job(proc, SLURM) == EnclosingJob(EXPECTED, "align", True)
    cgroup(proc, text.replace("48211", "482110"))
    assert jobs.find_job(proc, SLURM) is None


def test_who_waits_for_a_job_on_a_login_node_is_beside_it(proc: FakeProc, above: Above) -> None:
    """A shell under `salloc` may go on when its job has ended, and would lose what it reads."""
    above("bash", "salloc", "bash")
    assert jobs.find_job(proc, SLURM) == EnclosingJob(EXPECTED, "align", False)


def test_the_nearest_decides(proc: FakeProc, above: Above) -> None:
    """A job that asks for another with `salloc` would take leases for the wrong one."""
    above(("slurmstepd", "slurmstepd: [999.batch]"), "bash", "salloc", "bash")
    assert jobs.find_job(proc, SLURM) == EnclosingJob(EXPECTED, "align", False)
    above("salloc", "srun", STEPD, "bash")
    assert jobs.find_job(proc, SLURM) == EnclosingJob(EXPECTED, "align", True)


def test_sudo_and_env_take_nothing_away(proc: FakeProc, above: Above) -> None:
    """`sudo sc-dtool use` in a job would take a lease that the job's own `unuse` does not find."""
    above(STEPD, "bash", "sudo", environ=SLURM)
    assert jobs.find_job(proc, {}) == EnclosingJob(EXPECTED, "align", True)
    assert caller.job_here(proc) == EnclosingJob(EXPECTED, "align", True)


def test_what_may_not_be_read_is_done_without(proc: FakeProc, above: Above) -> None:
    """A lease would be taken for a job of an unknown cluster."""
    above(STEPD, "bash", "sudo")
    assert jobs.find_job(proc, {}) is None
    assert jobs.find_job(proc, {**SLURM, "SLURM_CLUSTER_NAME": ""}) is None


def test_tasks_and_restarts_are_noted(proc: FakeProc, above: Above) -> None:
    """The end of one task, or of one start, would end the leases of another."""
    above(STEPD, "bash")
    found = jobs.find_job(proc, {**SLURM, **TASK, "SLURM_RESTART_COUNT": "3"})
    assert found is not None
    assert found.job == Job("slurm", "lab", "48200_7", "3", "48211", "n[1-2]")


def test_the_start_of_a_job_is_noted(proc: FakeProc, above: Above) -> None:
    """When numbers are used again, another job's end would be taken for this one's."""
    environ = {**SLURM, "SLURM_JOB_START_TIME": "1795269223"}
    above(STEPD, "bash")
    found = jobs.find_job(proc, environ)
    assert found is not None
    assert found.job == EXPECTED._replace(started="1795269223")
    above("salloc", "bash")  # which knows a time from before its nodes were booted
    beside = jobs.find_job(proc, environ)
    assert beside is not None
    assert beside.job.started == ""


def test_a_keeper_of_a_part_of_a_heterogeneous_job_is_believed(proc: FakeProc, above: Above) -> None:
    """In such jobs no lease would belong to the job."""
    above(("slurmstepd", "slurmstepd: [48210+1.0]"), "bash")
    found = jobs.find_job(proc, {**SLURM, "SLURM_HET_SIZE": "2"})
    assert found is not None
    assert found.job == EXPECTED._replace(nodes="")


HET = {**SLURM, "SLURM_HET_SIZE": "2", "SLURM_JOB_ID_HET_GROUP_0": "48211", "SLURM_JOB_ID_HET_GROUP_1": "48212"}


@pytest.mark.parametrize("number", ["48211", "48212"])
@pytest.mark.parametrize("word", ["HET", "PACK"])
@pytest.mark.parametrize("own", ["48211", "48212"])
def test_each_part_of_a_heterogeneous_job_is_the_job(
    proc: FakeProc, above: Above, number: str, word: str, own: str
) -> None:
    """On all parts but the first, a lease would belong to a shell, and nobody on another host could ever end it."""
    environ = {name.replace("HET", word): value for name, value in HET.items()} | {"SLURM_JOB_ID": own}
    above(("slurmstepd", f"slurmstepd: [{number}.0]"), "bash")
    found = jobs.find_job(proc, environ)
    assert found is not None
    assert found.job == EXPECTED._replace(nodes="")
    above("sshd", "bash")
    assert jobs.find_job(proc, environ) is None
    cgroup(proc, f"0::/system.slice/slurmstepd.scope/job_{number}/step_extern/user/task_0\n")
    assert jobs.find_job(proc, environ) == found


def test_the_parts_of_another_job_prove_nothing(proc: FakeProc, above: Above) -> None:
    """Variables handed on from a heterogeneous job would make any job's lease that one's."""
    above(("slurmstepd", "slurmstepd: [48213.0]"), "bash")
    assert jobs.find_job(proc, HET) is None
    above("bash")
    cgroup(proc, "0::/system.slice/slurmstepd.scope/job_482/step_0\n1:cpu:/slurm/job_482120\n")
    assert jobs.find_job(proc, HET) is None


@pytest.mark.parametrize("step", ["batch", "0", "interactive", "4294967291"])
@pytest.mark.parametrize("task", [{}, TASK])
def test_every_step_of_a_job_is_the_job(proc: FakeProc, above: Above, step: str, task: dict[str, str]) -> None:
    """What one step of a job, or of a task of an array, takes could not be given back in another."""
    above(("slurmstepd", f"slurmstepd: [48211.{step}]"), "bash")
    found = jobs.find_job(proc, SLURM | task)
    assert found is not None
    assert found.job == (EXPECTED._replace(id="48200_7", raw="48211") if task else EXPECTED)


def test_a_list_of_nodes_is_whole_or_none(proc: FakeProc, above: Above) -> None:
    """Half a list of nodes would hide one that does not answer."""
    above(STEPD, "bash")
    found = jobs.find_job(proc, {**SLURM, "SLURM_JOB_NODELIST": "n[" + ",".join(map(str, range(1, 200, 2))) + "]"})
    assert found is not None
    assert found.job.nodes == ""


# -- the others --------------------------------------------------------------------------------------------------------


def test_pbs(proc: FakeProc, above: Above) -> None:
    """No lease would belong to a job of PBS."""
    environ = {"PBS_JOBID": "12[3].pbs.example.org", "PBS_JOBNAME": "align"}
    above("pbs_mom", "bash")
    assert jobs.find_job(proc, environ) == EnclosingJob(Job("pbs", "pbs.example.org", "12[3]"), "align", True)
    above("screen", "bash")
    assert jobs.find_job(proc, environ) is None
    cgroup(proc, "1:memory:/pbs_jobs.service/jobid/12[3].pbs.example.org\n")
    assert jobs.find_job(proc, environ) is not None


def test_htcondor(proc: FakeProc, above: Above, tmp_path: Path) -> None:
    """No lease would belong to a job of HTCondor."""
    ad = tmp_path / ".job.ad"
    ad.write_text('Arguments = ""\nGlobalJobId = "scosg16.jlab.org#3472942.81#1616890323"\nJobStatus = 2\n')
    environ = {"_CONDOR_JOB_AD": str(ad)}
    above("condor_starter", "condor_exec.exe")
    assert jobs.find_job(proc, environ) == EnclosingJob(
        Job("htcondor", "scosg16.jlab.org", "3472942.81", "1616890323"), "", True
    )
    ad.write_text("x")
    assert jobs.find_job(proc, environ) is None
    assert jobs.find_job(proc, {"_CONDOR_JOB_AD": str(tmp_path / "none")}) is None
    above("bash")
    assert jobs.find_job(proc, environ) is None


def test_pbs_on_another_node_than_the_scripts(proc: FakeProc, above: Above) -> None:
    """Where no script is above it, what a part of a job takes would not belong to the job."""
    above("pbs_mom")
    found = jobs.find_job(proc, {"PBS_JOBID": "12[3].pbs.example.org", "PBS_NODENUM": "1"})
    assert found is not None
    assert found.job == Job("pbs", "pbs.example.org", "12[3]")


@pytest.mark.parametrize(("index", "id"), [("0", "22005"), ("3", "22005[3]")])
def test_lsf(proc: FakeProc, above: Above, index: str, id: str) -> None:
    """No lease would belong to a job of LSF, or one to the wrong task."""
    environ = {"LSB_JOBID": "22005", "LSB_JOBINDEX": index, "LSB_SUB_HOST": "tbi-cn013", "LSB_JOBNAME": "ls"}
    above("res", "bash")
    assert jobs.find_job(proc, environ) == EnclosingJob(Job("lsf", "tbi-cn013", id), "ls", True)
    above("bash")
    assert jobs.find_job(proc, environ) is None


def test_kubernetes(proc: FakeProc, above: Above) -> None:
    """No lease would belong to a pod; or one to all pods of a name, one after another."""
    uid = "6d0b1c1e-6d3c-4f0e-9d4e-3b2a1c0d9e8f"
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "POD_NAMESPACE": "lab", "POD_NAME": "align-7"}
    above("sh")
    assert jobs.find_job(proc, environ) is None
    cgroup(proc, f"0::/kubepods.slice/kubepods-pod{uid.replace('-', '_')}.slice/cri-containerd-1.scope\n")
    expected = EnclosingJob(Job("kubernetes", "", "lab/align-7", uid), "align-7", True)
    assert jobs.find_job(proc, environ) == expected
    cgroup(proc, "0::/\n")
    assert jobs.find_job(proc, {**environ, "POD_UID": uid}) == expected


# -- owners ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_job(above: Above, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process runs in a job."""
    above(STEPD, ("bash", "bash job.sh"))
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)


def test_in_a_job_the_job_holds(proc: FakeProc, in_job: None) -> None:
    """A lease that one step takes would end with it, while the others read."""
    owner = caller.owner_from("auto", proc)
    assert owner == Owner(JOB, None, None, "align", EXPECTED)
    assert str(owner) == "Slurm job 48211 (align)"
    assert owner.short == "slurm:48211"


def test_a_step_and_another_start_find_the_jobs_leases(proc: FakeProc, in_job: None) -> None:
    """`unuse` in another step, on another node, or after a requeue, would not find what `use` took."""
    owner = caller.owner_from("auto", proc)
    for job in (EXPECTED._replace(incarnation="4"), EXPECTED._replace(nodes="n9"), Job("slurm", "lab", "48211")):
        assert owner._replace(job=job).prefix == owner.prefix
    assert owner.prefix in {one.prefix for one in caller.owners_from("auto", proc)}
    for job in (EXPECTED._replace(cluster="b"), EXPECTED._replace(id="5"), EXPECTED._replace(raw="48211")):
        assert owner._replace(job=job).prefix != owner.prefix


def test_the_token_can_be_made_by_a_shell_script() -> None:
    """The epilog would find no lease of any job."""
    plain = os.popen("printf %s slurm/lab/48211 | sha256sum | cut -c1-12").read().strip()
    task = os.popen("printf %s slurm/lab/task:48211 | sha256sum | cut -c1-12").read().strip()
    assert Owner(JOB, None, None, "", EXPECTED).token == plain
    assert Owner(JOB, None, None, "", EXPECTED._replace(id="48200_7", raw="48211")).token == task


def test_what_the_process_took_itself_is_given_back_in_the_job(proc: FakeProc, in_job: None) -> None:
    """A lease taken with `--holder pid:$$` would not be found by a plain `unuse`."""
    found = caller.owners_from("auto", proc)
    assert caller.process_owner(CALLER, proc, 101) in found
    assert found[-1].kind is JOB


def test_programs_keep_their_own_identity_and_have_the_job_as_evidence(proc: FakeProc, in_job: None) -> None:
    """Two Python programs in one job would end each other's leases."""
    program = caller.program_owner(proc)
    assert program.job == EXPECTED
    assert program.process == proc.identify(os.getpid())
    assert program.token == program._replace(job=None).token
    assert caller.command_owner(proc, 101, ["align", "x"]).job == EXPECTED


def test_beside_a_job_the_end_of_the_job_ends_nothing_by_itself(
    proc: FakeProc, above: Above, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program under `salloc` that goes on after its job would lose what it reads."""
    above("bash", "salloc", "bash")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert caller.program_owner(proc).job is None
    owner = caller.owner_from("auto", proc)
    assert (owner.kind, owner.job) == (JOB, EXPECTED)
    assert owner.process == proc.identify(102)


def test_outside_of_jobs_nothing_of_them_is_loaded() -> None:
    """Each of ten thousand commands would load what it has no use for."""
    import subprocess
    import sys

    script = (
        "import os, sys\n"
        "from sccache_dtool.liveness import caller, process\n"
        "caller.owner_from(f'pid:{os.getpid()}', process.Proc())\n"
        "assert caller.may_be_in_job(process.Proc(), {}) or caller.job_here(process.Proc()) is None\n"
        "print('sccache_dtool.liveness.job' in sys.modules, 'subprocess' in sys.modules)\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PBS", "KUBERNETES"))}
    done = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


# -- jobs that somebody names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "job"),
    [
        ("slurm:48211@lab", Job("slurm", "lab", "48211")),
        ("slurm:48200_7@lab", Job("slurm", "lab", "48200_7")),
        ("slurm:48211", Job("slurm", "asked", "48211")),
        ("pbs:12[3].pbs.example.org", Job("pbs", "pbs.example.org", "12[3]")),
        ("htcondor:12.0@ap1.example.org", Job("htcondor", "ap1.example.org", "12.0")),
        ("htcondor:12.0", Job("htcondor", "asked", "12.0")),
        ("lsf:22005[3]@login1", Job("lsf", "login1", "22005[3]")),
        ("kubernetes:lab/align-7", Job("kubernetes", "", "lab/align-7")),
    ],
)
def test_jobs_are_named(spec: str, job: Job) -> None:
    """A lease for a job in the queue could not be taken on such a cluster."""
    assert jobs.is_spec(spec)
    assert jobs.parse_spec(spec, lambda scheduler, id: "asked") == job


@pytest.mark.parametrize(
    "spec",
    [
        "slurm:",
        "slurm:x",
        "slurm:-1",
        "slurm:1;reboot",
        "slurm:1@a b",
        "slurm:48211_",
        "pbs:",
        "pbs:-x",
        "htcondor:--help",
    ],
)
def test_what_is_no_job_is_refused(proc: FakeProc, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    """A slip of the pen would take a lease for a job that never ends, or become an option of somebody's command."""
    monkeypatch.setattr(query, "run_command", lambda argv: pytest.fail(f"asked: {argv}"))
    with pytest.raises(UsageError, match="is not a job"):
        caller.owner_from(spec, proc)


def test_a_cluster_that_cannot_be_asked_for_must_be_named(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease would be taken for a job of no cluster, which nothing can judge."""

    def hangs(argv: object) -> query.Reply:
        raise Unanswered("squeue did not answer within 10 s")

    monkeypatch.setattr(query, "run_command", hangs)
    with pytest.raises(UsageError, match="squeue did not answer") as caught:
        caller.owner_from("slurm:48211", proc)
    assert "--holder slurm:48211@CLUSTER" in (caught.value.hint or "")
    assert caller.owner_from("slurm:48211@lab", proc).job == Job("slurm", "lab", "48211")


@pytest.mark.parametrize("spec", ["pbs:12", "htcondor:12.0", "lsf:12", "slurm:12"])
def test_a_job_of_no_cluster_is_refused(spec: str) -> None:
    """A lease would be taken for a job that has left the queue, and nobody could ever say that it has ended."""
    assert jobs.parse_spec(spec, lambda scheduler, id: "") is None


def test_a_job_that_has_ended_holds_nothing_more(
    proc: FakeProc, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    """A user would be given a path whose lease has ended already; or, by a slip of the pen, one that never ends."""
    now = int(time.time())

    def answers(**replies: str | query.Reply) -> None:
        monkeypatch.setattr(query, "run_command", Commands(**replies))

    answers(squeue=f"4|4|N/A|0|CANCELLED|{now}|{now}|{now}||lab|N/A|\n")
    with pytest.raises(UsageError, match="job 4 CANCELLED"):
        caller.owner_from("slurm:4@lab", proc)
    assert caller.owners_from("slurm:4@lab", proc)[0].job == Job("slurm", "lab", "4")
    answers(squeue=f"4|4|N/A|0|PENDING|{now}|N/A|N/A||lab|N/A|\n")
    caller.owner_from("slurm:4@lab", proc)
    assert warnings == []
    answers(squeue=query.Reply(1, "", "slurm_load_jobs error: Invalid job id specified"), sacct="")
    caller.owner_from("slurm:4@lab", proc)
    assert len(warnings) == 1
    assert "job 4 is not listed" in warnings[0]


def test_other_names_with_colons_are_names(proc: FakeProc) -> None:
    """A workflow's own name for a holder would be refused."""
    assert caller.owner_from("run:7", proc).kind is NAMED


@pytest.mark.parametrize(
    "change",
    [
        {"scheduler": "none"},
        {"job": "-x"},
        {"job": ""},
        {"job": "x" * 200},
        {"job": 7},
        {"cluster": "-M"},
        {"raw": "x"},
        {"incarnation": "x"},
        {"incarnation": "9" * 5000},
        {"nodes": 1},
        {"started": "yesterday"},
        {"started": 7},
        {"job": "abc"},
        {"job": "48211,1"},
        {"scheduler": "pbs", "cluster": "server@elsewhere"},
        {"scheduler": "htcondor"},
        {"scheduler": "kubernetes"},
    ],
)
def test_what_is_no_job_in_a_record_is_none(change: dict[str, object]) -> None:
    """A record made by hand would become an option of a command that root runs."""
    assert Job.from_fields(EXPECTED.fields()) == EXPECTED
    assert Job.from_fields(EXPECTED.fields() | change) is None
