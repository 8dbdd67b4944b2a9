"""Asking batch systems whether jobs have ended: one question for all jobs of a run, bounded in time.

Absent is not dead. A job that a batch system does not list may be hidden from this user, forgotten, or of another
cluster; and a question may fail. Only a positive answer counts; everything else is UNKNOWN.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

from sccache_dtool.clock import Clock
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.job import TITLES, Job
from sccache_dtool.liveness.lifetime import Memory
from sccache_dtool.units import short_duration

#: Seconds that a question may take; a controller that is busy must not be asked by many who wait.
TIMEOUT = 10.0

#: Seconds for which a batch system that did not answer is left alone: the first time, and at most.
FIRST_PAUSE = 60.0
LONGEST_PAUSE = 3600.0

#: Characters of ids in one command; a kernel takes 128 KiB for one word.
LONGEST_LIST = 30_000

#: Characters of a command's complaint that are shown.
_SHOWN = 120

#: Variables that change what such commands print or whom they ask.
_MISLEADING = ("SQUEUE_", "SACCT_", "SINFO_", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "LSB_BJOBS_", "PBS_DEFAULT")


#: Variables that make what they print independent of the user: untranslated, times in seconds since 1970.
_LEADING = {"LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}


class Unanswered(Exception):
    """A question was not answered, and why, in words."""


class Absent(Unanswered):
    """The command cannot be run on this host; trying again soon does no harm to anybody."""


class Reply(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The first line of what it complained of."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[0][:_SHOWN] if lines else f"exit code {self.code}"

    @property
    def document(self) -> Any:
        """The JSON that it printed; None if that is not JSON."""
        try:
            return json.loads(self.out)
        except ValueError:
            return None


#: Runs a command to its end. Raises Unanswered if it does not end in time, Absent if it is not there.
Run = Callable[[Sequence[str]], Reply]


def answer(run: Run, argv: Sequence[str]) -> Reply:
    """What a command says. Raises Unanswered if it fails, too."""
    reply = run(argv)
    if reply.code != 0:
        raise Unanswered(f"{argv[0]}: {reply.complaint}")
    return reply


def not_parsed(command: str, text: str) -> Unanswered:
    """The error for an answer of an unknown form."""
    return Unanswered(f"{command} gave an answer that cannot be parsed: {text[:80]!r}")


class Scheduler(Protocol):
    """What the module of each batch system offers."""

    def ask(self, jobs: Sequence[Job], run: Run, verdicts: dict[Job, Verdict]) -> None:
        """Put what is known of `jobs` into `verdicts`. Raises Unanswered; what was put there before then stands."""

    # Some modules also offer `place(id, run)`, see below.


def module(scheduler: str) -> Scheduler:
    """The module of a batch system, loaded when it is needed."""
    return cast(Scheduler, import_module(f"sccache_dtool.liveness.batch.{scheduler}"))


def place(scheduler: str, id: str) -> str:
    """The cluster of a job; empty if it is not known: its batch system may have nobody to ask. Raises Unanswered."""
    find = getattr(module(scheduler), "place", None)
    return str(find(id, run_command)) if find is not None else ""


def run_command(argv: Sequence[str], timeout: float = TIMEOUT) -> Reply:
    """Run a command of a batch system, for at most `timeout` seconds.

    What it says goes to files: a pipe would stay open for as long as a grandchild of a killed wrapper holds it.
    """
    import tempfile

    environment = {name: value for name, value in os.environ.items() if not name.startswith(_MISLEADING)}
    with contextlib.ExitStack() as stack:
        try:
            out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        except OSError as error:
            raise Absent(f"there is no space for the answer of {argv[0]} on this host ({error.strerror})") from None
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment | _LEADING,
                start_new_session=True,
            )
        except OSError as error:
            raise Absent(f"there is no {argv[0]} on this host ({error.strerror})") from None
        except ValueError as error:  # a NUL, or what is not text
            raise Unanswered(f"{argv[0]} cannot be given these words: {error}") from None
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)  # not for ever: it may hang in the kernel
            raise Unanswered(f"{argv[0]} did not answer within {timeout:.0f} s") from None
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return Reply(code, *texts)


def batches(ids: Iterable[str], longest: int = LONGEST_LIST) -> Iterator[list[str]]:
    """`ids`, each once, in lists that fit into a command line."""
    batch: list[str] = []
    length = 0
    for id in dict.fromkeys(ids):
        if batch and length + len(id) + 1 > longest:
            yield batch
            batch, length = [], 0
        batch.append(id)
        length += len(id) + 1
    if batch:
        yield batch


class JobStates:
    """All jobs of one run; each batch system is asked once, when the first of its jobs is judged."""

    def __init__(self, clock: Clock, memory: Memory, run: Run | None = None) -> None:
        """`memory` keeps, between the runs on this host, until when a batch system is left alone."""
        self._clock = clock
        self._memory = memory
        self._run = run or run_command
        self._expected: dict[str, dict[Job, None]] = {}
        self._verdicts: dict[Job, Verdict] = {}

    def expect(self, job: Job) -> None:
        """Ask for this job, too, when its batch system is asked."""
        self._expected.setdefault(job.scheduler, {})[job] = None

    def judge(self, job: Job) -> Verdict:
        """Whether a job has ended, by what its batch system says."""
        if job not in self._verdicts:
            self.expect(job)
            asked = [one for one in self._expected.pop(job.scheduler) if one not in self._verdicts]
            self._ask(job.scheduler, asked)
        return self._verdicts[job]

    def _ask(self, scheduler: str, jobs: list[Job]) -> None:
        found: dict[Job, Verdict] = {}
        reason = self._silenced(scheduler)
        if reason is None:
            try:
                module(scheduler).ask(jobs, self._run, found)
                reason = "it does not report this job"
                self._memory.note(f"asked {scheduler} pause", 0)
            except Absent as error:
                reason = str(error)
            except Unanswered as error:
                reason = str(error)
                self._leave_alone(scheduler)
            except Exception as error:  # an answer of an unknown shape proves nothing, and stops nothing
                found.clear()
                reason = f"its answer cannot be parsed ({type(error).__name__})"
                self._leave_alone(scheduler)
        title = TITLES[scheduler]
        for job in jobs:
            verdict = found.get(job, Verdict(State.UNKNOWN, f"the state of job {job.id} is unknown: {reason}"))
            self._verdicts[job] = Verdict(verdict.state, f"{title}: {verdict.evidence}")

    def _silenced(self, scheduler: str) -> str | None:
        until, now = self._memory.recall(f"asked {scheduler} until"), self._clock.since_boot()
        if until is None or until <= now:
            return None
        return f"it did not answer before; the next query is in {short_duration(until - now)}"

    def _leave_alone(self, scheduler: str) -> None:
        """After each failure for twice as long: many hosts that ask have taken controllers down."""
        last = self._memory.recall(f"asked {scheduler} pause")
        pause = FIRST_PAUSE if last is None else min(2 * last, LONGEST_PAUSE)
        self._memory.note(f"asked {scheduler} pause", pause)
        self._memory.note(f"asked {scheduler} until", self._clock.since_boot() + pause)
