"""What Slurm's answers prove. They were recorded on Slurm 22.05.8 (tests/hosts/slurmlab.sh), with shorter names."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from liveness.asked import Commands
from sccache_dtool.clock import local
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.batch import slurm
from sccache_dtool.liveness.batch.query import Absent, Reply, Unanswered
from sccache_dtool.liveness.job import Job


def at(time: str) -> int:
    """Seconds since 1970, as Slurm's commands are asked to write times."""
    return int(datetime.fromisoformat(f"2026-11-21T{time}Z").timestamp())


JOB = Job("slurm", "lab", "4", "0", "", "n1", seen=at("10:40:53"))
SECOND = JOB._replace(incarnation="1", nodes="n2", seen=at("10:46:00"))

#: The trailing `|` is Slurm's. Fields: JobID ArrayJobID ArrayTaskID RestartCnt State SubmitTime StartTime EndTime
#: NodeList Cluster HetJobID
BEGUN = f"{at('10:40:50')}|{at('10:40:52')}"
RUNNING = f"4|4|N/A|0|RUNNING|{BEGUN}|{at('23:43:10')}|n1|lab|N/A|\n"
COMPLETED = f"4|4|N/A|0|COMPLETED|{BEGUN}|{at('10:40:55')}|n1|lab|N/A|\n"
CANCELLED = f"4|4|N/A|0|CANCELLED|{BEGUN}|{at('10:42:23')}|n1|lab|N/A|\n"
NODE_FAIL = f"4|4|N/A|0|NODE_FAIL|{BEGUN}|{at('10:43:39')}|n1|lab|N/A|\n"
BEING_REQUEUED = f"4|4|N/A|1|COMPLETING|{at('10:43:11')}|{at('10:45:11')}|NONE|n1|lab|N/A|\n"
REQUEUED = f"4|4|N/A|1|PENDING|{at('10:43:11')}|{at('10:45:11')}|NONE||lab|N/A|\n"
ARRAY = f"""\
2|1|1|0|COMPLETED|{BEGUN}|{at("10:40:55")}|n1|lab|N/A|
1|1|2|0|RUNNING|{BEGUN}|NONE|n1|lab|N/A|
"""
HETEROGENEOUS = f"""\
4|4|N/A|0|COMPLETED|{BEGUN}|{at("10:42:33")}|n1|lab|4|
6|6|N/A|0|RUNNING|{BEGUN}|NONE|n2|lab|4|
"""
NOT_KNOWN = Reply(1, "", "slurm_load_jobs error: Invalid job id specified\n")
NO_CONTROLLER = Reply(1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
NO_ACCOUNTING = Reply(1, "", "Slurm accounting storage is disabled\n")

#: JobIDRaw|JobID|State|Submit|Start|End|NodeList|Cluster
ACCOUNT = f"4|4|COMPLETED|{BEGUN}|{at('10:40:55')}|n1|lab\n"
ACCOUNT_REQUEUED = f"""\
4|4|REQUEUED|{BEGUN}|{at("10:43:11")}|n2|lab
4|4|PENDING|{at("10:43:11")}|Unknown|Unknown|None assigned|lab
"""
ACCOUNT_TWICE = f"""\
4|4|NODE_FAIL|{BEGUN}|{at("10:43:39")}|n1|lab
4|4|COMPLETED|{at("10:43:39")}|{at("10:45:39")}|{at("10:50:00")}|n2|lab
"""

ANSWERING = "n1|idle|\nn2|allocated|\n"
SILENT = "n1|down*|\nn2|idle|\n"


def ended(word: str, time: str) -> str:
    return f"job 4 {word} at {local(at(f'{time}:00'))}"


def ask(job: Job = JOB, nodes: str = ANSWERING, account: object = NO_ACCOUNTING, **replies: object) -> Verdict | None:
    verdicts: dict[Job, Verdict] = {}
    slurm.ask([job], Commands(sinfo=nodes, sacct=account, **replies), verdicts)  # type: ignore[arg-type]
    return verdicts.get(job)


def state(*arguments: object, **replies: object) -> State | None:
    verdict = ask(*arguments, **replies)  # type: ignore[arg-type]
    return verdict and verdict.state


# -- what the controller says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", sorted(slurm._LIVING))
def test_a_job_that_has_or_will_have_processes_is_alive(word: str) -> None:
    """A job that is suspended, waits, or is being ended would lose its data."""
    assert ask(squeue=RUNNING.replace("RUNNING", word)) == (State.ALIVE, f"job 4 is {word}")


@pytest.mark.parametrize("word", sorted(slurm._ENDED))
def test_every_end_of_a_job_is_proof(word: str) -> None:
    """What jobs held that ended otherwise than by themselves would be kept for ever."""
    assert ask(squeue=COMPLETED.replace("COMPLETED", word)) == (State.DEAD, ended(word, "10:40"))


@pytest.mark.parametrize("word", ["REVOKED", "SOMETHING_NEW", "", "running"])
def test_a_state_that_nobody_knows_is_no_proof(word: str) -> None:
    """A new release of Slurm with a new state would make cleaners delete the data of running jobs."""
    assert state(squeue=RUNNING.replace("RUNNING", word)) is State.UNKNOWN


def test_a_job_that_is_started_again_ends_the_leases_of_its_first_start() -> None:
    """Each start of a job that is preempted again and again would leave its leases behind."""
    assert state(squeue=REQUEUED) is State.DEAD
    assert state(JOB._replace(incarnation="1"), squeue=REQUEUED) is State.ALIVE
    assert state(JOB._replace(incarnation=""), squeue=REQUEUED) is State.ALIVE


def test_a_job_that_is_being_requeued_has_processes_yet() -> None:
    """A job that tidies up, having been preempted, would lose the data that it reads."""
    assert state(squeue=BEING_REQUEUED) is State.ALIVE


def test_fewer_restarts_than_ours_mean_another_job() -> None:
    """When a cluster begins its numbers again, the end of another job would be taken for ours."""
    assert state(JOB._replace(incarnation="2"), squeue=COMPLETED) is State.UNKNOWN
    assert state(JOB._replace(incarnation="2"), squeue=RUNNING) is State.UNKNOWN


def test_a_job_of_another_cluster_is_not_ours() -> None:
    """A login node that talks to another cluster would take that one's jobs for ours."""
    assert state(JOB._replace(cluster="other"), squeue=COMPLETED) is State.UNKNOWN
    assert state(JOB._replace(cluster="other"), squeue=COMPLETED, account=ACCOUNT) is State.UNKNOWN


def test_where_squeue_names_no_cluster_the_controller_is_asked() -> None:
    """On releases whose squeue leaves it empty no job could be told, or one of another cluster be taken for ours."""
    blank = COMPLETED.replace("|lab|", "|N/A|")
    config = "AuthType                = auth/munge\nClusterName             = {}\n"
    assert state(squeue=blank, scontrol=config.format("lab")) is State.DEAD
    assert state(squeue=blank, scontrol=config.format("other")) is State.UNKNOWN
    with pytest.raises(Unanswered):
        ask(squeue=blank, scontrol=Reply(1, "", "no controller"))


# -- numbers that are used again ------------------------------------------------------------------------------------

NOTED = JOB._replace(started=str(at("10:40:52")))
ANYONE = JOB._replace(incarnation="", nodes="")  # --holder slurm:4
YEAR = 365 * 86_400


def earlier(text: str, seconds: int = YEAR) -> str:
    """The same of a job that was there so much earlier (or later)."""
    return re.sub(r"[0-9]{10}", lambda match: str(int(match[0]) - seconds), text)


@pytest.mark.parametrize("job", [JOB, NOTED, ANYONE], ids=["in it", "its start noted", "named"])
def test_the_end_of_another_job_of_its_number_is_no_proof(job: Job) -> None:
    """When numbers begin again, or two clusters have one name, a running job would lose its data by another's end."""
    assert state(job, squeue=COMPLETED) is State.DEAD
    assert state(job, squeue=NOT_KNOWN, account=ACCOUNT) is State.DEAD
    for other in (YEAR, 900, -900, -YEAR):
        assert state(job, squeue=earlier(COMPLETED, other)) is State.UNKNOWN
        assert state(job, squeue=NOT_KNOWN, account=earlier(ACCOUNT, other)) is State.UNKNOWN
    verdict = ask(job, squeue=earlier(COMPLETED))
    assert verdict is not None
    assert "its number was reused" in verdict.evidence


def test_the_start_that_was_noted_must_be_the_very_one() -> None:
    """Of two jobs that began within minutes, the end of one would be taken for the other's."""
    assert state(NOTED, squeue=earlier(COMPLETED, 1)) is State.UNKNOWN
    assert state(NOTED, squeue=NOT_KNOWN, account=earlier(ACCOUNT, -1)) is State.UNKNOWN
    assert state(JOB, squeue=earlier(COMPLETED, 1)) is State.DEAD


def test_among_several_accounts_that_of_the_noted_start_decides() -> None:
    """What a job held would be kept for ever, because years ago another had its number; or end with that other's."""
    both = earlier(ACCOUNT.replace("COMPLETED", "FAILED")) + ACCOUNT
    assert ask(NOTED, squeue=NOT_KNOWN, account=both) == (State.DEAD, ended("COMPLETED", "10:40"))
    assert state(ANYONE, squeue=NOT_KNOWN, account=both) is State.DEAD
    assert state(JOB, squeue=NOT_KNOWN, account=both) is State.UNKNOWN  # which of them is its start 0?


def test_a_requeue_from_before_the_lease_is_another_jobs() -> None:
    """A job of another cluster that was requeued once would end the leases of ours, which was not."""
    assert state(squeue=REQUEUED) is State.DEAD
    assert state(squeue=earlier(REQUEUED)) is State.UNKNOWN
    assert state(squeue=REQUEUED.replace(str(at("10:43:11")), "N/A")) is State.UNKNOWN


def test_without_the_time_of_the_lease_no_end_is_proof() -> None:
    """A record that does not say when it was made would be judged by a number alone."""
    for job in (JOB._replace(seen=0.0), ANYONE._replace(seen=0.0)):
        assert state(job, squeue=COMPLETED) is State.UNKNOWN
        assert state(job, squeue=RUNNING) is State.ALIVE


@pytest.mark.parametrize("word", ["Unknown", "N/A", "", "2026-11-21T10:40:55"])
def test_an_end_without_a_time_is_no_proof(word: str) -> None:
    """A release of Slurm that writes times in another way would let every number do for proof."""
    assert state(squeue=COMPLETED.replace(str(at("10:40:55")), word)) is State.UNKNOWN


def test_jobs_that_are_hidden_are_asked_for() -> None:
    """Jobs in a hidden partition would be unknown for ever."""
    commands = Commands(squeue=RUNNING)
    slurm.ask([JOB], commands, {})
    assert "-a" in commands.asked[0]


# -- arrays ------------------------------------------------------------------------------------------------------------


def test_tasks_of_an_array_are_told_apart() -> None:
    """The end of one task would end the leases of another; the last one has the number of the whole array."""
    assert state(Job("slurm", "lab", "1_1", "0", "2", seen=at("10:40:53")), squeue=ARRAY) is State.DEAD
    assert state(Job("slurm", "lab", "1_2", "0", "1", seen=at("10:40:53")), squeue=ARRAY) is State.ALIVE
    assert state(Job("slurm", "lab", "1_1", seen=at("10:40:53")), squeue=ARRAY) is State.DEAD
    assert state(Job("slurm", "lab", "1_2", seen=at("10:40:53")), squeue=ARRAY) is State.ALIVE


def test_an_array_lives_as_long_as_one_of_its_tasks() -> None:
    """A lease for all tasks would end with the first."""
    assert state(Job("slurm", "lab", "1", seen=at("10:40:53")), squeue=ARRAY) is State.ALIVE
    assert state(Job("slurm", "lab", "1", seen=at("10:40:53")), squeue=ARRAY.replace("RUNNING", "FAILED")) is State.DEAD


def test_a_job_submitted_by_a_task_is_known_by_its_own_number() -> None:
    """The command sbatch hands a task's variables on: the job would be judged by the task that submitted it."""
    assert state(Job("slurm", "lab", "1_1", "0", "4", seen=at("10:40:53")), squeue=RUNNING) is State.ALIVE


def test_a_heterogeneous_job_lives_as_long_as_one_of_its_parts() -> None:
    """The part with the script ends first, and the others would lose their data."""
    assert state(JOB, squeue=HETEROGENEOUS) is State.ALIVE


# -- nodes that do not answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [REQUEUED, NODE_FAIL, CANCELLED])
@pytest.mark.parametrize("nodes", [SILENT, "n2|idle|\n", ""])
def test_an_end_that_the_node_has_not_seen_is_no_proof(listed: str, nodes: str) -> None:
    """Slurm gives a job up whose node hangs; its processes run on there, and would lose their data."""
    verdict = ask(squeue=listed, nodes=nodes)
    assert verdict is not None
    assert verdict.state is State.UNKNOWN
    assert "node n1 does not respond" in verdict.evidence


def test_an_end_that_the_node_has_reported_is_proof() -> None:
    """What a job held that completed would be kept for as long as its node is switched off afterwards."""
    commands = Commands(squeue=COMPLETED)
    slurm.ask([JOB], commands, {})
    assert commands.programs() == ["squeue"]


def test_a_job_that_ended_elsewhere_after_its_node_failed_is_no_proof_for_its_first_start() -> None:
    """A first start that hangs on its node would lose its data when the second has completed on another."""
    second = f"4|4|N/A|1|COMPLETED|{at('10:43:39')}|{at('10:45:39')}|{at('10:50:00')}|n2|lab|N/A|\n"
    assert state(squeue=second, nodes=SILENT) is State.UNKNOWN
    assert state(squeue=second, nodes=ANSWERING) is State.DEAD
    assert state(SECOND, squeue=second, nodes=SILENT) is State.DEAD


def test_where_the_nodes_are_not_known_nothing_is_proved() -> None:
    """A job on so many nodes that they were not noted would be taken for ended on all."""
    assert state(JOB._replace(nodes=""), squeue=REQUEUED) is State.UNKNOWN


def test_a_failing_sinfo_is_no_proof() -> None:
    """The leases of a job would be ended although nobody knows whether its node answers."""
    verdicts: dict[Job, Verdict] = {}
    with pytest.raises(Unanswered):
        slurm.ask([JOB], Commands(squeue=REQUEUED, sinfo=Reply(1, "", "no")), verdicts)
    assert verdicts[JOB].state is State.UNKNOWN


MANY = "4|4|N/A|0|{}|" + BEGUN + f"|{at('10:40:55')}|n[1-2]|lab|N/A|\n"


@pytest.mark.parametrize("word", sorted(slurm._ENDED))
def test_a_job_on_several_nodes_has_ended_where_all_of_them_answer(word: str) -> None:
    """The batch script's node reports its own end only: what reads on another, that hangs, would lose its data."""
    job = JOB._replace(nodes="n[1-2]")
    verdict = ask(job, squeue=MANY.format(word), nodes="n1|idle|\nn2|down*|\n")
    assert verdict is not None
    assert (verdict.state, "node n2 does not respond" in verdict.evidence) == (State.UNKNOWN, True)
    assert state(job, squeue=MANY.format(word), nodes="n1|idle|\n") is State.UNKNOWN
    assert state(job, squeue=MANY.format(word)) is State.DEAD
    shrunk = COMPLETED.replace("COMPLETED", word)  # --no-kill: n2, which is silent, is taken out of the list
    assert state(job, squeue=shrunk, nodes="n1|idle|\nn2|down*|\n") is State.UNKNOWN
    account = ACCOUNT.replace("COMPLETED", word).replace("|n1|", "|n[1-2]|")
    assert state(job, squeue=NOT_KNOWN, account=account, nodes="n1|idle|\nn2|down*|\n") is State.UNKNOWN
    assert state(job, squeue=NOT_KNOWN, account=account) is State.DEAD


@pytest.mark.parametrize(
    ("word", "answers"),
    [
        ("idle", True),
        ("mixed", True),
        ("draining", True),
        ("drained", True),
        ("idle~", True),
        ("down", False),
        ("down*", False),
        ("idle*", False),
        ("drained*", False),
        ("down~", False),
        ("unknown", False),
        ("unk*", False),
        ("error", False),
        ("fail", False),
        ("", True),
    ],
)
def test_which_nodes_may_not_have_answered(word: str, answers: bool) -> None:
    """An administrator who sets a node down does not ask it: what goes on there would lose its data."""
    assert state(squeue=CANCELLED, nodes=f"n1|{word}|\n") is (State.DEAD if answers else State.UNKNOWN)


def test_a_job_that_ran_on_nodes_that_are_not_listed_is_no_proof() -> None:
    """A job whose node was taken out of the cluster would be taken for one that never ran."""
    nowhere = NODE_FAIL.replace("|n1|", "||")
    assert state(squeue=nowhere, nodes=SILENT) is State.UNKNOWN
    assert state(squeue=nowhere) is State.DEAD
    assert state(JOB._replace(nodes=""), squeue=nowhere) is State.UNKNOWN
    assert state(ANYONE, squeue=nowhere) is State.DEAD  # cancelled in the queue


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("n1", ["n1"]),
        ("n1,login", ["n1", "login"]),
        ("n[1-3,7],m2", ["n1", "n2", "n3", "n7", "m2"]),
        ("n[08-10]", ["n08", "n09", "n10"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("gpu-[1-2].site", ["gpu-1.site", "gpu-2.site"]),
        ("", []),
        ("n[1-", None),
        ("n[a-b]", None),
        ("n[3-1]", None),
        ("n[0-999999999]", None),
        ("n 1", None),
        ("$(reboot)", None),
    ],
)
def test_lists_of_nodes_are_read_as_slurm_writes_them(text: str, nodes: list[str] | None) -> None:
    """A node that does not answer would be overlooked."""
    assert slurm.expand(text) == nodes


# -- what the controller has forgotten ---------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [NOT_KNOWN, ""])
def test_absent_is_not_dead(queue: object) -> None:
    """A job that is hidden from this user, or forgotten, would be taken for ended."""
    assert state(squeue=queue) is State.UNKNOWN
    assert state(squeue=queue, account="") is State.UNKNOWN
    assert state(squeue=queue, account=Absent("there is no sacct on this host")) is State.UNKNOWN


def test_the_accounting_proves_what_the_controller_has_forgotten() -> None:
    """What a job held would be kept for ever, five minutes after its end."""
    assert ask(squeue=NOT_KNOWN, account=ACCOUNT) == (State.DEAD, ended("COMPLETED", "10:40"))
    assert state(squeue=NOT_KNOWN, account=ACCOUNT.replace("COMPLETED", "CANCELLED by 1001")) is State.DEAD


def test_the_accounting_is_asked_only_for_what_the_controller_does_not_know() -> None:
    """Every cleaner would burden the database with the running jobs of all users."""
    commands = Commands(squeue=RUNNING, sacct=ACCOUNT.replace("4|4|", "5|5|"))
    verdicts: dict[Job, Verdict] = {}
    slurm.ask([JOB, JOB._replace(id="5")], commands, verdicts)
    assert [verdict.state for verdict in verdicts.values()] == [State.ALIVE, State.DEAD]
    assert [argv[argv.index("-j") + 1] for argv in commands.asked] == ["4,5", "5"]


@pytest.mark.parametrize("word", ["RUNNING", "PENDING", "REQUEUED", "SOMETHING"])
def test_what_only_the_accounting_takes_for_running_is_not_known(word: str) -> None:
    """A job that the controller hides would be told dead, or one that it lost alive for ever without a word."""
    assert state(squeue=NOT_KNOWN, account=ACCOUNT.replace("COMPLETED", word)) is State.UNKNOWN


def test_each_start_has_an_account_of_its_own() -> None:
    """The end of the first start would be taken for that of the second, which runs."""
    first, second = JOB, SECOND
    assert state(second, squeue=NOT_KNOWN, account=ACCOUNT_REQUEUED) is State.UNKNOWN
    assert ask(second, squeue=NOT_KNOWN, account=ACCOUNT_TWICE) == (State.DEAD, ended("COMPLETED", "10:50"))
    assert ask(first, squeue=NOT_KNOWN, account=ACCOUNT_TWICE) == (State.DEAD, ended("NODE_FAIL", "10:43"))
    assert state(first, squeue=NOT_KNOWN, account=ACCOUNT_TWICE, nodes=SILENT) is State.UNKNOWN
    assert state(JOB._replace(incarnation="2"), squeue=NOT_KNOWN, account=ACCOUNT_TWICE) is State.UNKNOWN


def test_a_lease_for_any_start_ends_with_the_last() -> None:
    """A lease that was taken from the login node would end with the first requeue."""
    anyone = JOB._replace(incarnation="", nodes="")
    assert state(anyone, squeue=NOT_KNOWN, account=ACCOUNT_REQUEUED) is State.UNKNOWN
    assert state(anyone, squeue=NOT_KNOWN, account=ACCOUNT_TWICE) is State.DEAD


# -- no answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "queue",
    [NO_CONTROLLER, Reply(1, "", "slurm_load_jobs error: Protocol authentication error\n"), "4|4|RUNNING\n", "oops\n"],
)
def test_a_question_without_an_answer_proves_nothing(queue: object) -> None:
    """While a controller or munge is down every job would seem to have ended."""
    commands = Commands(squeue=queue, sacct=ACCOUNT, sinfo=ANSWERING)  # type: ignore[arg-type]
    verdicts: dict[Job, Verdict] = {}
    with pytest.raises(Unanswered):
        slurm.ask([JOB], commands, verdicts)
    assert verdicts == {}
    assert "sacct" not in commands.programs()


def test_what_squeue_said_stands_when_sacct_fails() -> None:
    """A database that is down would keep the leases of jobs that the controller knows to have ended."""
    verdicts: dict[Job, Verdict] = {}
    with pytest.raises(Unanswered):
        slurm.ask([JOB, JOB._replace(id="5")], Commands(squeue=COMPLETED, sacct=Reply(1, "", "down")), verdicts)
    assert verdicts == {JOB: Verdict(State.DEAD, ended("COMPLETED", "10:40"))}


def test_the_cluster_of_a_queued_job_is_found() -> None:
    """`--holder slurm:4` would take a lease that nothing in the job finds again."""
    assert slurm.place("4", Commands(squeue=RUNNING)) == "lab"
    assert slurm.place("4", Commands(squeue=NOT_KNOWN, scontrol="ClusterName = lab\n")) == "lab"
    with pytest.raises(Unanswered):
        slurm.place("4", Commands(squeue=NO_CONTROLLER))
