"""Who holds leases: one entry per process (or job, or name), whose heartbeats are renames.

A heartbeat and a revocation are both a rename of the same name, so the server lets exactly one of them win. A
holder is revoked before any lease of its is touched, and learns of it at its next heartbeat.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sccache_dtool import layout as names
from sccache_dtool import records
from sccache_dtool.clock import Clock, iso
from sccache_dtool.errors import GONE, LeaseLost, UsageError
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import HolderName, Layout
from sccache_dtool.liveness import State, Verdict
from sccache_dtool.liveness.owner import DAEMONS, find_owner
from sccache_dtool.liveness.process import Proc, Process

#: Lifetime in seconds of holders that beat, unless they are told otherwise.
DEFAULT_TTL = 12 * 3600.0

#: A heart beats at least six times in a lifetime, so that five may fail.
BEATS_PER_LIFETIME = 6
LONGEST_PAUSE = 600.0

#: Characters of a command line that are kept to be shown.
_COMMAND_SHOWN = 60

#: What the names begin with that a roll call makes in `holders/`, for a moment.
PROBE = "probe-"


class Kind(NamedTuple):
    """What sort of owner a holder stands for; `letter` begins its id."""

    letter: str
    title: str


PROGRAM = Kind("p", "program")  # a process that called us itself, and beats
COMMAND = Kind("r", "command")  # the command under `sc-dtool run`, which beats for it
CALLER = Kind("s", "process")  # the process on whose behalf `sc-dtool use` was run; it cannot beat
NAMED = Kind("n", "name")  # a name that somebody gave; only a lifetime can end it
_KINDS = {kind.title: kind for kind in (PROGRAM, COMMAND, CALLER, NAMED)}


class Owner(NamedTuple):
    """On whose behalf a lease is held, before there is a holder for it."""

    kind: Kind
    process: Process | None
    name: str | None
    command: str

    @property
    def token(self) -> str:
        """Twelve hexadecimal digits that are the same for the same owner, on whatever path it calls."""
        import hashlib

        identity = self.name if self.process is None else "/".join(str(part) for part in self.process)
        return hashlib.sha256(str(identity).encode()).hexdigest()[:12]

    @property
    def prefix(self) -> str:
        """What the ids of all holders of this owner begin with."""
        return f"{self.kind.letter}{self.token}-"

    def __str__(self) -> str:
        if self.process is None:
            return f"holder {self.name!r}"
        return f"process {self.process.pid} ({self.command})" if self.command else f"process {self.process.pid}"


def owner_from(spec: str, proc: Proc, warn: Callable[[str], None]) -> Owner:
    """The owner that ``--holder`` means: ``auto``, ``pid:N``, or a name.

    Raises UsageError when nobody can be found, or when process N cannot be seen.
    """
    if spec == "auto":
        pid = find_owner(proc)
        if pid is None:
            raise UsageError(
                "cannot tell which process is to hold the lease",
                hint="name one with --holder pid:N, or give a name and a lifetime: --holder NAME --ttl 12h",
            )
        owner = process_owner(CALLER, proc, pid)
        stat = proc.stat(pid)
        if stat is not None and stat.command in DAEMONS:
            warn(f"the lease will be held by {stat.command} (process {pid}) until it is released; see --holder, --ttl")
        return owner
    if spec.startswith("pid:"):
        number = spec.removeprefix("pid:")
        if not (number.isascii() and number.isdigit()):
            raise UsageError(f"{spec!r} is no process number", hint="give --holder pid:N, such as pid:$$")
        return process_owner(CALLER, proc, int(number))
    if not spec or len(spec) > 100 or not spec.isprintable():
        raise UsageError("a holder's name has 1 to 100 printable characters")
    return Owner(NAMED, None, spec, "")


def process_owner(kind: Kind, proc: Proc, pid: int) -> Owner:
    """The owner that is process `pid`. Raises UsageError when it cannot be seen from here."""
    process = proc.identify(pid)
    if process is None:
        raise UsageError(
            f"process {pid} cannot be seen from here, so it cannot hold a lease",
            hint="is it of another container, or hidden? Give a name and a lifetime: --holder NAME --ttl 12h",
        )
    return Owner(kind, process, None, one_line(proc.words(pid)))


def owners_from(spec: str, proc: Proc, warn: Callable[[str], None]) -> tuple[Owner, ...]:
    """Whose leases a command is to give back or renew: who ``--holder`` means and, with ``auto``, this process.

    A shell may become its script's last command (`bash -c '…; sc-dtool unuse X'`): then we are the very process
    that took the lease.
    """
    owner = owner_from(spec, proc, warn)
    if spec != "auto" or proc.identify(os.getpid()) is None:
        return (owner,)
    return (process_owner(CALLER, proc, os.getpid()), owner)


def one_line(words: Sequence[str]) -> str:
    """A command line to be shown: white space is one space, and what is long is cut."""
    text = " ".join(" ".join(words).split())
    return text if len(text) <= _COMMAND_SHOWN else f"{text[: _COMMAND_SHOWN - 1]}…"


def program_owner(proc: Proc) -> Owner:
    """The owner that is this process itself.

    Where processes cannot be told apart it goes by a name of its own, and lives by its heartbeats alone.
    """
    try:
        return process_owner(PROGRAM, proc, os.getpid())
    except UsageError:
        return Owner(NAMED, None, f"process {os.getpid()} on {host_name()}, {names.unique()}", "")


class HolderRecord(NamedTuple):
    """What a holder says of itself. Written by others: for showing and judging, never trusted further."""

    kind: Kind
    host: str
    user: str
    process: Process | None
    name: str | None
    command: str
    ttl: float | None  # seconds
    since: str

    def __str__(self) -> str:
        what = f"process {self.process.pid}" if self.process else f"holder {self.name!r}"
        command = f" ({self.command})" if self.command else ""
        return records.printable(f"{self.user}@{self.host}, {what}{command}")

    @classmethod
    def decode(cls, text: str) -> HolderRecord:
        """Raises records.Damaged for anything that no holder writes."""
        fields = records.decode(text)
        kind = _KINDS.get(str(fields.get("kind")))
        process = Process.from_fields(fields)
        ttl = fields.get("ttl")
        if kind is None or (kind is NAMED) != (process is None) or not isinstance(ttl, int | float | None):
            raise records.Damaged("not a holder's record")
        name = fields.get("name")
        return cls(
            kind=kind,
            host=str(fields.get("host", "?")),
            user=str(fields.get("user", "?")),
            process=process,
            name=None if name is None else str(name),
            command=str(fields.get("command", "")),
            ttl=None if ttl is None else float(ttl),
            since=str(fields.get("since", "?")),
        )


def user_name() -> str:
    """The name of the user whom this process runs as, or the number where there is no name."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def host_name() -> str:
    """The first part of this host's name, for people; never used to tell hosts apart."""
    return os.uname().nodename.partition(".")[0] or "?"


def encode(owner: Owner, ttl: float | None, clock: Clock) -> str:
    """The record of a holder; HolderRecord.decode reads it."""
    fields: dict[str, Any] = {
        "kind": owner.kind.title,
        "user": user_name(),
        "host": host_name(),
        "since": iso(clock.wall()),
        "ttl": ttl,
        "name": owner.name,
    }
    if owner.process is not None:
        fields |= owner.process.fields()
    return records.encode(fields | {"command": owner.command or None})


class Holder:
    """A holder of ours, with its entry in `holders/`."""

    def __init__(self, fs: FileSystem, layout: Layout, clock: Clock, owner: Owner, ttl: float | None) -> None:
        """Enter a new holder; `ttl` is its lifetime in seconds, None for one that only its process's end ends."""
        self.owner = owner
        self.ttl = ttl
        self.lost = False
        self.by = f"{user_name()}@{host_name()}[{owner.process.pid if owner.process else owner.name}]"
        self._fs = fs
        self._layout = layout
        self._clock = clock
        self._numbers = itertools.count()
        self._heart: Heart | None = None
        self._pid = os.getpid()
        self._name = HolderName(f"{owner.prefix}{names.unique(12)}", 0, 0)
        fs.put_record(encode(owner, ttl, clock), self._path(self._name))
        if ttl is not None:
            # From here on the end is reckoned on the file system's clock, carried forward by our own since boot.
            self._ahead = fs.lstat(self._path(self._name)).st_mtime - clock.since_boot()
            self.beat()

    @property
    def id(self) -> str:
        """The part of the name that stays."""
        return self._name.id

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child, which may neither use nor release what its parent holds."""
        return self._pid == os.getpid()

    @property
    def usable(self) -> bool:
        """Whether new leases may be taken: not after a revocation, and not in a forked child."""
        return not self.lost and self._pid == os.getpid()

    def next_lease(self) -> str:
        """A name for a lease, never used before."""
        return f"{self._name.id}.{next(self._numbers)}"

    def beat(self) -> None:
        """Show that we are alive, for another lifetime: one rename. Raises LeaseLost if we were revoked."""
        if self.lost:
            raise self._revoked()
        try:
            self._name = renew(self._fs, self._layout, self._name, self._next_end())
        except LookupError:
            self.lost = True
            raise self._revoked() from None

    def retire(self) -> None:
        """Stop, and remove the entry; all leases have been released before."""
        self.stop_heart()
        with contextlib.suppress(OSError):
            self._fs.unlink(self._path(self._name))

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Beat for as long as something takes that may be long, such as a download."""
        self.start_heart(lambda error: None)  # whoever has been revoked will hear of it when the work is to be shown
        try:
            yield
        finally:
            self.stop_heart()

    def stop_heart(self) -> None:
        """Beat no more."""
        if self._heart is not None:
            self._heart.stop()
            self._heart = None

    def start_heart(self, on_lost: Callable[[LeaseLost], None]) -> None:
        """Beat in a thread until `retire`; `on_lost` is called once, from that thread, if we were revoked."""
        if self._heart is None and self.ttl is not None:
            self._heart = Heart(self, min(self.ttl / BEATS_PER_LIFETIME, LONGEST_PAUSE), on_lost)

    def _next_end(self) -> int:
        return 0 if self.ttl is None else int(self._ahead + self._clock.since_boot() + self.ttl)

    def _path(self, name: HolderName) -> str:
        return f"{self._layout.holders}/{name}"

    def _revoked(self) -> LeaseLost:
        return LeaseLost(
            f"the leases of {self.owner} were revoked",
            details=["another host took it for dead, because its heartbeat was not seen for a whole lifetime"],
            hint="what it reads may be deleted: stop, and use the data anew; a longer --ttl makes this rarer",
        )


class Heart:
    """A thread that beats. A beat that fails for a passing reason is tried again at the next."""

    def __init__(self, holder: Holder, pause: float, on_lost: Callable[[LeaseLost], None]) -> None:
        self._holder = holder
        self._pause = pause
        self._on_lost = on_lost
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sc-dtool heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; returns when a beat under way has ended."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._pause):
            try:
                self._holder.beat()
            except LeaseLost as error:
                self._on_lost(error)
                return
            except OSError:
                continue  # the server may be away for minutes; the lifetime is much longer


def renew(fs: FileSystem, layout: Layout, name: HolderName, end: int) -> HolderName:
    """Rename a holder to its next beat, with a new end. Raises LookupError when it is not there any more.

    ENOENT alone proves nothing: the rename may have been done and its reply lost. Only a listing made after a
    create of our own shows what the server has.
    """
    beat = HolderName(name.id, name.beats + 1, end)
    try:
        fs.rename(f"{layout.holders}/{name}", f"{layout.holders}/{beat}")
    except OSError as error:
        if error.errno not in GONE:
            raise
        present = Roll.call(fs, layout).present.get(name.id)
        if present is None:
            raise LookupError(name.id) from None
        return present
    return beat


class Roll(NamedTuple):
    """Who is there: all holders at one moment."""

    present: Mapping[str, HolderName]
    gone: frozenset[str]  # ids of those who were revoked
    now: float | None  # the file system's clock, in seconds since 1970; None after a mere glance
    strangers: tuple[str, ...]  # names that no holder has

    @property
    def is_proof(self) -> bool:
        """Whether who is missing here is really missing."""
        return self.now is not None

    @classmethod
    def call(cls, fs: FileSystem, layout: Layout) -> Roll:
        """List the holders, after a create of our own in the same directory.

        Before such a create an NFS v3 client may hide a holder made in the same clock tick, and stay wrong. The
        created name's time is the file system's present time.
        """
        probe = f"{layout.holders}/{PROBE}{names.unique()}"
        fs.put_record("probe", probe)
        try:
            return cls._list(fs, layout, fs.lstat(probe).st_mtime)
        finally:
            with contextlib.suppress(FileNotFoundError):  # the reply to a first request was lost
                fs.unlink(probe)

    @classmethod
    def glance(cls, fs: FileSystem, layout: Layout) -> Roll:
        """List the holders without writing anything: enough to show them, not to say that one is missing."""
        return cls._list(fs, layout, None)

    @classmethod
    def _list(cls, fs: FileSystem, layout: Layout, now: float | None) -> Roll:
        present, strangers = {}, []
        for text in fs.names(layout.holders):
            name = HolderName.parse(text)
            if name is not None:
                present[name.id] = name
            elif text != "gone" and not text.startswith(PROBE):
                strangers.append(text)
        gone = (HolderName.parse(text) for text in fs.names(layout.gone))
        return cls(present, frozenset(name.id for name in gone if name), now, tuple(strangers))


def read(fs: FileSystem, layout: Layout, name: HolderName) -> HolderRecord:
    """What a holder says of itself. Raises records.Damaged, or OSError."""
    return HolderRecord.decode(fs.get_record(f"{layout.holders}/{name}"))


def revoke(fs: FileSystem, layout: Layout, name: HolderName) -> bool:
    """Take a holder's entry away: False if it has beaten, or was revoked, in the meantime. One call."""
    try:
        fs.rename(f"{layout.holders}/{name}", f"{layout.gone}/{name}")
    except OSError as error:
        if error.errno not in GONE:
            raise
        return False
    return True


def judge(record: HolderRecord, proc: Proc, lapsed: Callable[[float | None], Verdict]) -> Verdict:
    """Whether a holder is alive. What this host can see of the process comes first; then its lifetime.

    `lapsed` is asked with the lifetime in seconds only where the process decides nothing.
    """
    if record.process is None:
        return lapsed(record.ttl)
    seen = proc.judge(record.process)
    if seen.state is not State.UNKNOWN:
        return seen
    lifetime = lapsed(record.ttl)
    return Verdict(lifetime.state, f"{seen.evidence}; {lifetime.evidence}")
