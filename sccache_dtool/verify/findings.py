"""What checks find, what the errors that they meet mean, and the verdict that follows."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from sccache_dtool.errors import FULL, CacheError, NoSpace, UsageError, explain

Announce = Callable[[str], None]


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


class Finding(NamedTuple):
    """What one check has shown. Figures are seconds, counts or short texts, by name."""

    check: str
    weight: Weight
    what: str
    figures: Mapping[str, Any] = MappingProxyType({})


def good(what: str = "", **figures: object) -> Finding:
    """The check under way has passed. Without words, those of both sides' figures follow."""
    return Finding("", Weight.GOOD, what, figures)


def note(what: str, **figures: object) -> Finding:
    """The check under way has passed, with something worth knowing."""
    return Finding("", Weight.TOLD, what, figures)


class Refuted(Exception):
    """The file system does not do what the check under way is about: in words, and in figures."""


def require(condition: object, otherwise: str, figures: Mapping[str, object] = MappingProxyType({})) -> None:
    """Raises Refuted unless the condition holds."""
    if not condition:
        raise Refuted(otherwise, figures)


class Report(NamedTuple):
    """What all checks have shown, and who took part."""

    directory: str
    kind: str  # of the file system
    hosts: tuple[str, ...]
    independent: bool  # two of them, with nothing but the file system in common
    findings: tuple[Finding, ...]

    @property
    def heaviest(self) -> Finding:
        """The finding that decides: the first of the heaviest weight."""
        return max(self.findings, key=lambda finding: finding.weight)

    @property
    def fitness(self) -> Fitness:
        """Only what was tried is vouched for: without a second host, nothing is said of several."""
        if self.heaviest.weight >= Weight.UNTRIED:
            return Fitness.UNFIT if self.heaviest.weight is Weight.UNFIT else Fitness.UNDECIDED
        return Fitness.FIT if self.independent and self.heaviest.weight < Weight.ONE_HOST else Fitness.ONE_HOST

    @property
    def verdict(self) -> str:
        """One line: what it is good for, and why it is no better."""
        if self.heaviest.weight >= Weight.ONE_HOST:
            reason = f"{self.heaviest.check}: {self.heaviest.what}"
        elif self.independent:
            reason = f"every check passed on {' and '.join(self.hosts)} ({self.kind})"
        elif len(self.hosts) > 1:
            reason = f"both participants are on one host, {self.hosts[0]}, and on one mount ({self.kind})"
        else:
            reason = f"only {self.hosts[0]} took part ({self.kind})"
        return f"{self.fitness}: {reason}"

    def plus(self, *findings: Finding) -> Report:
        """The report with more findings."""
        return self._replace(findings=(*self.findings, *findings))


#: errno values of a moment: a disk or a network that fails, a server that is away, a process or a host at its limits.
_PASSING = frozenset(
    getattr(errno, name)
    for name in "EIO EINTR EAGAIN EBUSY ENOMEM EMFILE ENFILE ENOTCONN ETIMEDOUT ECONNREFUSED ECONNRESET "
    "ECONNABORTED EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH".split()
)


def is_answer(error: OSError) -> bool:
    """Whether an error is the file system's answer; others say only that this was a bad moment to ask."""
    return error.errno not in FULL | _PASSING


def refusal(act: Callable[[], object], allowed: frozenset[int] | None = None) -> OSError | None:
    """The error by which an act was refused, None if it was done.

    Raises an error that is not among the `allowed` ones or, without these, one that is not an answer.
    """
    try:
        act()
    except OSError as error:
        if is_answer(error) if allowed is None else error.errno in allowed:
            return error
        raise
    return None


def failed(error: OSError) -> Finding:
    """What it means that the check under way has ended with an error. Raises one that means "no space left"."""
    if error.errno in FULL:
        raise error
    if is_answer(error):
        return Finding("", Weight.UNFIT, f"failed: {explain(error)}")
    return Finding("", Weight.UNTRIED, f"could not be tried: {explain(error)}")


def reason(error: BaseException) -> str:
    """Why something was not done, in one sentence."""
    return explain(error) if isinstance(error, OSError) else str(error)


def broken_off(directory: str, error: OSError) -> CacheError:
    """That a verification could not be brought to an end, and so has no verdict."""
    kind, first = (NoSpace, "free some space, and ") if error.errno in FULL else (CacheError, "")
    hint = f"{first}verify it again; nothing is known of this file system yet"
    return kind(f"could not be tried: {directory}: {explain(error)}", hint=hint)


def cannot_be_used(directory: str, error: OSError) -> CacheError:
    """That a directory cannot be listed, or that nothing can be created in it."""
    if not is_answer(error):
        return broken_off(directory, error)
    hint = "give a directory on the mount, in which you can write"
    return UsageError(f"cannot verify {directory}: {explain(error)}", hint=hint)
