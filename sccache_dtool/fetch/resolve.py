"""Parsing of the words of `use`, of whatever kind their source is, into a request.

Only entry points call this: the command line, `Cache`, and the plugin for dtool.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sccache_dtool.disk.names import item_key, label
from sccache_dtool.errors import UsageError
from sccache_dtool.fetch.request import DTOOL, DatasetRequest, Request
from sccache_dtool.fetch.stack import parse_stack


def parse_request(
    words: Sequence[str], name: str | None, root: str, credentials: Collection[str] = ()
) -> Request | DatasetRequest:
    """What words and a name mean in the cache at `root`. Raises UsageError if they mean nothing.

    Raises FetchFailed if a server must be asked which dataset is meant, and does not answer. `credentials`: see
    `parse_stack`.
    """
    if not words and name is None:
        raise UsageError("nothing to use", hint="give a source (a path or URL), or a name with -n NAME, or both")
    if words and words[0].startswith(DTOOL):
        from sccache_dtool.fetch.dtool_source import parse_dtool

        request = parse_dtool(words, root, may_be_all=name is None)
        if name is None or isinstance(request, DatasetRequest):
            return request
        _check_name(name)
        whole = request.complete() if request.complete is not None else request
        return whole._replace(key=_named(name), name=name, spelled=request.spelled)
    stack = parse_stack(words, credentials=credentials)
    if name is None:
        return Request(item_key(stack.canonical, stack.name), None, stack.label, stack)
    _check_name(name)
    return Request(_named(name), name, stack.label if stack else label(name), stack)


def one_item(request: Request | DatasetRequest) -> Request:
    """The request, if it is for one item. Raises UsageError for a whole dataset."""
    if isinstance(request, DatasetRequest):
        raise UsageError(
            f"{DTOOL}{request.label} is a whole dataset, but one item is needed here",
            hint="give dtool:URI#ITEM; `sc-dtool use` also accepts whole datasets",
        )
    return request


def _check_name(name: str) -> None:
    if not (name.strip() and name.isprintable() and len(name) <= 200):
        raise UsageError(f"{name!r} cannot be an item's name", hint="give 1 to 200 printable characters")


def _named(name: str) -> str:
    return item_key((f"name:{name}",), name)
