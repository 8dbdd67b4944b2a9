"""`sbatch`: submits jobs that start when their data is available."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from tempfile import TemporaryFile
from typing import IO, NamedTuple, NoReturn

import click

from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.cli import output
from sccache_dtool.cli.options import DURATION, SIZE, Invocation
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import CacheError, Exit, InUse, UsageError, translate
from sccache_dtool.liveness import State
from sccache_dtool.liveness.batch import sbatch, submit
from sccache_dtool.liveness.batch.query import Unanswered
from sccache_dtool.liveness.batch.sbatch import Words
from sccache_dtool.liveness.batch.submit import Worker
from sccache_dtool.liveness.caller import Owner, host_name, user_name, verdict_on
from sccache_dtool.liveness.process import Proc
from sccache_dtool.protocol import sessions
from sccache_dtool.protocol.holders import HolderList
from sccache_dtool.protocol.sessions import NoSession
from sccache_dtool.sets import manifest
from sccache_dtool.sets.manifest import Entry

#: The variable in which a job finds its data.
_VIEW = "SC_DTOOL_VIEW"

_WORDS = "sc-dtool.sbatch"


class _WithOptionsOfSbatch(click.Command):
    """A command line of `sbatch`, which may have a few further options before the script."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        words = sbatch.parse(args, {name: not option.is_flag for option in options for name in option.opts})
        ctx.meta[_WORDS] = words
        return super().parse_args(ctx, words.own)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[SCRIPT [ARGS]...]"]


class _Job(NamedTuple):
    """A held job, and what its data needs."""

    id: str
    cluster: str
    session: str
    is_ours: bool  # whether its comment is sc-dtool's, and not its user's

    def __str__(self) -> str:
        return f"job {self.id}" + (f" of cluster {self.cluster}" if self.cluster else "")

    @property
    def spec(self) -> str:
        """The owner of its leases, as for --holder."""
        return f"slurm:{self.id}" + (f"@{self.cluster}" if self.cluster else "")

    def command(self, *words: str) -> str:
        """A command of Slurm for the job, for a person."""
        program, *others = words
        return " ".join([program, *(("-M", self.cluster) if self.cluster else ()), *others, self.id])

    def note(self, text: str, mark: str = "") -> None:
        """Change its comment, if that can be done. `mark`: what follows the text, however long that is."""
        if self.is_ours:
            with contextlib.suppress(Unanswered):
                submit.comment(self.id, self.cluster, text, mark)


@click.command("sbatch", cls=_WithOptionsOfSbatch)
@click.option("--keep-held", is_flag=True, help="If the data cannot be fetched, leave the job held.")
@click.option("--resume", metavar="JOB", help="Fetch the data of a job that is still held, then release the job.")
@click.option("--fetch-wait", type=DURATION, help="Wait at most this long for another process's download: 1h.")
@click.option("--max-rate", type=SIZE, help="Download at most this much per second: 10MB.")
@click.option("--make-room", is_flag=True, help="Remove idle items if there is not enough space.")
@click.pass_context
def sbatch_command(
    ctx: click.Context,
    keep_held: bool,
    resume: str | None,
    fetch_wait: float | None,
    max_rate: int | None,
    make_room: bool,
) -> int:
    """Submit a Slurm job that starts when its data is available.

    Lines in SCRIPT that begin with #SC name the items that the job needs, each with the path at which it is to appear:
    #SC SOURCE [STEP]... @PATH. The job is submitted held. Its leases are taken, and what is missing is fetched, on this
    host. Then the job is released. It finds its data in the directory $SC_DTOOL_VIEW. The leases last until the job, or
    the whole array, has ended.

    All options of Slurm's sbatch are accepted before SCRIPT, and are passed on. The output is that of sbatch. Options
    of sc-dtool that other commands accept, such as -C, stand before the word sbatch. If the data cannot be fetched, the
    job is cancelled.

    \b
    Example:
      sc-dtool sbatch --time 12:00:00 --array 1-20 align.sh
    """
    call = ctx.ensure_object(Invocation)
    words: Words = ctx.meta[_WORDS]
    call.quiet = call.quiet or "quiet" in words.given
    options = UseOptions(wait=fetch_wait, rate=max_rate, make_room=make_room)
    if resume is not None:
        return _resume(call, resume, words, options)
    if not sbatch.submits(words.given):
        return submit.pass_on(words.others, None)
    text, name, stdin = _script(words)
    in_script = sbatch.options_in(text)
    given = {**in_script, **words.given}
    if not sbatch.submits(in_script):
        return submit.pass_on(words.others, stdin)
    lines, late = sbatch.items(text)
    for number in late:
        call.out.warning(f"{name}:{number}: this #SC line is ignored, because it comes after the first command")
    if not lines:
        call.out.note(f"{name} has no line #SC SOURCE, so there is nothing to fetch")
        return submit.pass_on(words.others, stdin)
    if "quiet" in in_script:
        raise UsageError(
            f"{name}: with #SBATCH --quiet, sbatch does not print the id of the job, which is needed here",
            hint="give --quiet on the command line instead",
        )
    cache = call.cache()
    with _in_directory(given.get("chdir", "")):
        entries = manifest.parse_lines(lines, name, cache.request)
    report_held(call)
    session = sessions.new_id()
    environ = {**os.environ, _VIEW: _view(cache, session)}
    more = ["--hold", "--parsable", *sbatch.export(words.given, in_script, environ, _VIEW)]
    is_ours = "comment" not in given
    if is_ours:
        more.append(f"--comment={_myself(session).comment}")
    try:
        submission = submit.submit(words.line(*more), environ, stdin)
    except submit.NotSubmitted as error:
        call.out.error(error)
        return error.code or Exit.ERROR  # a script that goes on would wait for a job that there is not
    job = _Job(submission.id, submission.cluster, session, is_ours)
    stays_held = "hold" in given or given.get("priority") == "0"
    try:
        _make_available(call, cache, entries, job, options, keep_held=keep_held, stays_held=stays_held)
    except BaseException:
        submission.abandon()
        raise
    if "parsable" in given or "quiet" not in words.given:
        call.out.text(submission.printed if "parsable" in given else submission.sentence)
    return submission.end(waits="wait" in given or "SBATCH_WAIT" in os.environ)


def _view(cache: Cache, session: str) -> str:
    """The directory in which a job will find its data."""
    return sessions.view_path(Layout(os.fspath(cache.root)), session)


def _in_directory(job: str) -> AbstractContextManager[None]:
    """Be in the working directory of a job for a while, to which relative paths in its script refer.

    If it is not on this host, or is none of its own, be where the job is submitted.
    """
    return contextlib.chdir(job) if os.path.isdir(job) else contextlib.nullcontext()


def _script(words: Words) -> tuple[str, str, IO[bytes] | None]:
    """The text of the script, its name, and the standard input for `sbatch` if the script was there."""
    if "wrap" in words.given:
        return words.given["wrap"], "--wrap", None
    if words.script is not None:
        path = sbatch.find(words, os.environ)
        with open(path, "rb") as script:
            return manifest.read(script, path), path, None
    text = manifest.read(sys.stdin.buffer, "standard input")
    file = TemporaryFile()  # noqa: SIM115  # of a process that ends with the command
    file.write(text.encode("utf-8", "surrogateescape"))
    file.seek(0)
    return text, "standard input", file


def _make_available(
    call: Invocation,
    cache: Cache,
    entries: Sequence[Entry],
    job: _Job,
    options: UseOptions,
    *,
    keep_held: bool,
    stays_held: bool = False,
    is_resumed: bool = False,
) -> None:
    """Take the leases of a held job, and release it. If that fails, cancel it."""
    try:
        call.out.note(f"{job} is held until its data is available")
        owner = cache.owner(job.spec)
        if not (is_resumed and _is_held(cache, owner, job)):
            cache.hold_many(owner, entries, options, session=job.session, label=f"{owner}")
    except BaseException as error:
        error = translate(error) if isinstance(error, OSError) else error
        _give_up(call, job, error.message if isinstance(error, CacheError) else type(error).__name__, keep_held)
        raise
    if stays_held:
        starting = job.command("scontrol", "release")
        call.out.note(f"{job} stays held, as requested; its data is available; to start it: {starting}")
    else:
        try:
            submit.release(job.id, job.cluster)
        except Unanswered as error:
            _report_not_released(cache, owner, job, str(error))
    job.note("")


def _is_held(cache: Cache, owner: Owner, job: _Job) -> bool:
    """Whether the leases of a job were taken before. A session that somebody else has made up in its place is deleted.

    The comment of a job, with the id of its session, can be read by everybody.
    """
    try:
        facts = sessions.read(cache.store, job.session)
    except NoSession:
        return False
    present = HolderList.complete(cache.store).present
    if not facts.has_ended and facts.holder.startswith(owner.prefix) and facts.holder in present:
        return True
    sessions.delete(cache.store, job.session)
    return False


def _report_not_released(cache: Cache, owner: Owner, job: _Job, reason: str) -> NoReturn:
    """Raise the error for a job that Slurm does not release; if that is because it has ended, give its data back."""
    verdict = verdict_on(owner.job) if owner.job else None
    if verdict is not None and verdict.state is State.DEAD:
        sessions.delete(cache.store, job.session)
        raise CacheError(f"{job} ended before its data was available ({verdict.evidence})") from None
    raise CacheError(
        f"{job} could not be released: {reason}",
        details=[f"it stays held, and its data stays in the cache: {_view(cache, job.session)}"],
        hint=f"let it start with {job.command('scontrol', 'release')}, or cancel it with {job.command('scancel')}",
    )


def _give_up(call: Invocation, job: _Job, reason: str, keep_held: bool) -> None:
    """Cancel a job whose data is not available, or leave it held."""
    if keep_held:
        job.note(f"sc-dtool: {reason}", f" [{job.session}]")
        how = f"; try again: {_resuming(call, job)}" if job.is_ours else ""
        call.out.warning(f"{job} stays held without its data{how}; or cancel it: {job.command('scancel')}")
        return
    job.note(f"sc-dtool: {reason}")
    try:
        submit.cancel(job.id, job.cluster)
        call.out.warning(f"{job} was cancelled, because its data is not available")
    except Unanswered as error:
        call.out.warning(f"{job} stays held, because it could not be cancelled ({error}): {job.command('scancel')}")


# -- jobs that were left held ------------------------------------------------------------------------------------------


def _myself(session: str) -> Worker:
    """This process as the worker for a job."""
    return Worker(session, host_name(), Proc().identify(os.getpid()))


def _resuming(call: Invocation, job: _Job) -> str:
    return call.command("sbatch", "--resume", job.id)


def report_held(call: Invocation) -> None:
    """Report jobs of this user that a killed command has left held. Nothing else would ever start or end them."""
    try:
        jobs = submit.held(user_name())
    except Unanswered as error:
        call.out.detail(f"could not look for jobs that were left held: {error}")
        return
    for id, worker in jobs:
        verdict = Proc().judge(worker.process) if worker.process else None
        if verdict is None or verdict.state is State.ALIVE:
            continue
        who = f"the sc-dtool sbatch on {worker.host} that was to release it has"
        what = f"{who} ended" if verdict.state is State.DEAD else f"{who} perhaps ended ({verdict.evidence})"
        job = _Job(id, "", worker.session, True)
        call.out.warning(
            f"{job} is still held: {what}; {_data_of(call.cache(), job)}; continue: {_resuming(call, job)}; "
            f"or cancel it: {job.command('scancel')}"
        )


def _data_of(cache: Cache, job: _Job) -> str:
    """What is held for a job, in words."""
    try:
        facts = sessions.read(cache.store, job.session)
    except (CacheError, OSError, ValueError):
        return f"no data is held for it in {cache.root}"
    return f"{output.count(len(facts.entries), 'item')} held for it: {_view(cache, job.session)}"


def _resume(call: Invocation, id: str, words: Words, options: UseOptions) -> int:
    """Continue with a job that is held: its data was not fetched, or it was not released."""
    if words.others:
        raise UsageError(f"--resume takes no options of sbatch, and no script: {' '.join(words.others)}")
    try:
        waiting = submit.look(id)
    except Unanswered as error:
        raise CacheError(f"Slurm was asked about job {id}: {error}") from None
    if waiting is None:
        raise UsageError(
            f"job {id} is not a held job that sc-dtool sbatch has submitted (or it was given a comment of its own)",
            hint="to list your held jobs: squeue --me --states=PENDING",
        )
    process = waiting.worker.process
    if process is not None and Proc().judge(process).state is State.ALIVE:
        raise InUse(f"process {process.pid} is fetching the data of job {id}", hint="wait for it, or end it first")
    cache = call.cache()
    with _in_directory(waiting.directory):
        entries = manifest.parse_lines(sbatch.items(waiting.script)[0], f"job {id}", cache.request)
    job = _Job(id, "", waiting.worker.session, True)
    job.note(_myself(job.session).comment)
    _make_available(call, cache, entries, job, options, keep_held=True, is_resumed=True)
    return 0
