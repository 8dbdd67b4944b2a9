"""globus://COLLECTION/PATH: a file that Globus transfers into the cache, from one of its collections into another.

Globus writes the file, through the collection that the cache is in: `[globus] collection` and `base` in config.toml.
The service takes each submission id once. So the id is noted before the transfer is submitted, and whoever continues
the fetch of a process that is gone asks for the same task, or submits again with the same id.

The notes and the file are in a directory of their own, `tmp/<lease>~globus~<item>`, and not in the work area of the
fetch: a work area gets another name when it is taken over, but Globus writes to the path that it was given.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, NamedTuple

from sccache_dtool.catalog.broker_names import is_uuid
from sccache_dtool.disk import records
from sccache_dtool.disk.names import ORIGIN, WORK, Purpose, WorkName
from sccache_dtool.errors import FetchFailed, TimedOut
from sccache_dtool.fetch import transfers
from sccache_dtool.fetch.context import Context, Retrieved
from sccache_dtool.fetch.local import fill
from sccache_dtool.fetch.partial import Origin
from sccache_dtool.fetch.progress import NoProgress
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import Source
from sccache_dtool.fetch.retry import GaveUp, Temporary, persist
from sccache_dtool.fetch.sink import Sink
from sccache_dtool.fetch.steps import file_digest
from sccache_dtool.fetch.track import TakenOver
from sccache_dtool.log import Silent
from sccache_dtool.policy import config
from sccache_dtool.policy.config import Config
from sccache_dtool.protocol import downloads
from sccache_dtool.units import short_duration

#: Seconds between two questions how far a task is: at first, and at most.
FIRST_POLL, LONGEST_POLL = 1.0, 10.0

#: Largest size of a file in bytes.
_LARGEST = 10**18 - 1

#: Variables of the environment with the credentials of an application, which needs no login.
CLIENT_ID, CLIENT_SECRET = config.VARIABLES["globus_client"], "GLOBUS_CLIENT_SECRET"

_TASK_PAGE = "https://app.globus.org/activity"
_LOGIN_HINT = "log in with: sc-dtool globus login"


def retrieve(context: Context, source: Source, path: str, algorithms: Sequence[str]) -> Retrieved:
    """Have Globus transfer `source`, and put it at `path`. Raises FetchFailed, GaveUp, TimedOut, or OSError."""
    transfer = _Transfer(context, source, path)
    try:
        if not persist(context, source.canonical, lambda: transfer.bytes, lambda: transfer.resume(path)):
            persist(context, source.canonical, lambda: transfer.bytes, transfer.attempt)
            transfer.take(path)
        digests = {name: file_digest(context.fs, path, name) for name in algorithms}
    except (TakenOver, GaveUp):  # another process continues the task, or the next one will
        raise
    except BaseException:
        transfer.give_up()
        raise
    transfer.tidy()
    return Retrieved(digests, transfer.version.size, version={"version": str(transfer.version)})


def is_unchanged(context: Context, source: Source, fact: Mapping[str, object]) -> bool:
    """Whether the collection still has the version that `fact` describes. Raises FetchFailed or GaveUp."""
    client = transfer_client(_settings(context))
    return persist(context, source.canonical, lambda: 0, lambda: str(_look(client, source)) == fact.get("version"))


def announced(source: Source) -> int | None:
    """None: only the settings of a cache say which account may ask the collection."""
    return None


def to_install(scheme: str) -> str | None:
    """The pip command that installs what is needed; None if it is there."""
    from importlib.util import find_spec

    return None if find_spec("globus_sdk") else "pip install 'globus-sdk>=4'"


class _Version(NamedTuple):
    """What a collection reports about a file."""

    size: int
    modified: str

    def __str__(self) -> str:
        return f"{self.size} {self.modified}"


class _Transfer:
    """One file on its way; `attempt` may be called until it returns."""

    def __init__(self, context: Context, source: Source, path: str) -> None:
        self.bytes = 0
        self.version = _Version(0, "")
        self._context = context
        self._source = source
        self._settings = _settings(context)
        self._client = transfer_client(self._settings)
        self._deadline = None if context.wait is None else context.clock.monotonic() + context.wait
        self._area = os.path.dirname(os.path.dirname(path))
        work = WorkName.parse(os.path.basename(self._area))
        if work is None:
            raise FetchFailed(f"cannot fetch {source.canonical}: Globus can write only into a cache")
        self._landing = work._replace(purpose=Purpose.GLOBUS)
        self._unusable: set[WorkName] = set()
        self._submission: str | None = None
        self._is_of_another = False  # the task may be another one than the notes say: whoever can write here made them
        self._adopted = False
        self._may_run = False
        self._task: str | None = None
        self._shown = False
        self._held = ""  # why the task does not go on

    @property
    def _directory(self) -> str:
        return f"{self._context.store.layout.tmp}/{self._landing}"

    @property
    def _file(self) -> str:
        """Where Globus puts the file. Beside it are the notes: what was submitted, and as which task."""
        return f"{self._directory}/{self._context.number}"

    def attempt(self) -> None:
        """Continue the task until the file is there. Raises Temporary or FetchFailed."""
        if self._submission is None and not self._adopt():
            self._prepare()
        if self._task is None:
            self._submit()
        if not self._shown:
            self._context.progress.start(self._source.name, self.version.size)
            self._shown = True
        self._wait()
        size = self._arrived()
        with contextlib.suppress(_Gone):
            if size == self.version.size and _look(self._client, self._source) == self.version:
                return
        self._begin_again()
        raise Temporary(
            f"received {size} bytes of {self.version.size}"
            if size != self.version.size
            else "it changed while it was transferred"
        )

    def resume(self, path: str) -> bool:
        """Put at `path` a file that a process received completely before it was killed."""
        fs, track, number = self._context.fs, self._context.track, self._context.number
        if track is None or track.taken is None or self._context.fresh:
            return False
        there = f"{track.taken}/{WORK}/{number}"
        with contextlib.suppress(FileNotFoundError, records.Damaged, _Gone):
            origin = Origin.decode(fs.read_text(f"{there}{ORIGIN}"))
            if origin.source != self._source.canonical or origin.length != fs.lstat(there).st_size:
                return False
            self.version = _look(self._client, self._source)
            if origin.validator != str(self.version) or number not in downloads.parts(fs, track.taken):
                return False
            self._note_complete(there, path)
            fs.rename(there, path)
            self._show(self.version.size)
            self._context.progress.start(self._source.name, self.version.size, self.version.size)
            self._adopt()  # the notes are not needed any more
            return True
        return False

    def take(self, path: str) -> None:
        """Put the file at `path`. A file of another account is copied, because that account could change it."""
        fs = self._context.fs
        status = fs.lstat(self._file)
        if status.st_uid == os.geteuid():
            self._note_complete(self._file, path)
            fs.rename(self._file, path)
            return
        fd = fs.open(self._file)
        try:
            with Sink(fs, path, (), NoProgress()) as sink:
                fill(fs, fd, status, sink)
        finally:
            fs.close(fd)
        self._note_complete(path, path)

    def _note_complete(self, file: str, path: str) -> None:
        """Note that `file`, which is at `path` or will be, is complete: another process uses it if this one is killed.

        Before it is there, so that a kill between the two does not have it transferred again.
        """
        fs = self._context.fs
        fd = fs.open(file)
        try:
            fs.sync(fd)
        finally:
            fs.close(fd)
        origin = Origin(self._source.canonical, str(self.version), self.version.size)
        fs.write_new(f"{path}{ORIGIN}", records.encode_document(origin._asdict()))
        if self._context.track is not None:
            self._context.track.complete(self._context.number, self.version.size)

    def tidy(self) -> None:
        """Remove the directory of this transfer; one that other sources of the item use stays."""
        with contextlib.suppress(OSError):
            for name in self._context.fs.names(self._directory):
                if name.partition(".")[0] == str(self._context.number):
                    self._context.fs.unlink(f"{self._directory}/{name}")
            self._context.fs.rmdir(self._directory)

    def give_up(self) -> None:
        """Cancel the task, unless another process continues it or waits for the item."""
        if self._is_of_another or transfers.is_taken_away(self._context.fs, self._area) or self._is_awaited():
            return
        if self._task is not None:
            with contextlib.suppress(Exception):  # it ends at its deadline
                self._client.cancel_task(self._task)
        if self._task is not None or not self._may_run:  # otherwise the next process finds out which task it is
            self.tidy()

    def _is_awaited(self) -> bool:
        with contextlib.suppress(OSError):
            waits = (
                one for one in transfers.running(self._context.store) if one.state == transfers.TransferState.WAITING
            )
            return any(one.key[:32] == self._landing.of for one in waits)
        return False

    # -- notes -------------------------------------------------------------------------------------------------------

    def _adopt(self) -> bool:
        """Continue what another process has left of the same source; False if there is nothing."""
        tmp, mine = self._context.store.layout.tmp, self._landing
        for text in self._context.fs.names(tmp):
            found = WorkName.parse(text)
            if found is None or (found.purpose, found.of) != (Purpose.GLOBUS, mine.of) or found in self._unusable:
                continue
            self._landing = found
            with contextlib.suppress(OSError, records.Damaged):
                facts = records.decode_document(self._context.fs.read_text(f"{self._file}.json"))
                submission, size = facts.get("submission"), facts.get("size")
                if facts.get("source") != self._source.canonical or not isinstance(size, int):
                    continue
                if not isinstance(submission, str) or not is_uuid(submission):
                    continue
                self.version = _Version(size, str(facts.get("modified")))
                self._submission, self._is_of_another, self._may_run = submission, True, True
                self._task = self._noted_task()
                return True
        self._landing = mine
        return False

    def _noted_task(self) -> str | None:
        with contextlib.suppress(OSError, records.Damaged):
            task = records.decode_document(self._context.fs.read_text(f"{self._file}.task")).get("task")
            return task if isinstance(task, str) and is_uuid(task) else None
        return None

    def _prepare(self) -> None:
        """Get a submission id, and note it."""
        with _failures(self._source):
            self.version = _look(self._client, self._source)
            submission = _uuid(self._client.get_submission_id()["value"])
        store = self._context.store
        self._context.fs.make_dirs(self._directory, shared=store.layout.shared)
        facts = {"source": self._source.canonical, "submission": submission, **self.version._asdict()}
        self._context.fs.write_new(f"{self._file}.json", records.encode_document(facts), shared=store.layout.shared)
        self._submission = submission

    def _begin_again(self) -> None:
        """The next attempt submits a transfer of its own."""
        self.tidy()
        self._forget()

    def _forget(self) -> None:
        self._unusable.add(self._landing)
        work = WorkName.parse(os.path.basename(self._area))
        assert work is not None
        self._landing = work._replace(purpose=Purpose.GLOBUS)
        self._submission = self._task = None
        self._is_of_another = self._adopted = self._may_run = False
        self._context.progress.advance(-self.bytes)
        self.bytes = 0

    # -- the service -------------------------------------------------------------------------------------------------

    def _submit(self) -> None:
        sdk: Any = import_module("globus_sdk")
        collection, _, path = self._source.canonical.removeprefix("globus://").partition("/")
        data = sdk.TransferData(
            collection,
            self._settings.globus_collection,
            label=self._label,
            submission_id=self._submission,
            verify_checksum=True,
            fail_on_quota_errors=True,
            notify_on_succeeded=False,
            notify_on_failed=False,
            notify_on_inactive=False,
            **self._bounds(),
        )
        within = os.path.relpath(self._file, self._context.store.layout.root)
        data.add_item(f"/{path}", f"{self._settings.globus_base}/{within}")
        self._may_run = True
        try:
            with self._failures():
                self._task = _uuid(self._client.submit_transfer(data)["task_id"])
        except FetchFailed:  # the service has refused it
            self._may_run = False
            raise
        with contextlib.suppress(FileExistsError):
            note = records.encode_document({"task": self._task})
            self._context.fs.write_new(f"{self._file}.task", note, shared=self._context.store.layout.shared)

    def _bounds(self) -> dict[str, Any]:
        """The deadline of a task, after which Globus cancels it even if nobody asks any more."""
        if self._context.wait is None:
            return {}
        return {"deadline": datetime.fromtimestamp(self._context.clock.wall() + self._context.wait, UTC)}

    @property
    def _label(self) -> str:
        """The label of a task, by which people distinguish it from the other tasks of the user."""
        return f"sc-dtool {self._landing.of}"

    def _take_over(self, task: Mapping[str, Any]) -> None:
        """Let the task of another process run for as long as this one waits; if that is refused, it ends earlier."""
        if task.get("label") != self._label:
            self._forget()
            raise Temporary("what another process has left of it belongs to another transfer")
        self._is_of_another, self._adopted = False, True
        bounds = {name: value.isoformat(timespec="seconds") for name, value in self._bounds().items()}
        with contextlib.suppress(Exception):
            self._client.update_task(self._task, {"DATA_TYPE": "task", **bounds})

    def _wait(self) -> None:
        """Return once the task has succeeded."""
        clock, pause = self._context.clock, FIRST_POLL
        while True:
            with self._failures():
                task = dict(self._client.get_task(self._task).data)
                status, transferred = str(task["status"]), int(task["bytes_transferred"])
            if self._is_of_another:
                self._take_over(task)
            self._show(transferred)
            if status == "SUCCEEDED":
                return
            if status == "FAILED":
                raise self._failed(task)
            self._note_if_held(task)
            remaining = LONGEST_POLL if self._deadline is None else self._deadline - clock.monotonic()
            if remaining <= 0:
                raise self._late()
            with contextlib.suppress(OSError):
                self._context.fs.touch(self._directory)  # `clean` keeps it for a day
            clock.sleep(min(pause, remaining))
            pause = min(2 * pause, LONGEST_POLL)

    def _show(self, transferred: int) -> None:
        more = min(transferred, self.version.size) - self.bytes
        self.bytes += more
        self._context.progress.advance(more)  # raises TakenOver if another process continues this fetch

    def _failed(self, task: Mapping[str, Any]) -> FetchFailed | Temporary:
        told = task.get("fatal_error")
        fatal = told if isinstance(told, dict) else {}
        reason = plain(str(fatal.get("description") or task.get("nice_status_details") or "no reason given"))
        if self._adopted:  # it may have been cancelled, or have had an earlier deadline
            self._begin_again()
            return Temporary(f"the transfer that another process began has failed: {reason}")
        code = plain(str(fatal.get("code") or "no error code"))
        return FetchFailed(f"cannot fetch {self._source.canonical}: {reason}", details=[f"{code}: {self._page()}"])

    def _note_if_held(self, task: Mapping[str, Any]) -> None:
        held = ""
        if task["status"] == "INACTIVE":
            held = "the credentials for one of the collections have expired: renew them"
        elif task.get("is_paused"):
            held = "it is paused: have the person who paused it, or the collection's administrator, resume it"
        if held and held != self._held:
            self._context.store.log.note(
                f"{self._source.canonical}: Globus does not transfer it, {held} at {self._page()}"
            )
        self._held = held

    def _late(self) -> FetchFailed | TimedOut:
        wait = short_duration(self._context.wait or 0)
        if self._held:
            return FetchFailed(
                f"cannot fetch {self._source.canonical}: Globus did not transfer it within {wait}",
                details=[self._held],
                hint=f"see {self._page()}, then use the item again",
            )
        return TimedOut(
            f"{self._source.canonical} is still being transferred by Globus after {wait}",
            details=[f"{self.bytes} of {self.version.size} bytes: {self._page()}"],
            hint="wait longer with --wait",
        )

    def _page(self) -> str:
        return f"{_TASK_PAGE}/{self._task}"

    def _arrived(self) -> int | None:
        """Bytes of the file that Globus has written; None if there is none."""
        fs = self._context.fs
        fs.touch(self._directory)  # otherwise NFS may not show for a minute what another host has made
        try:
            if not stat.S_ISREG(fs.lstat(self._file).st_mode):
                return None
            fd = fs.open(self._file)
        except FileNotFoundError:
            return None
        try:
            return fs.fstat(fd).st_size
        finally:
            fs.close(fd)

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """As `_failures`; what is refused for the task of another process is done with one of this process."""
        try:
            with _failures(self._source):
                yield
        except FetchFailed as error:
            if not self._is_of_another:
                raise
            self._forget()  # the task of another user may still run, and write there
            raise Temporary(error.message) from error


# -- accounts ----------------------------------------------------------------------------------------------------------


def make_app(settings: Config, *, asks: bool = False) -> Any:
    """An application of the SDK that gets tokens. `asks`: it may have a person log in. Raises FetchFailed."""
    sdk: Any = import_module("globus_sdk")
    client, secret = os.environ.get(CLIENT_ID) or settings.globus_client, os.environ.get(CLIENT_SECRET)
    if not client:
        raise FetchFailed(
            "no application is set up for Globus",
            hint=f"set [globus] client in config.toml to the UUID of a native application, or ${CLIENT_ID} and "
            f"${CLIENT_SECRET} to the credentials of a confidential one (https://app.globus.org/settings/developers)",
        )
    if secret:
        memory = sdk.GlobusAppConfig(token_storage="memory")
        return sdk.ClientApp("sc-dtool", client_id=client, client_secret=secret, config=memory)
    more = {} if asks else {"token_validation_error_handler": None}
    kept = sdk.GlobusAppConfig(request_refresh_tokens=True, **more)
    return sdk.UserApp("sc-dtool", client_id=client, config=kept)


def transfer_client(settings: Config) -> Any:
    """A client of the transfer service. Raises FetchFailed if the settings do not say where the cache is."""
    sdk: Any = import_module("globus_sdk")
    transport: Any = import_module("globus_sdk.transport")
    if settings.globus_collection is None or settings.globus_base is None:
        raise FetchFailed(
            "Globus cannot write into this cache: config.toml does not say in which collection it is",
            hint="set [globus] collection to the UUID of that collection, and base to the path of the cache in it",
        )
    # One more attempt, with a new token. `persist` does the others, with its own pauses.
    return sdk.TransferClient(app=make_app(settings), retry_config=transport.RetryConfig(max_retries=1, max_sleep=0))


def _settings(context: Context) -> Config:
    return config.load(context.fs, context.store.layout, Silent())


def _uuid(text: object) -> str:
    """An id in an answer. Raises ValueError."""
    if not isinstance(text, str) or not is_uuid(text.lower()):
        raise ValueError("not an id")
    return text.lower()


class _Gone(FetchFailed):
    """The source does not exist."""


def _look(client: Any, source: Source) -> _Version:
    """The version of a file now. Raises Temporary or FetchFailed."""
    collection, _, path = source.canonical.removeprefix("globus://").partition("/")
    with _failures(source):
        found = dict(client.operation_stat(collection, f"/{path}").data)
    size = found.get("size")
    if found.get("type") != "file" or type(size) is not int or not 0 <= size <= _LARGEST:
        raise FetchFailed(
            f"cannot fetch {source.canonical}: it is not a file",
            hint="give its files, each with its own URL",
            shared=True,
        )
    return _Version(size, plain(str(found.get("last_modified"))))


@contextlib.contextmanager
def _failures(source: Source) -> Iterator[None]:
    """Turn what the SDK raises into Temporary or FetchFailed."""
    sdk: Any = import_module("globus_sdk")
    storage: Any = import_module("globus_sdk.token_storage")
    what = f"cannot fetch {source.canonical}"
    try:
        yield
    except storage.TokenValidationError as error:
        raise FetchFailed(f"{what}: you are not logged in to Globus", hint=_LOGIN_HINT) from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # such as the page of a proxy
        raise Temporary(f"Globus gives an answer that cannot be read ({type(error).__name__})") from error
    except sdk.NetworkError as error:
        raise Temporary(f"Globus does not answer: {plain(str(error))}") from error
    except sdk.GlobusAPIError as error:
        reason = plain(error.message or error.code or f"status {error.http_status}")
        if error.http_status in (408, 425, 429) or error.http_status >= 500:
            raise Temporary(f"Globus answers: {reason}") from error
        if error.code == "NotFound":
            raise _Gone(f"{what}: there is no such file", shared=True) from error
        hint = None
        if error.info.consent_required:
            collection = source.canonical.removeprefix("globus://").partition("/")[0]
            hint = f"consent to access to the collection: sc-dtool globus login --collection {collection}"
        elif error.http_status == 401 or isinstance(error, sdk.AuthAPIError):
            hint = _LOGIN_HINT
        raise FetchFailed(f"{what}: {reason}", hint=hint) from error
