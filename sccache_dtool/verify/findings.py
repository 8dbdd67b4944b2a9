"""What the probes find, and the verdict that follows from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem


class Weight(IntEnum):
    """What a finding means for the verdict; the heaviest decides."""

    GOOD = 0
    TOLD = 1  # worth knowing; nothing depends on it
    ONE_HOST = 2  # leases would not hold between hosts
    UNTRIED = 3  # whether leases would hold is not known
    UNFIT = 4  # leases would not hold at all

    @property
    def word(self) -> str:
        """For people and programs: ``good``, ``note``, ``one host``, ``not tried``, ``unfit``."""
        return ("good", "note", "one host", "not tried", "unfit")[self]


class Fitness(StrEnum):
    """What a file system is good for."""

    FIT = "fit"
    ONE_HOST = "fit for one host"
    UNDECIDED = "undecided"
    UNFIT = "unfit"


class Verdict(NamedTuple):
    """What follows from all findings, as both hosts are told."""

    fitness: Fitness
    text: str  # one line, with the reason


class Finding(NamedTuple):
    """What one check has shown. Figures are seconds or counts, by name."""

    check: str
    weight: Weight
    what: str
    figures: Mapping[str, Any] = MappingProxyType({})


class Report(NamedTuple):
    """What all checks have shown, and who took part."""

    directory: str
    kind: str  # of the file system
    hosts: tuple[str, ...]
    independent: bool  # two of them, with nothing but the file system in common
    findings: tuple[Finding, ...]

    @property
    def fitness(self) -> Fitness:
        """Only what was tried is vouched for: without a second host, nothing is said of several."""
        heaviest = max((finding.weight for finding in self.findings), default=Weight.GOOD)
        if heaviest is Weight.UNFIT:
            return Fitness.UNFIT
        if heaviest is Weight.UNTRIED:
            return Fitness.UNDECIDED
        return Fitness.FIT if self.independent and heaviest < Weight.ONE_HOST else Fitness.ONE_HOST

    @property
    def verdict(self) -> str:
        """One line: what it is good for, and why it is no better."""
        heaviest = max(self.findings, key=lambda finding: finding.weight, default=None)
        if heaviest is not None and heaviest.weight >= Weight.ONE_HOST:
            reason = f"{heaviest.check}: {heaviest.what}"
        elif self.independent:
            reason = f"every check passed on {' and '.join(self.hosts)} ({self.kind})"
        elif len(self.hosts) > 1:
            reason = f"both who took part are on one host, {self.hosts[0]}, and on one mount ({self.kind})"
        else:
            reason = f"only {self.hosts[0]} took part ({self.kind})"
        return f"{self.fitness}: {reason}"


class Place(NamedTuple):
    """A directory of ours in which things are tried, and what they are tried with.

    Its methods are for what nobody else does under these names. If it is said to have been done before, the server did
    it, and the reply was lost on the way: that is no finding.
    """

    fs: FileSystem
    clock: Clock
    path: str
    shared: bool = False  # its group takes part

    def make(self, name: str) -> Place:
        """A new directory in it."""
        path = f"{self.path}/{name}"
        try:
            self.fs.mkdir(path, shared=self.shared)
        except FileExistsError:
            if self.shared:
                self.fs.share(path)
        return self._replace(path=path)

    def record(self, text: str, name: str) -> None:
        """A new record in it."""
        with contextlib.suppress(FileExistsError):
            self.fs.put_record(text, f"{self.path}/{name}")

    def move(self, source: str, target: str) -> None:
        """Give something in it another name in it."""
        try:
            self.fs.rename(f"{self.path}/{source}", f"{self.path}/{target}")
        except FileNotFoundError:
            directory, _, name = f"{self.path}/{target}".rpartition("/")
            if name not in self.fs.names(directory):
                raise

    def remove(self, name: str) -> None:
        """Remove a name in it that is not a directory."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.unlink(f"{self.path}/{name}")

    def remove_directory(self, name: str) -> None:
        """Remove an empty directory in it."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rmdir(f"{self.path}/{name}")

    def put(self, path: str, data: bytes) -> None:
        """A new file in it, complete and durable."""
        try:
            fd = self.fs.create(f"{self.path}/{path}")
        except FileExistsError:
            self.remove(path)
            fd = self.fs.create(f"{self.path}/{path}")
        try:
            self.fs.write(fd, data)
            self.fs.sync(fd)
        finally:
            self.fs.close(fd)


Tell = Callable[[str], None]
