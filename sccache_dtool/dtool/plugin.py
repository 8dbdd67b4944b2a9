"""Leases and right content for every user of dtool, without a changed line.

dtool calls no hooks around item access: what its specification names exists in no release. But it loads all entry
points of the group `dtool.storage_brokers` before it makes a dataset, and `DataSet.item_content_abspath` is the one
way to an item's content. So loading this module wraps that method; the broker that the entry point names is none.

dtool catches no error while it loads entry points. Nothing is imported here that could fail before it is needed. If
anything of sc-dtool fails, dtool works as without the plugin, after one warning for each process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sccache_dtool.cache import Cache
    from sccache_dtool.errors import LeaseLost
    from sccache_dtool.fetch.request import Request
    from sccache_dtool.protocol.leases import Lease

#: ``off`` switches the plugin off. With ``debug``, a failure of the plugin is shown with its traceback.
SWITCH = "SC_DTOOL_PLUGIN"

#: What marks the method as wrapped, whichever copy of this module did it.
_MARK = "_sc_dtool_wraps"

Original = Callable[[Any, str], str]


class Plugin:
    """What dtool loads: a storage broker only by its `key`, which is not the scheme of any URI."""

    key = "sc-dtool"


class _State:
    """What this process holds; a forked child begins with nothing."""

    def __init__(self) -> None:
        self.guard = threading.RLock()  # reentrant, as the next: a signal handler may ask in the middle of an access
        self.caches: dict[str, Cache] = {}
        self.held: dict[tuple[str, str], Lease] = {}
        self.busy: dict[tuple[str, str], AbstractContextManager[bool]] = {}
        self.warned = False


_state = _State()


def _forget() -> None:
    global _state
    _state = _State()


def is_off() -> bool:
    """Whether the user has switched the plugin off."""
    return os.environ.get(SWITCH, "").strip().lower() in ("off", "0", "no", "false")


def install() -> bool:
    """Wrap `DataSet.item_content_abspath`, once; whether it is wrapped now. Never raises."""
    try:
        if is_off():
            return False
        from dtoolcore import DataSet

        original = DataSet.item_content_abspath
        if not hasattr(original, _MARK):
            from sccache_dtool import forking

            forking.wait_for_imports()  # a fork would cut off what another thread loads at its first access
            os.register_at_fork(after_in_child=_forget)
            DataSet.item_content_abspath = _wrapped(original)
    except Exception as error:
        _warn_once(error)
        return False
    return True


def _wrapped(original: Original) -> Original:
    @functools.wraps(original)
    def item_content_abspath(self: Any, identifier: str) -> str:
        if is_off():
            return original(self, identifier)
        return _content(self, identifier, functools.partial(original, self, identifier))

    setattr(item_content_abspath, _MARK, original)
    return item_content_abspath


@contextlib.contextmanager
def leased(dataset: Any, identifier: str) -> Iterator[str]:
    """The path of an item's content, which nothing can delete until the block ends.

    ::

        with leased(dataset, identifier) as path:
            ...

    Like `dataset.item_content_abspath`, whose lease lasts until the process ends. Data that dtool does not copy
    (``file:`` and ``symlink:``) has no lease.
    """
    original = getattr(type(dataset).item_content_abspath, _MARK, type(dataset).item_content_abspath)
    lease, path = (None, "")
    if not is_off():
        lease, path = _lease_or_path(dataset, identifier, functools.partial(original, dataset, identifier))
    if lease is None:
        yield path or original(dataset, identifier)
        return
    try:
        yield os.fspath(lease)
    finally:
        lease.release()


def _content(dataset: Any, identifier: str, without_plugin: Callable[[], str]) -> str:
    """The path of an item, leased for the life of this process: one lease for each item, however often it is asked."""
    state = _state
    slot = (str(getattr(dataset, "uuid", "")), str(identifier))
    with state.guard:
        lease = state.held.get(slot)
        busy = state.busy.setdefault(slot, threading.RLock())
    if lease is not None and _is_usable(lease):
        return os.fspath(lease)
    with busy:
        lease = state.held.get(slot)
        if lease is not None and _is_usable(lease):
            return os.fspath(lease)
        lease, path = _lease_or_path(dataset, identifier, without_plugin)
        if lease is not None:
            state.held[slot] = lease
            return os.fspath(lease)
    return path or without_plugin()


def _is_usable(lease: Lease) -> bool:
    """Whether a lease still stands for what it was taken on; people delete by hand, too, and dtool fetched again."""
    try:
        return not lease.released and lease.holder.confirm() and os.path.exists(lease)
    except OSError:  # not known: taken again
        return False


def _lease_or_path(dataset: Any, identifier: str, without_plugin: Callable[[], str]) -> tuple[Lease | None, str]:
    """A lease; or a path that needs none; or neither, if dtool must do without the plugin.

    Raises what the broker raises, and WrongContent.
    """
    try:
        from sccache_dtool.errors import FetchFailed
        from sccache_dtool.fetch.dtool_source import BrokerFailed, NoSuchItem, WrongContent
    except Exception as error:
        _warn_once(error)
        return None, ""
    try:
        try:
            return _try_lease(dataset, identifier, without_plugin)
        except FetchFailed as error:
            if type(error) is not FetchFailed:
                raise
            # This may be the error of another process's fetch that was waited for. That of this process says more.
            return _try_lease(dataset, identifier, without_plugin)
    except BrokerFailed as error:
        failure = error.original
    except WrongContent:
        raise
    except NoSuchItem:
        return None, ""  # a question for the broker, which answers it in its own words
    except Exception as error:
        _warn_once(error)
        return None, _path_without_lease(dataset, identifier)
    raise failure


def _try_lease(dataset: Any, identifier: str, without_plugin: Callable[[], str]) -> tuple[Lease | None, str]:
    from dtoolcore.storagebroker import DiskStorageBroker

    from sccache_dtool.fetch import dtool_source

    store = dataset._storage_broker
    if isinstance(store, DiskStorageBroker) or not dtool_source.is_identifier(identifier):
        return None, ""
    cache = _cache(store)
    request = dtool_source.item_request(dataset.uuid, identifier, str(cache.root), lambda: dataset)
    if dtool_source.cache_attributes(store):
        return cache.use_request(request), ""
    return _of_unknown_broker(cache, request, without_plugin)


def _path_without_lease(dataset: Any, identifier: str) -> str:
    """The path of a copy on which no lease can be taken, as in a read-only cache; empty if there is none.

    Without the plugin, dtool would fetch it again, into the same directory.
    """
    with contextlib.suppress(Exception):  # what is wrong has been said
        from sccache_dtool.fetch import dtool_source

        cache = _cache(dataset._storage_broker)
        for copy in cache.item(dtool_source.item_key(dataset.uuid, identifier)).copies:
            path = None if copy.closed else cache.path(copy)
            if path is not None and cache.is_whole(copy, path) and os.access(path, os.R_OK):
                return str(path)
    return ""


def _of_unknown_broker(cache: Cache, request: Request, without_plugin: Callable[[], str]) -> tuple[Lease | None, str]:
    """For a broker whose cache directory is not known: a lease only if the broker puts the item there."""
    if cache.has(request.key):
        return cache.use_request(request), ""
    try:
        path = without_plugin()
    except Exception as error:
        from sccache_dtool.fetch.dtool_source import BrokerFailed

        raise BrokerFailed(request.label, error) from error
    if not os.path.realpath(path).startswith(f"{os.path.realpath(cache.root)}/"):
        return None, path
    return cache.use_request(request), ""


def _cache(store: Any) -> Cache:
    """The cache in the directory that a broker uses, else in the one that dtool is configured to use."""
    from sccache_dtool import log
    from sccache_dtool.cache import Cache
    from sccache_dtool.disk import root
    from sccache_dtool.fetch import dtool_source

    attributes = dtool_source.cache_attributes(store)
    directory = getattr(store, attributes[0]) if attributes else ""
    choice = root.choose(None, os.environ)
    if not os.path.isabs(directory):
        directory = choice.path
    state = _state
    with state.guard:
        if directory not in state.caches:
            if not _has_own_log():
                log.show(log.NOTE, _tell)
            state.caches[directory] = Cache(
                directory,
                upstream=root.choose_upstream(None, os.environ, directory),
                on_lost=_report_loss,
                may_hold_data=True,
                parents=choice.parents and directory == choice.path,
            )
        return state.caches[directory]


# -- messages ----------------------------------------------------------------------------------------------------------


def _tell(level: int, text: str) -> None:
    """Print a message of the package's loggers, unless the program's own handlers print it."""
    import logging

    if not logging.root.handlers:
        _print(f"warning: {text}" if level >= logging.WARNING else text)


def _warn_once(error: BaseException) -> None:
    """Say that dtool goes its own way, and why; once for the process."""
    if _state.warned:
        return
    _state.warned = True
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError):
        from sccache_dtool.errors import explain

        reason = explain(error)
    _print(f"warning: dtool continues without leases: {reason} (to switch sc-dtool off permanently: {SWITCH}=off)")
    if os.environ.get(SWITCH) == "debug":
        import traceback

        from sccache_dtool.fetch.reasons import without_credentials

        traceback.print_exception(without_credentials(error))


def _report_loss(error: LeaseLost) -> None:
    _print(f"warning: {error.message}; {error.hint}")


def _has_own_log() -> bool:
    """Whether the program has configured logging, and so decides which messages it shows, and where."""
    import logging

    from sccache_dtool import log

    return logging.getLogger(log.ROOT).hasHandlers()


def _print(text: str) -> None:
    """A line on standard error, if there is one, without control characters; never raises."""
    with contextlib.suppress(Exception):
        from sccache_dtool.log import printable

        print(f"sc-dtool: {printable(text)}", file=sys.stderr, flush=True)


install()
