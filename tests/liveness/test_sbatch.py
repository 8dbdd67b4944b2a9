"""The command line of `sbatch`: where the script begins, and what options say. Compared with `sbatch` 22.05.8."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from liveness.asked import Commands
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.liveness.batch import sbatch, submit
from sccache_dtool.liveness.batch.query import Absent, Reply, Unanswered
from sccache_dtool.liveness.batch.submit import Held, Worker
from sccache_dtool.liveness.process import Process

OWN = {"--keep-held": False, "--max-rate": True}


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        ("job.sh -N2 --hold", "job.sh -N2 --hold"),
        ("-N2 job.sh a", "job.sh a"),
        ("-N 2 -J name job.sh", "job.sh"),
        ("-Jname job.sh", "job.sh"),
        ("-HJ name job.sh", "job.sh"),
        ("-HJname job.sh", "job.sh"),
        ("-k job.sh", "job.sh"),
        ("--hold job.sh", "job.sh"),
        ("--time 1:00 job.sh", "job.sh"),
        ("--time=1:00 job.sh", "job.sh"),
        ("--exclusive job.sh", "job.sh"),
        ("--exclusive=user job.sh", "job.sh"),
        ("--requeue job.sh", "job.sh"),
        ("--dep afterok:1 job.sh", "job.sh"),
        ("--parsa job.sh", "job.sh"),
        ("--plugin=x job.sh", "job.sh"),
        ("--plugin --hold job.sh", "job.sh"),
        ("-N1 : -N2 -n 3 job.sh : x", "job.sh : x"),
        ("-N1 -- -odd.sh -x", "-- -odd.sh -x"),
        ("--keep-held -N1 --max-rate 5MB job.sh --keep-held", "job.sh --keep-held"),
        ("-N1 --max-rate=5MB job.sh", "job.sh"),
        ("--array 1-5%2", ""),
        ("--array", ""),
    ],
)
def test_the_script_is_found_behind_the_options(line: str, rest: str) -> None:
    """The value of an option would be taken for the script, or an argument of the job for an option."""
    words = sbatch.parse(line.split(), OWN)
    assert words.rest == rest.split()
    assert sorted([*words.own, *words.others]) == sorted(line.split())


def test_an_unknown_option_that_may_have_a_value_is_refused() -> None:
    """The data of the wrong script would be fetched if a site's own option of sbatch takes a value."""
    with pytest.raises(UsageError, match=r"unclear whether job.sh is its value") as raised:
        sbatch.parse(["--plugin", "job.sh"])
    assert "#SBATCH --plugin" in str(raised.value.hint)


def test_options_are_passed_on_as_they_are() -> None:
    """A job would be submitted with other options than its user gave."""
    words = sbatch.parse("-vJ name --keep-held --mem=5G : -n 2 job.sh -Q".split(), OWN)
    assert words.line("--hold") == "sbatch -vJ name --mem=5G --hold : -n 2 job.sh -Q".split()
    assert words.others == "-vJ name --mem=5G : -n 2 job.sh -Q".split()


@pytest.mark.parametrize("line", ["-Q job.sh", "--quiet job.sh", "--qui job.sh"])
def test_quiet_is_left_out_of_the_submission(line: str) -> None:
    """`sbatch --quiet` prints no id: the job would stay held for ever."""
    words = sbatch.parse(line.split())
    assert words.line() == ["sbatch", "job.sh"]
    assert "quiet" in words.given
    assert sbatch.parse(["-HQN1", "job.sh"]).line() == ["sbatch", "-HN1", "job.sh"]


SCRIPT = """\
#!/bin/bash
#SBATCH --hold -J 'a b'  # a comment
  # another one
#SC https://example.org/ref.tar tar @ref

#SCALE is no such line
#SBATCH --export=NONE "unfinished
#SC\t/data/x
set -e
#SBATCH --parsable
#SC too late
"""


def test_lines_of_a_script_count_up_to_its_first_command() -> None:
    """Text of a here-document would be fetched; or a line that is ignored would be noticed only when the job fails."""
    assert sbatch.items(SCRIPT) == ([(4, " https://example.org/ref.tar tar @ref"), (8, "\t/data/x")], [11])
    assert sbatch.options_in(SCRIPT) == {"hold": "", "J": "a b"}


@pytest.mark.parametrize(
    ("given", "in_script", "environ", "added"),
    [
        ({}, {}, {}, []),
        ({"export": "ALL"}, {"export": "NONE"}, {}, []),
        ({"export": "ALL,A=1"}, {}, {}, []),
        ({"export": "NONE"}, {}, {}, ["--export=VIEW"]),
        ({"export": "A,B=1"}, {}, {}, ["--export=A,B=1,VIEW"]),
        ({}, {"export": "none"}, {}, ["--export=VIEW"]),
        ({}, {"export": "ALL"}, {"SBATCH_EXPORT": "NONE"}, ["--export=VIEW"]),
        ({"export": "ALL"}, {}, {"SBATCH_EXPORT": "NONE"}, []),
        ({"export-file": "x"}, {}, {}, ["--export=VIEW=/v"]),
        ({"export-file": "x", "export": "A"}, {}, {}, ["--export=A,VIEW=/v"]),
    ],
)
def test_the_variable_reaches_the_job(
    given: dict[str, str], in_script: dict[str, str], environ: dict[str, str], added: list[str]
) -> None:
    """A job that is not given its user's environment would not find its data."""
    assert sbatch.export(given, in_script, {**environ, "VIEW": "/v"}, "VIEW") == added


def test_an_export_that_hides_the_variable_is_refused() -> None:
    """The job would wait for its data, and then fail because it does not find it."""
    with pytest.raises(UsageError, match=r"--export=NIL, the job does not get \$VIEW"):
        sbatch.export({"export": "nil"}, {}, {}, "VIEW")


def test_the_script_is_the_one_that_sbatch_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data of another script of the same name would be fetched."""
    for directory in ("here", "there", "bin"):
        (tmp_path / directory).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    environ = {"PATH": str(tmp_path / "bin")}

    def found(*words: str) -> str:
        return os.path.relpath(os.path.realpath(sbatch.find(sbatch.parse(words), environ)), tmp_path)

    with pytest.raises(UsageError, match=r"there is no script job.sh"):
        found("job.sh")
    for directory in ("bin", "here", "there"):
        (tmp_path / directory / "job.sh").touch()
        options = ["-D", "../there"] if directory == "there" else []
        assert found(*options, "job.sh") == f"{directory}/job.sh"
    assert found("-D", "../there", "./job.sh") == "here/job.sh"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is not a regular file"):
        found(str(tmp_path / "pipe"))


# -- the job -----------------------------------------------------------------------------------------------------------

WORKER = Worker("s0123456789abcdef", "login1", Process("b1f0-7a", "4026531836.0", 4711, 88))


def test_a_comment_tells_who_works_for_the_job() -> None:
    """A job whose command was killed would not be found."""
    assert submit.worker_in(WORKER.comment) == WORKER
    assert submit.worker_in(WORKER._replace(process=None).comment) == WORKER._replace(process=None)
    assert submit.worker_in("sc-dtool: cannot fetch x [s0123456789abcdef]") == Worker(WORKER.session, "", None)
    for other in ("", "(null)", "for lab [s0123456789abcdef]", "sc-dtool is fine"):
        assert submit.worker_in(other) is None


def test_held_jobs_are_found() -> None:
    """Jobs that others hold would be reported, the parts of one job as several, or none at all."""
    rows = (
        f"20|19|JobHeldUser|{WORKER.comment}|\n19|19|JobHeldUser|{WORKER.comment}|\n"
        f"18|N/A|Dependency|{WORKER.comment}|\n17|N/A|JobHeldUser|(null)|\n16|N/A|JobHeldUser|a|b|\n"
    )
    assert submit.held("ada", Commands(squeue=rows)) == [Held("19", WORKER)]
    for reply in (Absent("no squeue"), Reply(1, "", "no controller"), "odd\n"):
        with pytest.raises(Unanswered):
            submit.held("ada", Commands(squeue=reply))


def test_a_command_of_another_cluster_goes_there() -> None:
    """A job of the same number on this cluster would be released, or cancelled."""
    slurm = Commands(scontrol="", scancel="")
    submit.release("7", "far", slurm)
    submit.cancel("7", "far", slurm)
    submit.comment("7", "far", f"two\nlines {'x' * 1000}", " [s]", slurm)
    assert [argv[:3] for argv in slurm.asked] == [
        [program, "-M", "far"] for program in ("scontrol", "scancel", "scontrol")
    ]
    assert slurm.asked[2][5].startswith("Comment=two lines x")
    assert slurm.asked[2][5].endswith("x [s]")
    assert len(slurm.asked[2][5]) < 500


def test_an_sbatch_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    """A controller that hangs would hang every script that submits jobs."""
    ended = tmp_path / "ended"
    script = f"trap 'touch {ended}; exit 1' TERM; echo 'sbatch: a banner'; while :; do sleep 0.1; done"
    with pytest.raises(CacheError, match="has not answered for 0 s") as raised:
        submit.submit(["bash", "-c", script], os.environ, None, 0.2)
    assert "squeue --me" in str(raised.value.hint)
    assert ended.exists()


def test_lines_before_the_id_are_no_obstacle() -> None:
    """On a site whose `sbatch` greets its users, no job could be submitted."""
    submission = submit.submit(["printf", "welcome\n42;far\n"], os.environ, None)
    assert (submission.id, submission.cluster) == ("42", "far")
    assert (submission.printed, submission.sentence) == (
        "welcome\n42;far",
        "welcome\nSubmitted batch job 42 on cluster far",
    )
    assert submission.end(waits=False) == 0
