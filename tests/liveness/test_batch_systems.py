"""What the answers of PBS, HTCondor, LSF and Kubernetes prove.

No server of any of them could be run for these tests: Debian 12 packages none, and PyPI's `htcondor` has neither
daemons nor `condor_q`. So the answers are what others have recorded or documented; where, stands beside each. What
is said here of ends by force follows the manuals alone.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from liveness.asked import Commands
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.batch import htcondor, kubernetes, lsf, pbs
from sccache_dtool.liveness.batch.query import Reply, Unanswered
from sccache_dtool.liveness.job import Job


def ask(module: Any, job: Job, **replies: str | Reply) -> Verdict | None:
    verdicts: dict[Job, Verdict] = {}
    module.ask([job], Commands(**replies), verdicts)
    return verdicts.get(job)


def seconds(text: str) -> float:
    """Since 1970, of a time as `qstat` writes it: in the time zone of whoever calls it."""
    return time.mktime(time.strptime(text))


# -- PBS ---------------------------------------------------------------------------------------------------------------

#: Of a job on ALCF's Polaris test bed, as PSI/J's developers' documentation quotes it (`qstat -f -F json -x`), in full
#: form with the fields of a job of PBS 19.2.8 that a public accounting script quotes.
PBS_JOB = Job("pbs", "edtb-01.mcp.alcf.anl.gov", "2154", seen=seconds("Mon Jan 24 08:39:30 2022"))
PBS_FINISHED = """{
    "timestamp":1643013612,
    "pbs_version":"2022.0.0.20211103141832",
    "pbs_server":"edtb-01.mcp.alcf.anl.gov",
    "Jobs":{
        "2154.edtb-01.mcp.alcf.anl.gov":{
            "job_state":"F",
            "server":"edtb-01",
            "mtime":"Mon Jan 24 08:40:13 2022",
            "comment":"Job run at Mon Jan 24 at 08:39 on (edtb-01[0]:ncpus=1) and finished",
            "Exit_status":0
        }
    }
}
"""

#: Of OpenPBS 22.05.11, exit code 255, as the test suite of QUT's baw-workers quotes it: JSON that says nothing.
PBS_NO_SERVER = Reply(
    255,
    '{\n    "timestamp":1750053827,\n    "pbs_version":"22.05.11",\n    "pbs_server":"6cfab3a0b8ac"\n}\n',
    "Connection refused\nqstat: cannot connect to server 6cfab3a0b8ac (errno=15010)\n",
)

#: The form is that of PBS_NO_SERVER; the message and code are PBSE_UNKJOBID's (pbs_error.h: 15001, modulo 256).
PBS_NOT_KNOWN = Reply(153, PBS_NO_SERVER.out, "qstat: Unknown Job Id 2154.edtb-01.mcp.alcf.anl.gov\n")


def test_pbs_a_finished_job_is_dead() -> None:
    """What a job held would be kept for ever on every cluster with PBS."""
    verdict = ask(pbs, PBS_JOB, qstat=PBS_FINISHED)
    evidence = "job 2154 finished with exit status 0, last seen Mon Jan 24 08:40:13 2022"
    assert verdict == (State.DEAD, evidence)


@pytest.mark.parametrize("word", "BEHQRSTUW")
def test_pbs_every_other_state_is_alive(word: str) -> None:
    """A job that waits, is suspended or is being ended would lose its data."""
    verdict = ask(pbs, PBS_JOB, qstat=PBS_FINISHED.replace('"F"', f'"{word}"'))
    assert verdict is not None
    assert verdict.state is State.ALIVE


@pytest.mark.parametrize("word", ["M", "Z", ""])
def test_pbs_a_state_that_says_nothing_proves_nothing(word: str) -> None:
    """A job that was moved to another server would be taken for ended."""
    verdict = ask(pbs, PBS_JOB, qstat=PBS_FINISHED.replace('"F"', f'"{word}"'))
    assert verdict is not None
    assert verdict.state is State.UNKNOWN


@pytest.mark.parametrize("word", ["F", "X"])
def test_pbs_an_end_by_force_is_no_proof(word: str) -> None:
    """A job that `qdel -W force` dropped because its host did not answer would lose its data there."""
    forced = PBS_FINISHED.replace('"F"', f'"{word}"').replace('"Exit_status":0', '"exec_host":"n1/0"')
    verdict = ask(pbs, PBS_JOB, qstat=forced)
    assert verdict is not None
    assert verdict.state is State.UNKNOWN
    never_ran = forced.replace('"exec_host":"n1/0"', '"ctime":"Mon Jan 24 08:39:11 2022"')
    verdict = ask(pbs, PBS_JOB, qstat=never_ran)
    assert verdict is not None
    assert verdict.state is State.DEAD


@pytest.mark.parametrize("seen", [seconds("Mon Jan 24 08:50:14 2022"), 0.0])
def test_pbs_an_end_before_the_lease_is_another_jobs(seen: float) -> None:
    """A server that was set up again counts from 0 again: the end of an old job would be taken for ours."""
    verdict = ask(pbs, PBS_JOB._replace(seen=seen), qstat=PBS_FINISHED)
    assert verdict is not None
    assert verdict.state is State.UNKNOWN
    for mtime in ('"x"', "null", "7"):
        said = PBS_FINISHED.replace('"Mon Jan 24 08:40:13 2022"', mtime)
        verdict = ask(pbs, PBS_JOB, qstat=said)
        assert verdict is not None
        assert verdict.state is State.UNKNOWN


def test_pbs_absent_is_not_dead() -> None:
    """A job that is hidden, or older than the server's history, would be taken for ended."""
    assert ask(pbs, PBS_JOB, qstat=PBS_NOT_KNOWN) is None
    assert ask(pbs, PBS_JOB._replace(cluster="other"), qstat=PBS_FINISHED) is None


@pytest.mark.parametrize(
    "reply", [PBS_NO_SERVER, Reply(255, "", "qstat: cannot connect"), "", "[]", '{"Jobs":[]}', "x"]
)
def test_pbs_no_answer_proves_nothing(reply: str | Reply) -> None:
    """While the server is down it would be asked again and again, or its jobs be taken for ended."""
    with pytest.raises(Unanswered):
        ask(pbs, PBS_JOB, qstat=reply)


def test_pbs_some_jobs_are_known_and_others_not() -> None:
    """One job that the server has forgotten would hide the end of all others."""
    verdict = ask(pbs, PBS_JOB, qstat=PBS_NOT_KNOWN._replace(out=PBS_FINISHED))
    assert verdict is not None
    assert verdict.state is State.DEAD


# -- HTCondor ----------------------------------------------------------------------------------------------------------

#: Of `condor_q -json` at Jefferson Lab, as comments in the portal for CLAS12's jobs quote it; only the asked fields.
CONDOR_JOB = Job("htcondor", "scosg16.jlab.org", "3472942.81", "1616890323", seen=1617110000.0)
CONDOR_AD = {
    "ClusterId": 3472942,
    "EnteredCurrentStatus": 1617115471,
    "GlobalJobId": "scosg16.jlab.org#3472942.81#1616890323",
    "JobStatus": 2,
    "ProcId": 81,
}


def condor(status: int, **more: object) -> str:
    return json.dumps([CONDOR_AD | {"JobStatus": status} | more], indent=1)


@pytest.mark.parametrize("status", range(1, 8))
def test_condor_what_is_in_the_queue_is_alive(status: int) -> None:
    """A job that is held, suspended or just being removed would lose its data."""
    verdict = ask(htcondor, CONDOR_JOB, condor_q=condor(status), condor_history="")
    assert verdict is not None
    assert verdict.state is State.ALIVE


def test_condor_what_has_left_the_queue_is_dead() -> None:
    """What a job held would be kept for ever on every pool."""
    verdict = ask(htcondor, CONDOR_JOB, condor_q="", condor_history=condor(4))
    assert verdict == (State.DEAD, "job 3472942.81 has left the queue, completed since 2021-03-30T14:44:31Z")
    for ad in ({}, {"NumJobStarts": 1, "LastRemoteHost": "slot1@n1"}):  # removed from the queue, and on a host
        verdict = ask(htcondor, CONDOR_JOB, condor_q="", condor_history=condor(3, **ad))
        assert verdict is not None
        assert verdict.state is State.DEAD


@pytest.mark.parametrize("ad", [{"RemoteHost": "slot1@n1"}, {"RemoteHost": "b", "LastRemoteHost": "a"}, {}])
def test_condor_a_removal_by_force_is_no_proof(ad: dict[str, str]) -> None:
    """A job that `condor_rm -forcex` dropped while its host did not answer would lose its data there."""
    verdict = ask(htcondor, CONDOR_JOB, condor_q="", condor_history=condor(3, NumJobStarts=1, **ad))
    assert verdict is not None
    assert verdict.state is State.UNKNOWN


def test_condor_a_job_of_the_same_number_is_not_ours() -> None:
    """A schedd that was set up again counts from 1 again: the end of an old job would be taken for ours."""
    for job in (CONDOR_JOB._replace(incarnation="1700000000"), CONDOR_JOB._replace(incarnation="1")):
        assert ask(htcondor, job, condor_q=condor(2), condor_history=condor(4)) is None
    named = CONDOR_JOB._replace(incarnation="")  # --holder htcondor:3472942.81
    verdict = ask(htcondor, named, condor_q="", condor_history=condor(4))
    assert verdict is not None
    assert verdict.state is State.DEAD
    for seen in (1617115471 + 601, 0.0):
        verdict = ask(htcondor, named._replace(seen=seen), condor_q="", condor_history=condor(4))
        assert verdict is not None
        assert verdict.state is State.UNKNOWN


def test_condor_other_users_jobs_are_asked_for() -> None:
    """Whoever cleans for a group would see its own jobs alone."""
    commands = Commands(condor_q=condor(2))
    htcondor.ask([CONDOR_JOB], commands, {})
    assert "-allusers" in commands.asked[0]


@pytest.mark.parametrize("status", [1, 2, 5, 7, 99])
def test_condor_only_an_end_in_the_history_is_proof(status: int) -> None:
    """A job that went to another schedd would be taken for ended."""
    verdict = ask(htcondor, CONDOR_JOB, condor_q="", condor_history=condor(status))
    assert verdict is not None
    assert verdict.state is State.UNKNOWN


def test_condor_a_job_of_another_schedd_is_not_ours() -> None:
    """Each access point counts its own jobs from 1: the end of one would be taken for another's."""
    other = condor(4, GlobalJobId="ap2.example.org#3472942.81#1616890323")
    assert ask(htcondor, CONDOR_JOB, condor_q="", condor_history=other) is None


def test_condor_absent_is_not_dead() -> None:
    """A job that history has rotated away would be taken for ended, and one that is hidden as well."""
    assert ask(htcondor, CONDOR_JOB, condor_q="", condor_history="") is None


@pytest.mark.parametrize(
    "reply",
    [Reply(1, "", "Error: Couldn't contact the condor_collector on cm.example.org.\n"), "oops", '{"a":1}', "[1]"],
)
def test_condor_no_answer_proves_nothing(reply: str | Reply) -> None:
    """While a schedd is down its jobs would be taken for ended."""
    with pytest.raises(Unanswered):
        ask(htcondor, CONDOR_JOB, condor_q=reply, condor_history=condor(4))


def test_condor_the_schedd_of_a_job_is_found() -> None:
    """`--holder htcondor:3472942.81` would take a lease that nobody can judge."""
    assert htcondor.place("3472942.81", Commands(condor_q=condor(1))) == "scosg16.jlab.org"
    assert htcondor.place("3472942.81", Commands(condor_q="")) == ""


# -- LSF ---------------------------------------------------------------------------------------------------------------

#: Of DKFZ's cluster, as the tests of Roddy's BatchEuphoria quote it; JOBINDEX in the form of Ceems' tests.
LSF_JOB = Job("lsf", "tbi-cn013", "22005")
LSF_DONE = """
{
  "COMMAND":"bjobs",
  "JOBS":1,
  "RECORDS":[
    {
      "JOBID":"22005",
      "JOBINDEX":"0",
      "STAT":"DONE",
      "FROM_HOST":"tbi-cn013",
      "FINISH_TIME":"Dec 28 19:56 L"
    }
  ]
}
"""


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("DONE", State.DEAD),
        ("EXIT", State.DEAD),
        ("RUN", State.ALIVE),
        ("PEND", State.ALIVE),
        ("SSUSP", State.ALIVE),
        ("UNKWN", State.UNKNOWN),
        ("ZOMBI", State.UNKNOWN),
    ],
)
def test_lsf_states(word: str, state: State) -> None:
    """A job whose host is silent would lose its data, or one that is done keep it for ever."""
    verdict = ask(lsf, LSF_JOB, bjobs=LSF_DONE.replace("DONE", word))
    assert verdict is not None
    assert verdict.state is state


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("TERM_FORCE_OWNER: job killed by owner without time for cleanup", State.UNKNOWN),
        ("TERM_FORCE_ADMIN", State.UNKNOWN),
        ("TERM_ZOMBIE", State.UNKNOWN),
        ("TERM_REMOVE_HUNG_JOB", State.UNKNOWN),
        ("TERM_OWNER: job killed by owner", State.DEAD),
        ("TERM_MEMLIMIT: job killed after reaching LSF memory usage limit", State.DEAD),
        ("", State.DEAD),
    ],
)
def test_lsf_an_end_by_force_is_no_proof(reason: str, state: State) -> None:
    """A job that `bkill -r` dropped because its host did not answer would lose its data there."""
    said = LSF_DONE.replace("DONE", "EXIT").replace('"STAT"', f'"EXIT_REASON":"{reason}","STAT"')
    verdict = ask(lsf, LSF_JOB, bjobs=said)
    assert verdict is not None
    assert verdict.state is state


def test_lsf_other_jobs_are_not_ours() -> None:
    """The end of another task, or of another cluster's job of that number, would be taken for ours."""
    assert ask(lsf, LSF_JOB._replace(id="22005[2]"), bjobs=LSF_DONE) is None
    assert ask(lsf, LSF_JOB._replace(cluster="elsewhere"), bjobs=LSF_DONE) is None
    second = LSF_DONE.replace('"0"', '"2"')
    assert ask(lsf, LSF_JOB, bjobs=second) is None
    assert ask(lsf, LSF_JOB._replace(id="22005[2]"), bjobs=second) is not None


def test_lsf_no_answer_proves_nothing() -> None:
    """While LSF is down its jobs would be taken for ended."""
    for reply in (Reply(255, "", "Failed in an LSF library call: LIM is down; try later\n"), "No job found", "[]"):
        with pytest.raises(Unanswered):
            ask(lsf, LSF_JOB, bjobs=reply)
    not_found = '{"COMMAND":"bjobs","JOBS":1,"RECORDS":[{"JOBID":"22005","ERROR":"Job <22005> is not found"}]}'
    assert ask(lsf, LSF_JOB, bjobs=not_found) is None


# -- Kubernetes --------------------------------------------------------------------------------------------------------

#: In the form that Kubernetes' API reference gives for core/v1 Pod; not recorded.
POD_JOB = Job("kubernetes", "", "lab/align-7", "6d0b1c1e-6d3c-4f0e-9d4e-3b2a1c0d9e8f")


def pod(phase: str, *states: dict[str, object], **metadata: str) -> str:
    return json.dumps(
        {
            "kind": "Pod",
            "metadata": {"name": "align-7", "namespace": "lab", "uid": POD_JOB.incarnation, **metadata},
            "status": {"phase": phase, "containerStatuses": [{"name": "main", "state": state} for state in states]},
        }
    )


ENDED: dict[str, object] = {"terminated": {"exitCode": 0, "finishedAt": "2026-11-21T14:02:11Z"}}


def test_kubernetes_a_pod_whose_containers_have_ended_is_dead() -> None:
    """What a pod held would be kept for ever."""
    verdict = ask(kubernetes, POD_JOB, kubectl=pod("Succeeded", ENDED, ENDED))
    assert verdict == (State.DEAD, "job lab/align-7 Succeeded at 2026-11-21T14:02:11Z")


@pytest.mark.parametrize("phase", ["Pending", "Running"])
def test_kubernetes_a_pod_that_runs_is_alive(phase: str) -> None:
    """A pod whose first container has ended would lose its data while the second reads."""
    verdict = ask(kubernetes, POD_JOB, kubectl=pod(phase, ENDED, {"running": {}}))
    assert verdict is not None
    assert verdict.state is State.ALIVE


@pytest.mark.parametrize(
    "said", [pod("Failed"), pod("Failed", {"running": {}}), pod("Unknown", ENDED), pod("Succeeded", ENDED, uid="x")]
)
def test_kubernetes_what_nobody_has_seen_end_is_unknown(said: str) -> None:
    """A pod on a node that is lost, or another pod of its name, would be taken for ended."""
    verdict = ask(kubernetes, POD_JOB, kubectl=said)
    assert verdict is not None
    assert verdict.state is State.UNKNOWN


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_kubernetes_without_a_unique_id_no_end_is_proof(phase: str) -> None:
    """A pod of a StatefulSet is made again under its name: the end of the first would be taken for the second's."""
    verdict = ask(kubernetes, POD_JOB._replace(incarnation=""), kubectl=pod(phase, ENDED))
    assert verdict is not None
    assert verdict.state is State.UNKNOWN


def test_kubernetes_no_answer_proves_nothing() -> None:
    """A pod that was deleted, or an API that is down, would be taken for an end."""
    assert ask(kubernetes, POD_JOB, kubectl="") is None
    for reply in (Reply(1, "", "Unable to connect to the server"), "oops", "[]", '{"kind":"Pod"}'):
        with pytest.raises(Unanswered):
            ask(kubernetes, POD_JOB, kubectl=reply)
