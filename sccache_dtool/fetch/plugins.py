"""Sources and steps that are not built in: entry points of any installed package, this one included.

A package declares them in the groups `sccache_dtool.sources` (the name is a scheme) and `sccache_dtool.steps` (the
name is the step's word), each leading to a SourcePlugin or a StepPlugin. They are looked up only for a word that
nothing built in understands, so that they cost nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from sccache_dtool.errors import CacheError, FetchFailed
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.track import TakenOver

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from sccache_dtool.fetch.context import Context, Retrieved
    from sccache_dtool.fetch.request import Source, Step

SOURCES = "sccache_dtool.sources"
STEPS = "sccache_dtool.steps"

Plugin = TypeVar("Plugin")


class SourcePlugin(NamedTuple):
    """A further kind of source."""

    #: The word for a source, such as ``dirac:/lfn``, in its canonical form. Raises UsageError. Must be fast.
    parse: Callable[[str], Source]
    #: Brings the source to a new path, with the digests asked for. Raises FetchFailed.
    retrieve: Callable[[Context, Source, str, Sequence[str]], Retrieved]
    #: What has to be installed for it, in words; None if nothing.
    missing: Callable[[], str | None] = lambda: None
    #: What it is for, in a few words.
    summary: str = ""


class StepPlugin(NamedTuple):
    """A further step."""

    #: The text after the colon (None without one) in canonical form. Raises UsageError. Must be fast.
    parse: Callable[[str | None], Step]
    #: Makes the second path from the file at the first; the text names the source in errors. Raises FetchFailed.
    apply: Callable[[Context, str, str, str], None]
    #: What has to be installed for it, in words; None if nothing.
    missing: Callable[[], str | None] = lambda: None
    #: What it is for, in a few words.
    summary: str = ""


def find_source(scheme: str) -> SourcePlugin | None:
    """The plugin for a scheme; None if there is none. Raises CacheError for one that cannot be loaded."""
    return _find(SOURCES, scheme, SourcePlugin)


def find_step(name: str) -> StepPlugin | None:
    """The plugin for a step; None if there is none. Raises CacheError for one that cannot be loaded."""
    return _find(STEPS, name, StepPlugin)


@contextlib.contextmanager
def failing_in_words(what: str, plugin: str) -> Iterator[None]:
    """Turn whatever the code of a plugin raises while it does `what` into FetchFailed, which waiting processes see."""
    try:
        yield
    except (CacheError, OSError, TakenOver):
        raise
    except Exception as error:
        reason = plain(f"{type(error).__name__}: {error}")
        raise FetchFailed(f"{what}: {reason}", hint=f"this is a bug in the plugin {plugin}") from error


class Installed(NamedTuple):
    """A plugin that a package provides, or why it cannot be loaded."""

    name: str
    package: str
    plugin: SourcePlugin | StepPlugin | CacheError


def listing(group: str) -> Iterator[Installed]:
    """All plugins of a group."""
    for point in sorted(_points(group), key=lambda one: one.name):
        package = point.dist.name if point.dist else "?"
        try:
            plugin = _load(point, SourcePlugin) if group == SOURCES else _load(point, StepPlugin)
            yield Installed(point.name, package, plugin)
        except CacheError as error:
            yield Installed(point.name, package, error)


def _points(group: str) -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group=group))


def _find(group: str, name: str, kind: type[Plugin]) -> Plugin | None:
    return next((_load(point, kind) for point in _points(group) if point.name == name), None)


def _load(point: EntryPoint, kind: type[Plugin]) -> Plugin:
    try:
        plugin = point.load()
    except Exception as error:  # a stranger's module may raise anything
        raise CacheError(f"cannot load {point.name} ({point.value}): {type(error).__name__}: {error}") from error
    if not isinstance(plugin, kind):
        raise CacheError(f"{point.name} ({point.value}) is not a {kind.__name__}")
    return plugin
