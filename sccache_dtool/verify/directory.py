"""A directory in which a verification tries things, and the scratch directory in which all of it happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import VERIFICATION, unique
from sccache_dtool.errors import GONE, NOT_EMPTY, explain
from sccache_dtool.verify.findings import Announce, cannot_be_used

LEADER, PEER, BOTH = "leader", "peer", "both"

#: Seconds for which a host is given time to see what the other has made (NFS takes up to 60 by default), and how often
#: the removal of a scratch directory is tried while the other host makes names in it.
LONGEST_DELAY, _REMOVALS = 75.0, 20


@dataclass(frozen=True)
class Directory:
    """A directory, and the side that works in it. Its methods use names that nobody else uses.

    If a reply says that a change had been made before, the server made it, and its first reply was lost: not a finding.
    """

    fs: FileSystem
    clock: Clock
    path: str
    shared: bool = False  # its group takes part
    kind: str = ""  # of the file system
    announce: Announce = print  # told what is waited for, and what is left
    longest_delay: float = LONGEST_DELAY
    me: str = LEADER
    barrier: Callable[[], object] = bool  # waits for the other side
    is_alone: bool = True  # the other side, if there is one, is a thread of this process

    def step(self, turn: str, act: Callable[[], object]) -> None:
        """Act if it is this side's turn, and wait until the other side has come as far."""
        if turn in (self.me, BOTH):
            act()
        self.barrier()

    def at(self, name: str) -> Directory:
        """A directory in it that is made elsewhere."""
        return replace(self, path=f"{self.path}/{name}")

    def make(self, name: str) -> Directory:
        """A new directory in it."""
        made = self.at(name)
        try:
            self.fs.mkdir(made.path, shared=self.shared)
        except FileExistsError:
            if self.shared:
                self.fs.share(made.path)
        return made

    def record(self, text: str, name: str) -> None:
        """A new record in it."""
        with contextlib.suppress(FileExistsError):
            self.fs.put_record(text, f"{self.path}/{name}")

    def put(self, name: str, text: str) -> None:
        """A new file in it, complete and durable."""
        try:
            self.fs.write_new(f"{self.path}/{name}", text)
        except FileExistsError:
            self.remove(name)
            self.fs.write_new(f"{self.path}/{name}", text)

    def move(self, source: str, target: str) -> None:
        """Give something in it another name in it."""
        try:
            self.fs.rename(f"{self.path}/{source}", f"{self.path}/{target}")
        except FileNotFoundError:
            directory, _, name = f"{self.path}/{target}".rpartition("/")
            if name not in self.fs.names(directory):
                raise

    def remove(self, name: str, *, is_directory: bool = False) -> None:
        """Remove a file, a record or an empty directory in it."""
        with contextlib.suppress(FileNotFoundError):
            (self.fs.rmdir if is_directory else self.fs.unlink)(f"{self.path}/{name}")

    def fresh_names(self) -> list[str]:
        """The names in it as the server has them: it is listed after a create of this host's own in it."""
        own = f"{VERIFICATION}{unique()}"
        self.record("made before a listing", own)
        try:
            return self.fs.names(self.path)
        finally:
            self.remove(own)

    def remove_all(self) -> None:
        """Remove it. The other host may be removing it, too, or still be making names in it."""
        for tries_left in reversed(range(_REMOVALS)):
            try:
                self.fs.remove_tree(self.path)
            except OSError as error:
                if error.errno in NOT_EMPTY and tries_left:
                    continue
                if error.errno not in GONE:
                    self.announce(f"cannot remove {self.path} ({explain(error)}): remove it by hand")
            return


@contextlib.contextmanager
def scratch(parent: Directory) -> Iterator[Directory]:
    """A new directory for everything that is tried; removed at the end, whatever happens."""
    try:
        made = parent.make(f"{VERIFICATION}{unique()}")
    except OSError as error:
        raise cannot_be_used(parent.path, error) from error
    try:
        yield made
    finally:
        made.remove_all()
