"""A team's board: a directory of one user's in which pieces of work, and what came of them, are names and files.

Whatever decides something is one rename or unlink, which the server lets one of several win: who takes a piece, whether
a member beats or is given up, whether the leader goes on or is inherited from.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

from sccache_dtool import records
from sccache_dtool.clock import Clock
from sccache_dtool.errors import GONE
from sccache_dtool.fallback import dispensable
from sccache_dtool.fsops import FileSystem
from sccache_dtool.layout import Layout, WorkName, unique
from sccache_dtool.team.names import ABOUT, PURPOSE, Seen, lead_name, left_name

#: Seconds without a sign of life after which others do a task's work.
SILENCE = 60.0

#: Seconds between two signs of life, as a share of that.
BEATS_PER_SILENCE = 12


class About(NamedTuple):
    """What a board is for."""

    step: str
    version: str
    leader: str  # a holder's record
    lost: tuple[str, ...] = ()  # those who led before it, and were given up

    def encode(self) -> bytes:
        """As a file has it."""
        return json.dumps(self._asdict()).encode()

    @classmethod
    def decode(cls, data: bytes) -> About:
        """Raises records.Damaged."""
        fields = records.decode_document(data.decode("utf-8", "replace"))
        if not isinstance(fields.get("lost"), list):
            raise records.Damaged("not what a board says of itself")
        step, version, leader = (str(fields.get(name)) for name in ("step", "version", "leader"))
        return cls(step, version, leader, tuple(map(str, fields["lost"])))


class Board:
    """One board, on the file system."""

    def __init__(self, fs: FileSystem, layout: Layout, name: WorkName) -> None:
        self._fs = fs
        self._layout = layout
        self._path = f"{layout.tmp}/{name}"
        self.name = name

    @classmethod
    def make(cls, fs: FileSystem, layout: Layout, lease: str, about: About) -> Board:
        """A new one. Raises OSError where there can be none, or none that is private."""
        board = cls(fs, layout, WorkName(lease, PURPOSE))
        fs.mkdir(board._path, 0o700)
        try:
            fs.put_record(about.leader, f"{board._path}/{lead_name(0)}")
            board.post(ABOUT, about.encode())
            board.read(ABOUT)
        except BaseException:
            with contextlib.suppress(OSError):
                board.remove()
            raise
        return board

    def about(self) -> About | None:
        """What it is for; None while nothing can be read that we have written ourselves."""
        try:
            return About.decode(self.read(ABOUT))
        except (OSError, records.Damaged):
            return None

    def look(self) -> Seen | None:
        """What is on it, as the server has it, whatever this host has cached; None if it is gone."""
        with _IfThere():
            _refresh(self._fs, self._path)
            return Seen.of(self._fs.names(self._path))
        return None

    # Who puts something up on a board that is gone learns of it at the next look.

    def sign(self, name: object, text: str) -> None:
        """Put up a name of ours with a text."""
        with contextlib.suppress(FileExistsError), _IfThere():  # it exists: the reply was lost
            self._fs.put_record(text, f"{self._path}/{name}")

    def text_of(self, name: object) -> str:
        """The text of a name, for people."""
        try:
            return records.printable(self._fs.get_record(f"{self._path}/{name}"))
        except OSError:
            return "?"

    def post(self, name: object, data: bytes) -> None:
        """Put up a file, which appears whole."""
        draft = f"{self._path}/draft~{unique()}"
        with _IfThere():
            fd = self._fs.create(draft, 0o600)
            try:
                self._fs.write(fd, data)
            finally:
                self._fs.close(fd)
            self._fs.rename(draft, f"{self._path}/{name}")

    def read(self, name: object) -> bytes:
        """What a file of ours has in it. Raises OSError for one that is not ours alone."""
        return self._fs.read_private(f"{self._path}/{name}")

    def move(self, name: object, to: object) -> bool:
        """Rename; False if somebody else was faster, or the reply was lost: the next look shows which."""
        return self._moved(f"{self._path}/{name}", f"{self._path}/{to}")

    def strike(self, name: object) -> bool:
        """Take a name down; False if it is not there any more."""
        with _IfThere():
            self._fs.unlink(f"{self._path}/{name}")
            return True
        return False

    def leave(self, rank: int, count: int) -> None:
        """Say that a task has seen the end. The last one removes the board."""
        with contextlib.suppress(OSError):
            self.sign(left_name(rank), "left")
            seen = self.look()
            if seen is not None and seen.done and len(seen.left) == count - 1:  # the leader has said `done`
                self.remove()

    def remove(self) -> None:
        """Remove it with all that is on it; it is no team's board from the first moment on."""
        going = f"{self._layout.tmp}/{self.name._replace(purpose='going')}"
        if self._moved(self._path, going):
            self._fs.remove_tree(going)

    def _moved(self, source: str, target: str) -> bool:
        with _IfThere():
            self._fs.rename(source, target)
            return True
        return False


class _IfThere:
    """What is not there any more is no error."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return isinstance(error, OSError) and error.errno in GONE


def _refresh(fs: FileSystem, directory: str) -> None:
    """Have the next listing be the server's, where that can be asked for; an old one costs only work."""
    with dispensable("tasks may see each other late"):
        fs.touch(directory)


def all_boards(fs: FileSystem, layout: Layout) -> list[Board]:
    """All boards in the cache, as the server has them."""
    _refresh(fs, layout.tmp)
    works = map(WorkName.parse, fs.names(layout.tmp))
    return [Board(fs, layout, work) for work in works if work is not None and work.purpose == PURPOSE]


class Watch:
    """For how long names have stood unchanged: on the observer's own clock, and only as long as it was looking.

    So that who was stopped itself, or saw nothing while the server was away, does not take the others for silent.
    """

    def __init__(self, clock: Clock, patience: int = 1) -> None:
        """`patience`: how many times the usual silence is too long."""
        self._clock = clock
        self._patience = patience
        self._looked = clock.monotonic()
        self._unchanged: dict[str, float] = {}

    def look(self, names: Iterable[object]) -> list[str]:
        """Take note of the names that are there; returns those that have been there for too long."""
        now = self._clock.monotonic()
        gap = min(now - self._looked, 2 * beat())
        self._looked = now
        before = self._unchanged
        self._unchanged = {name: before[name] + gap if name in before else 0.0 for name in map(str, names)}
        return [name for name, seconds in self._unchanged.items() if seconds > self._patience * SILENCE]


def beat() -> float:
    """Seconds between two signs of life."""
    return SILENCE / BEATS_PER_SILENCE
