"""Submits jobs to Slurm that are held until their data is available, then releases or cancels them.

Such a job has a comment that says which process works for it, unless its user gave it another comment. If that process
is killed, the job stays held, and is found by its comment.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

from sccache_dtool.errors import CacheError, Exit
from sccache_dtool.liveness.batch.query import Run, Unanswered, answer, not_parsed, run_command
from sccache_dtool.liveness.process import Process

#: Seconds that `sbatch` may take. It tries again by itself, for some minutes, while the controller is busy.
SUBMIT_TIMEOUT = 600.0

#: Seconds that other commands may take. Slurm itself waits for its controller for ten, or as long as the site says.
_TIMEOUT = 60.0

#: Seconds for `sbatch` to end when the id is known, or when it is told to.
_END_TIMEOUT = 10.0

#: Longest comment, in characters.
_LONGEST_COMMENT = 400

_run = functools.partial(run_command, timeout=_TIMEOUT)

_ID = re.compile(r"(?P<id>[0-9]+)(?:;(?P<cluster>\S+))?")
_WORKER = re.compile(r"\[(?P<session>s[0-9a-f]{16})(?: (?P<boot>\S+) (?P<space>\S+) (?P<pid>\d+) (?P<start>\d+))?\]$")


class NotSubmitted(CacheError):
    """`sbatch` did not submit a job; it has printed the reason on standard error."""

    def __init__(self, code: int) -> None:
        super().__init__(f"sbatch did not submit a job (exit code {code}), so nothing was fetched")
        self.code = code


class Worker(NamedTuple):
    """Who fetches the data of a job, as its comment says."""

    session: str
    host: str
    process: Process | None

    @property
    def comment(self) -> str:
        """The comment of the job."""
        process = "".join(f" {part}" for part in self.process or ())
        return f"sc-dtool is fetching the data of this job on {self.host} [{self.session}{process}]"


def worker_in(comment: str) -> Worker | None:
    """The worker that a comment names; None if it does not name one."""
    match = _WORKER.search(comment)
    if match is None or not comment.startswith("sc-dtool"):
        return None
    host = re.search(r" on (\S+) \[", comment)
    process = match["boot"] and Process(match["boot"], match["space"], int(match["pid"]), int(match["start"]))
    return Worker(match["session"], host[1] if host else "", process or None)


class Submission:
    """A job that was submitted held, and the `sbatch` that did it, which still runs if it waits for the job's end."""

    def __init__(self, process: subprocess.Popen[bytes], id: str, cluster: str, printed: str) -> None:
        self._process = process
        self.id = id
        self.cluster = cluster  # empty if `sbatch` did not print it: the one that Slurm's commands ask by themselves
        self.printed = printed  # what `sbatch` printed up to the id

    @property
    def sentence(self) -> str:
        """What `sbatch` prints without --parsable."""
        *others, _ = self.printed.split("\n")
        where = f" on cluster {self.cluster}" if self.cluster else ""
        return "\n".join([*others, f"Submitted batch job {self.id}{where}"])

    def end(self, *, waits: bool) -> int:
        """The exit code of `sbatch`. `waits`: it was told to wait for the end of the job, however long that takes."""
        with self._process:
            try:
                return _exit_code(self._process.wait(None if waits else _END_TIMEOUT))
            except subprocess.TimeoutExpired:
                return 0  # it has submitted the job
            finally:
                self.abandon()

    def abandon(self) -> None:
        """End `sbatch`, which may wait for the end of the job."""
        _kill(self._process)


def pass_on(words: Sequence[str], stdin: IO[bytes] | None) -> int:
    """Run `sbatch` with these words, and nothing else; its exit code."""
    with _start(["sbatch", *words], stdin=stdin) as process:
        return _exit_code(process.wait())


def _start(line: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(line, **how)
    except OSError as error:
        failure = CacheError(
            f"cannot run sbatch: {error.strerror}", hint="run this command on a host from which jobs are submitted"
        )
        failure.exit_code = Exit.NOT_FOUND
        raise failure from None


def submit(
    line: Sequence[str], environ: Mapping[str, str], script: IO[bytes] | None, timeout: float = SUBMIT_TIMEOUT
) -> Submission:
    """Run `sbatch`, with --hold and --parsable among the words of `line`, until it has printed the id of the job.

    `script`: its standard input; None for that of this process. If this process is interrupted meanwhile, a job that
    was submitted nevertheless is cancelled. Raises NotSubmitted, or CacheError if nothing is known of the job.
    """
    process = _start(line, stdin=script, stdout=subprocess.PIPE, env=environ, start_new_session=True)
    printed: list[str] = []
    try:
        if (submission := _read_id(process, printed, timeout)) is not None:
            return submission
    except BaseException:
        process.terminate()
        late = None
        with contextlib.suppress(CacheError):
            late = _read_id(process, printed, _END_TIMEOUT)
        _kill(process)
        if late is not None:
            with contextlib.suppress(Unanswered):
                cancel(late.id, late.cluster)
        raise
    with contextlib.suppress(subprocess.TimeoutExpired):  # it has closed its standard output
        process.wait(_END_TIMEOUT)
    _kill(process)
    with process:
        raise NotSubmitted(_exit_code(process.wait()))


def _read_id(process: subprocess.Popen[bytes], printed: list[str], timeout: float) -> Submission | None:
    """What `sbatch` submitted; None if it ended without. `printed`: its lines so far."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    text = b""
    while True:
        if not select.select([fd], [], [], timeout)[0]:
            raise CacheError(
                f"sbatch has not answered for {timeout:.0f} s, and was ended; nothing was fetched",
                hint="see with `squeue --me` whether it has submitted the job, held; if so: scancel ID",
            )
        part = os.read(fd, 1 << 12)
        text += part
        *lines, text = text.split(b"\n") if part else (text, b"")
        for line in lines:
            printed.append(line.decode("utf-8", "replace"))
            if match := _ID.fullmatch(printed[-1].strip()):
                return Submission(process, match["id"], match["cluster"] or "", "\n".join(printed))
        if not part:
            return None


def _exit_code(code: int) -> int:
    """The exit code of a process as a shell gives it."""
    return code if code >= 0 else 128 - code


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


# -- a job that is held ------------------------------------------------------------------------------------------------


class Held(NamedTuple):
    """A job of this user that is held, and has the comment of a worker."""

    id: str
    worker: Worker


def held(user: str, run: Run = run_command) -> list[Held]:
    """The jobs of a user that were submitted by this module and are held. Raises Unanswered."""
    fields = ("JobID", "HetJobID", "Reason", "Comment")
    reply = answer(run, ["squeue", "-h", "-u", user, "-t", "PENDING", "-O", ",".join(f"{one}:|" for one in fields)])
    found: dict[str, Held] = {}
    for line in filter(str.strip, reply.out.splitlines()):
        words = [word.strip() for word in line.split("|", 3)]
        if len(words) < 4:
            raise not_parsed("squeue", line)
        number, whole, reason, comment = words
        worker = worker_in(comment.rstrip("|").rstrip())
        if reason == "JobHeldUser" and worker is not None:
            found.setdefault(worker.session, Held(whole if whole.strip("0").isdecimal() else number, worker))
    return list(found.values())


class Waiting(NamedTuple):
    """A job that is in the queue, and held."""

    worker: Worker
    directory: str  # where it was submitted
    script: str


def look(id: str, run: Run = _run) -> Waiting | None:
    """A held job that was submitted by this module; None for any other job. Raises Unanswered."""
    reply = run(["squeue", "-h", "-t", "PENDING", "-j", id, "-O", "Reason:|,WorkDir:|,Comment:|"])
    words = [word.strip() for word in reply.out.partition("\n")[0].split("|", 2)]
    if reply.code == 0 and len(words) == 3 and words[0] == "JobHeldUser":
        worker = worker_in(words[2].rstrip("|").rstrip())
        if worker is not None:
            return Waiting(worker, words[1], answer(run, ["scontrol", "write", "batch_script", id, "-"]).out)
    return None


def release(id: str, cluster: str = "", run: Run = _run) -> None:
    """Let a job start. Raises Unanswered, with Slurm's reason if it refuses."""
    answer(run, ["scontrol", *_at(cluster), "release", id])


def comment(id: str, cluster: str, text: str, mark: str = "", run: Run = _run) -> None:
    """Change the comment of a job; an empty one removes it. A long `text` is cut; `mark` follows. Raises Unanswered."""
    line = " ".join(text.split())[:_LONGEST_COMMENT]
    answer(run, ["scontrol", *_at(cluster), "update", f"JobId={id}", f"Comment={line}{mark}"])


def cancel(id: str, cluster: str = "", run: Run = _run) -> None:
    """Cancel a job. If the job has already ended, this is not an error. Raises Unanswered."""
    answer(run, ["scancel", *_at(cluster), id])


def _at(cluster: str) -> list[str]:
    return ["-M", cluster] if cluster else []
