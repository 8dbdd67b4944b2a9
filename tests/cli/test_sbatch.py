"""`sbatch`, with commands in place of Slurm's that do what a test says. tests/hosts has it on a real cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest

from cli.tool import SC_DTOOL, Disk, Done, call, one_line_error, start
from sccache_dtool.liveness.batch.submit import Worker
from sccache_dtool.liveness.process import Proc, Process
from waiting import wait_until

#: Does what the script of its name says. Each call is a line in `calls`; in `view` is what the job was given.
_COMMAND = """\
#!/bin/sh
me=$(basename "$0")
{ printf %s "$me"; for word; do printf ' %s' "$word"; done | tr '\\n' '~'; echo; } >> "$SLURM/calls"
[ "$me" != sbatch ] || printf %s "$SC_DTOOL_VIEW" > "$SLURM/view"
[ ! -e "$SLURM/$me.sh" ] || . "$SLURM/$me.sh"
"""


class Slurm:
    """A cluster on which one job, 42, is submitted."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        (directory / "bin").mkdir(parents=True)
        for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct", "sinfo"):
            (directory / "bin" / name).write_text(_COMMAND)
            (directory / "bin" / name).chmod(0o755)
        monkeypatch.setenv("SLURM", str(directory))
        monkeypatch.setenv("PATH", f"{directory / 'bin'}{os.pathsep}{os.environ['PATH']}")
        for name in ("SBATCH_EXPORT", "SBATCH_WAIT"):
            monkeypatch.delenv(name, raising=False)
        self.does("sbatch", "echo 42")
        self.does("scontrol", 'case "$*" in *config) echo "ClusterName = lab";; esac')
        self.job_is("PENDING")

    def does(self, command: str, script: str) -> None:
        """What a command of Slurm's does: a shell script."""
        (self.directory / f"{command}.sh").write_text(script)

    def job_is(self, state: str, held: str = "") -> None:
        """What `squeue` says: of the job, and of jobs that are held, with their comments."""
        now = int(time.time())
        row = f"42|42|N/A|0|{state}|{now - 5}|N/A|{now}||lab|N/A|"
        self.does("squeue", f'case "$*" in *Comment*) echo {shlex.quote(held)};; *) echo "{row}";; esac')

    @property
    def calls(self) -> list[str]:
        """The calls so far that change something, without options."""
        path = self.directory / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not re.match("squeue|sacct|sinfo|scontrol (show|write)", line)]

    @property
    def submitted(self) -> list[str]:
        """The words with which `sbatch` was called, without the comment."""
        (line,) = [call for call in self.calls if call.startswith("sbatch")]
        before, _, after = line.partition(" --comment=sc-dtool")
        return (before + after.partition("]")[2]).split()[1:]

    @property
    def comments(self) -> list[str]:
        """The comments that the job got after its submission."""
        return [call.partition("Comment=")[2] for call in self.calls if call.startswith("scontrol update")]

    @property
    def view(self) -> Path:
        """What the job found in $SC_DTOOL_VIEW."""
        return Path((self.directory / "view").read_text())


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """A cluster in $PATH."""
    return Slurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job script that needs one item."""
    (tmp_path / "ref.fa").write_text("ACGT\n")
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n#SC {tmp_path}/ref.fa @in/ref.fa\ncat $SC_DTOOL_VIEW/in/ref.fa\n")
    return script


def test_the_data_is_there_when_the_job_is_released(slurm: Slurm, job: Path, disk: Disk) -> None:
    """A job would start before its data is complete, or read what can be removed."""
    look = (
        'case "$*" in *config) echo "ClusterName = lab";; release*) cat "$(cat $SLURM/view)"/in/* > $SLURM/seen;; esac'
    )
    slurm.does("scontrol", look)
    done = call("sbatch", job)
    assert (done.code, done.out) == (0, "Submitted batch job 42\n")
    assert "job 42 is held until its data is available" in done.err
    assert (slurm.directory / "seen").read_text() == "ACGT\n"
    assert [one.split()[:2] for one in slurm.calls[1:]] == [["scontrol", "release"], ["scontrol", "update"]]
    assert slurm.submitted == ["--hold", "--parsable", str(job)]
    assert slurm.comments == [""]
    (lease,) = disk.leases()
    assert lease.name.startswith("j")
    assert "Slurm job 42" in call("why", "ref.fa").out


@pytest.mark.parametrize(
    ("words", "out"),
    [
        ([], "Submitted batch job 42 on cluster far\n"),
        (["--parsable"], "42;far\n"),
        (["-Q"], ""),
        (["-Q", "--parsable"], "42;far\n"),
    ],
)
def test_the_output_is_that_of_sbatch(slurm: Slurm, job: Path, words: list[str], out: str) -> None:
    """A script that submits with `id=$(sbatch --parsable …)` would have to be changed."""
    slurm.does("sbatch", "echo '42;far'")
    done = call("sbatch", *words, job)
    assert (done.code, done.out) == (0, out)
    assert "scontrol -M far release 42" in slurm.calls


def test_options_and_arguments_reach_sbatch(slurm: Slurm, job: Path) -> None:
    """An option of the user's would be lost, or taken for one of this program."""
    words = ["-C", "fast", "-d", "afterok:7", "-n2", "-q", "long", "-v", "--array=1-5%2", "--comment", "mine"]
    assert call("sbatch", *words, "--keep-held", job, "-C", "--hold", "--keep-held").code == 0
    assert slurm.submitted == [*words, "--hold", "--parsable", str(job), "-C", "--hold", "--keep-held"]
    assert slurm.comments == []  # the user's stays


@pytest.mark.parametrize("how", ["option", "script", "priority"])
def test_a_job_that_is_to_stay_held_stays_held(slurm: Slurm, job: Path, how: str) -> None:
    """A job would start although its user wants to release it by hand."""
    if how == "script":
        job.write_text("#!/bin/sh\n#SBATCH -H\n" + job.read_text())
    done = call("sbatch", *{"option": ["-HJ", "x"], "priority": ["--priority=0"]}.get(how, []), job)
    assert (done.code, done.out) == (0, "Submitted batch job 42\n")
    assert "stays held, as requested" in done.err
    assert not any("release" in one for one in slurm.calls)
    assert os.listdir(slurm.view) == ["in"]


def test_a_script_on_standard_input(slurm: Slurm, job: Path) -> None:
    """A pipeline that writes its job scripts would have to keep them in files."""
    slurm.does("sbatch", "cat > $SLURM/script; echo 42")
    assert call("sbatch", "-N1", input=job.read_text()).out == "Submitted batch job 42\n"
    assert (slurm.directory / "script").read_text() == job.read_text()
    assert slurm.submitted == ["-N1", "--hold", "--parsable"]


def test_a_script_in_an_option(slurm: Slurm, job: Path) -> None:
    """The data of a job that is given with --wrap would not be fetched."""
    assert call("sbatch", f"--wrap={job.read_text()}").code == 0
    assert (slurm.view / "in" / "ref.fa").read_text() == "ACGT\n"


def test_a_job_without_data_is_simply_submitted(slurm: Slurm, job: Path, disk: Disk) -> None:
    """Whoever uses this command for all jobs would have those held that need nothing."""
    job.write_text("#!/bin/sh\ntrue\n#SC too late\n")
    slurm.does("sbatch", 'echo "$@"; cat > $SLURM/script; exit 7')
    done = call("sbatch", "--hold", "--keep-held", job, "-x")
    assert (done.code, done.out) == (7, f"--hold {job} -x\n")
    assert f"{job}:3: this #SC line is ignored, because it comes after the first command" in done.err
    assert "nothing to fetch" in done.err
    assert call("sbatch", input="#!/bin/sh\ntrue\n").code == 7
    assert (slurm.directory / "script").read_text() == "#!/bin/sh\ntrue\n"
    assert disk.left() == []


@pytest.mark.parametrize("option", ["--test-only", "--version", "--usage"])
def test_what_submits_no_job_is_passed_on(slurm: Slurm, job: Path, option: str) -> None:
    """A test of a job's options would leave a job in the queue."""
    slurm.does("sbatch", "echo said")
    assert call("sbatch", option, job) == Done(0, "said\n", "")
    assert slurm.calls == [f"sbatch {option} {job}"]


@pytest.mark.parametrize("option", ["--test-only", "--version", "-h"])
def test_a_script_that_submits_no_job_is_passed_on(slurm: Slurm, job: Path, disk: Disk, option: str) -> None:
    """A test of a job's options that its script asks for would end in an error, after data was fetched."""
    job.write_text(f"#!/bin/sh\n#SBATCH {option}\n" + job.read_text())
    slurm.does("sbatch", "cat > $SLURM/script; echo said")
    assert call("sbatch", "-N1", job) == Done(0, "said\n", "")
    assert slurm.calls == [f"sbatch -N1 {job}"]
    assert call("sbatch", input=job.read_text()) == Done(0, "said\n", "")
    assert (slurm.directory / "script").read_text() == job.read_text()
    assert disk.left() == []


@pytest.mark.parametrize("option", ["-Q", "--quiet"])
def test_a_quiet_script_is_refused(slurm: Slurm, job: Path, disk: Disk, option: str) -> None:
    """The job would be submitted and held for ever, because its id is not known."""
    job.write_text(f"#!/bin/sh\n#SBATCH {option}\n" + job.read_text())
    done = call("sbatch", job)
    assert done.code == 2
    assert "with #SBATCH --quiet, sbatch does not print the id of the job" in done.err
    assert "give --quiet on the command line instead" in done.err
    assert (slurm.calls, disk.left()) == ([], [])


@pytest.mark.parametrize("how", ["script", "variable"])
def test_it_waits_for_the_job_if_the_script_or_the_environment_says_so(
    slurm: Slurm, job: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The exit code of the job would be lost, because `sbatch` is ended when the job is released."""
    if how == "script":
        job.write_text("#!/bin/sh\n#SBATCH --wait\n" + job.read_text())
    else:
        monkeypatch.setenv("SBATCH_WAIT", "1")
    slurm.does("sbatch", "echo 42; while ! grep -q release $SLURM/calls; do sleep 0.05; done; exit 9")
    assert call("sbatch", job) == Done(9, "Submitted batch job 42\n", "job 42 is held until its data is available\n")


def test_options_in_a_script_are_those_of_the_job(slurm: Slurm, job: Path, disk: Disk) -> None:
    """An option in the script would be overridden, or printed as if it had not been given."""
    job.write_text("#!/bin/sh\n#SBATCH --parsable -a 1-5%2 -d afterok:7 --comment mine\n" + job.read_text())
    slurm.does("sbatch", "echo '42;far'")
    assert call("sbatch", job).out == "42;far\n"
    assert slurm.submitted == ["--hold", "--parsable", str(job)]
    assert slurm.comments == []  # the user's stays
    assert [lease.name[0] for lease in disk.leases()] == ["j"]


@pytest.mark.parametrize("how", ["option", "script"])
def test_relative_paths_refer_to_the_directory_of_the_job(slurm: Slurm, job: Path, tmp_path: Path, how: str) -> None:
    """The job would read another file than its script names; and `--resume` yet another one."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "ref.fa").write_text("there\n")
    head = f"#SBATCH -D {tmp_path}/there\n" if how == "script" else ""
    job.write_text(f"#!/bin/sh\n{head}#SC ./ref.fa @ref.fa\n")
    words = [f"--chdir={tmp_path}/there"] if how == "option" else []
    assert call("sbatch", *words, job).code == 0
    assert (slurm.view / "ref.fa").read_text() == "there\n"
    assert slurm.submitted == [*words, "--hold", "--parsable", str(job)]


@pytest.mark.no_cache
def test_a_job_that_is_refused_fetches_nothing(slurm: Slurm, job: Path, root: Path) -> None:
    """Data would be fetched, and kept, for a job that does not exist."""
    slurm.does("sbatch", "echo 'sbatch: error: Invalid partition' >&2; exit 3")
    done = call("sbatch", job)
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("sbatch: error: Invalid partition\nError: sbatch did not submit a job (exit code 3)")
    assert not root.exists()


def test_a_host_without_slurm(job: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disk: Disk) -> None:
    """The error would not say that the command must be run on another host."""
    monkeypatch.setenv("PATH", str(tmp_path))
    done = call("sbatch", job)
    assert done.code == 127
    assert one_line_error(done) == "Error: cannot run sbatch: No such file or directory"
    assert "on a host from which jobs are submitted" in done.err
    assert disk.left() == []


def test_wrong_lines_submit_nothing(slurm: Slurm, job: Path, disk: Disk) -> None:
    """A mistake in a job script would be found only after the job has waited in the queue."""
    job.write_text("#!/bin/sh\n#SC /data/a @../x\n#SC odd://x\n")
    done = call("sbatch", job)
    assert done.code == 2
    assert f"{job}:2: " in done.err
    assert f"{job}:3: " in done.err
    assert (slurm.calls, disk.left()) == ([], [])


def test_a_job_whose_data_cannot_be_fetched_is_cancelled(slurm: Slurm, job: Path, disk: Disk) -> None:
    """A job would wait in the queue for ever, or start without its data."""
    (job.parent / "ref.fa").unlink()
    done = call("sbatch", job)
    assert (done.code, done.out) == (12, "")
    assert "job 42 was cancelled, because its data is not available" in done.err
    assert slurm.calls[-1] == "scancel 42"
    assert slurm.comments[0].startswith("sc-dtool: ")
    assert "ref.fa" in slurm.comments[0]
    assert disk.left() == []


@pytest.mark.parametrize("script", ["exit 0", "echo -5", "echo Submitted"])
def test_an_answer_without_a_job_is_an_error(slurm: Slurm, job: Path, disk: Disk, script: str) -> None:
    """A script would go on as if its job were in the queue."""
    slurm.does("sbatch", script)
    done = call("sbatch", job)
    assert done.code == 1
    assert "sbatch did not submit a job" in done.err
    assert disk.left() == []


def test_a_job_that_cannot_be_cancelled_is_reported(slurm: Slurm, job: Path) -> None:
    """A job would stay held, and its user would believe that it is gone."""
    (job.parent / "ref.fa").unlink()
    slurm.does("scancel", "echo 'no controller' >&2; exit 1")
    done = call("sbatch", job)
    assert done.code == 12
    assert "job 42 stays held, because it could not be cancelled (scancel: no controller): scancel 42" in done.err


def held_row(worker: Worker, comment: str | None = None) -> str:
    return f"42|N/A|JobHeldUser|{comment or worker.comment}|"


def test_a_job_that_is_kept_held_can_be_resumed(slurm: Slurm, job: Path, disk: Disk) -> None:
    """A job that has waited for days would have to be submitted again, at the end of the queue."""
    (job.parent / "ref.fa").unlink()
    done = call("sbatch", "--keep-held", job)
    assert done.code == 12
    assert "job 42 stays held without its data; try again: sc-dtool sbatch --resume 42; or cancel it" in done.err
    assert not any(one.startswith("scancel") for one in slurm.calls)
    comment = slurm.comments[-1]
    view = slurm.view
    slurm.job_is("PENDING", f"JobHeldUser|{job.parent}|{comment}|")
    text = shlex.quote(job.read_text().replace(f"{job.parent}/", ""))  # relative to where it was submitted
    slurm.does("scontrol", f'case "$*" in *config) echo "ClusterName = lab";; write*42*) printf %s {text};; esac')
    assert call("sbatch", "--resume", "42").code == 12
    assert not any(one.startswith("scancel") or "release" in one for one in slurm.calls)
    (job.parent / "ref.fa").write_text("ACGT\n")
    assert call("sbatch", "--resume", "42") == Done(0, "", "job 42 is held until its data is available\n")
    assert (view / "in" / "ref.fa").read_text() == "ACGT\n"
    assert "scontrol release 42" in slurm.calls
    assert call("sbatch", "--resume", "42").code == 0  # killed before the release: the set is there
    assert len(disk.leases()) == 1


def test_a_made_up_session_does_not_release_a_job(slurm: Slurm, job: Path, disk: Disk) -> None:
    """Everybody can read the id in a job's comment: the job would read what somebody else has put there."""
    (job.parent / "ref.fa").unlink()
    assert call("sbatch", "--keep-held", job).code == 12
    slurm.job_is("PENDING", f"JobHeldUser|{job.parent}|{slurm.comments[-1]}|")
    slurm.does("scontrol", f'case "$*" in write*42*) cat {shlex.quote(str(job))};; esac')
    view = slurm.view
    (view.parent / "use").mkdir(parents=True)
    (view.parent / "now~1~0123456789abcdef").symlink_to("-")
    fields = {"format": 1, "holder": "j000000000000-000000000000", "dataSet": []}
    (view.parent / "data-1-0123456789abcdef-first.json").write_text(json.dumps(fields))
    (view / "in").mkdir(parents=True)
    (view / "in" / "ref.fa").write_text("forged\n")
    assert call("sbatch", "--resume", "42").code == 12
    assert "scontrol release 42" not in slurm.calls
    (job.parent / "ref.fa").write_text("ACGT\n")
    assert call("sbatch", "--resume", "42").code == 0
    assert (view / "in" / "ref.fa").read_text() == "ACGT\n"
    assert len(disk.leases()) == 1


def test_other_jobs_are_not_resumed(slurm: Slurm, job: Path) -> None:
    """A job that its user holds for a reason would be released, or one be worked for twice."""
    for held in ("", f"JobHeldUser|{job.parent}|mine|", f"Priority|{job.parent}|{myself().comment}|"):
        slurm.job_is("PENDING", held)
        done = call("sbatch", "--resume", "42")
        assert done.code == 2
        assert "is not a held job that sc-dtool sbatch has submitted" in done.err
    slurm.job_is("PENDING", f"JobHeldUser|{job.parent}|{myself().comment}|")
    done = call("sbatch", "--resume", "42")
    assert done.code == 14
    assert f"process {os.getpid()} is fetching the data of job 42" in done.err
    assert call("sbatch", "--resume", "42", job).code == 2
    assert slurm.calls == []


def myself() -> Worker:
    process = Proc().identify(os.getpid())
    assert process is not None
    return Worker("s0123456789abcdef", "login1", process)


def test_jobs_of_killed_commands_are_reported(slurm: Slurm, job: Path) -> None:
    """A job whose command was killed would stay held for ever, and nobody would know why."""
    worker = myself()
    assert worker.process is not None
    slurm.job_is("PENDING", held_row(worker))
    assert "is still held" not in call("sbatch", job).err
    slurm.job_is("PENDING", held_row(worker._replace(process=worker.process._replace(start=1))))
    done = call("sbatch", job)
    assert "warning: job 42 is still held: the sc-dtool sbatch on login1 that was to release it has ended" in done.err
    assert "continue: sc-dtool sbatch --resume 42; or cancel it: scancel 42" in done.err
    assert "no data is held for it" in done.err
    slurm.job_is("PENDING", "")
    view = Path(slurm.view)
    slurm.job_is("PENDING", held_row(Worker(view.parent.name, "login1", worker.process._replace(start=1))))
    done = call("reap")
    assert done.code == 0
    assert f"that was to release it has ended; 1 item held for it: {view};" in done.err
    slurm.job_is("PENDING", held_row(worker._replace(process=Process("other-boot", "1.0", 2, 3))))
    assert "that was to release it has perhaps ended (process 2 is of another host" in call("sbatch", job).err
    slurm.does("squeue", 'case "$*" in *Comment*) exit 1;; *) echo odd;; esac')
    assert "could not look for jobs" in call("-v", "sbatch", job).err


def test_a_job_that_ended_meanwhile_keeps_nothing(slurm: Slurm, job: Path, disk: Disk) -> None:
    """The data of a job that was cancelled while it was fetched would stay in use."""
    ended = (slurm.directory / "squeue.sh").read_text().replace("PENDING", "CANCELLED")
    (slurm.directory / "ended").write_text(ended)
    slurm.does(
        "scontrol",
        'case "$*" in *config) echo "ClusterName = lab";;'
        " release*) mv $SLURM/ended $SLURM/squeue.sh; echo 'Job has already finished' >&2; exit 1;; esac",
    )
    done = call("sbatch", job)
    assert done.code == 1
    assert "Error: job 42 ended before its data was available" in done.err
    assert (disk.leases(), disk.holders()) == ([], [])


def test_a_job_that_is_not_released_keeps_its_data(slurm: Slurm, job: Path, disk: Disk) -> None:
    """A job that is released later by hand would find its data removed."""
    slurm.does("scontrol", 'case "$*" in *config) echo "ClusterName = lab";; *) echo "busy" >&2; exit 1;; esac')
    done = call("sbatch", job)
    assert (done.code, done.out) == (1, "")
    assert "Error: job 42 could not be released: scontrol: busy" in done.err
    assert "let it start with scontrol release 42, or cancel it with scancel 42" in done.err
    assert len(disk.leases()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_command_cancels_its_job(slurm: Slurm, job: Path, disk: Disk, number: int) -> None:
    """Whoever presses Ctrl-C would leave a job that is held for ever."""
    os.mkfifo(slurm.directory / "go")
    slurm.does(
        "squeue", "echo > $SLURM/asked; read x < $SLURM/go"
    )  # asked for the job, to which the leases will belong
    slurm.does("sbatch", f"cp {slurm.directory}/wait $SLURM/squeue.sh; echo 42")
    (slurm.directory / "wait").write_text((slurm.directory / "squeue.sh").read_text())
    slurm.does("squeue", "exit 1")
    with start([SC_DTOOL, "sbatch", str(job)]) as process:
        wait_until((slurm.directory / "asked").exists, "the job is submitted")
        process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, out) == (128 + number, "")
    assert "job 42 was cancelled" in err
    assert slurm.calls[-1] == "scancel 42"
    assert disk.left() == []


def test_a_command_that_is_interrupted_while_it_submits_cancels_its_job(slurm: Slurm, job: Path) -> None:
    """A job would stay held that was submitted in the moment of a Ctrl-C."""
    slurm.does("sbatch", "trap 'echo 42; exit' TERM; touch $SLURM/begun; while :; do sleep 0.05; done")
    with start([SC_DTOOL, "sbatch", str(job)]) as process:
        wait_until((slurm.directory / "begun").exists, "sbatch runs")
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 143
    assert slurm.calls[-1] == "scancel 42"


def test_it_waits_for_the_job_if_sbatch_does(slurm: Slurm, job: Path) -> None:
    """With --wait, the job would never be released, or its exit code be lost."""
    slurm.does("sbatch", "echo 42; while ! grep -q release $SLURM/calls; do sleep 0.05; done; exit 9")
    done = call("sbatch", "--wait", job)
    assert (done.code, done.out) == (9, "Submitted batch job 42\n")
    slurm.does("scontrol", "exit 1")
    slurm.does("sbatch", "echo 42; echo $$ > $SLURM/pid; while :; do sleep 0.05; done")
    assert call("sbatch", "--wait", "--keep-held", job).code == 1
    pid = int((slurm.directory / "pid").read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "sbatch was ended")


@pytest.mark.parametrize("words", [["--export=NONE"], ["--export", "A,B=1"]])
def test_the_job_gets_the_variable_in_any_case(slurm: Slurm, job: Path, words: list[str]) -> None:
    """A job that is not given its user's environment would not find its data."""
    assert call("sbatch", *words, job).code == 0
    assert slurm.submitted[-2].startswith("--export=")
    assert slurm.submitted[-2].endswith("SC_DTOOL_VIEW")
