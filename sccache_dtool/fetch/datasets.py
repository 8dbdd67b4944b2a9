"""``dtool:<dataset URI>#<item>`` on the command line and in calls: which item that is, and opening its dataset.

An item may be given by its identifier or by its path in the dataset. Where the URI ends in the dataset's UUID, as
those of all object stores do, no server is asked which item is meant.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from sccache_dtool.catalog.broker_names import is_uuid
from sccache_dtool.disk.names import item_key
from sccache_dtool.errors import FetchFailed, UsageError
from sccache_dtool.fetch.dtool_source import DataSet, is_identifier, wanted
from sccache_dtool.fetch.reasons import CONTROL, plain, why
from sccache_dtool.fetch.request import DTOOL, Wanted
from sccache_dtool.fetch.stack import parse_stack
from sccache_dtool.forking import Guard

#: Kinds of storage whose URIs end in the dataset's UUID, or in no UUID at all. A directory may have any name.
_NAMED_BY_UUID = frozenset({"s3", "ecs", "azure", "irods", "http", "https"})

#: How the names of such directories end.
VIEW = ".dataset"

_opening = Guard()
_opened = threading.local()


class Reference(NamedTuple):
    """What the words mean: a dataset, and one of its items or all."""

    uri: str
    identifier: str | None
    steps: tuple[str, ...]  # canonical

    @property
    def uuid(self) -> str:
        """The dataset's UUID; asks a server only where the URI does not say. Raises FetchFailed."""
        last = self.uri.partition("?")[0].rstrip("/").rpartition("/")[2].lower()
        if self.uri.partition(":")[0].lower() in _NAMED_BY_UUID and is_uuid(last):
            return last
        return str(open_dataset(self.uri).uuid)


def parse(words: Sequence[str]) -> Reference:
    """What ``dtool:URI[#ITEM] [STEP]...`` means. Raises UsageError if it means nothing."""
    text = words[0].removeprefix(DTOOL)
    uri, mark, item = text.partition("#")
    if not uri or CONTROL.search(text):
        raise UsageError(
            f"{plain(words[0])} does not name a dataset", hint="give dtool:URI, or dtool:URI#ITEM for one item"
        )
    if not mark:
        if len(words) > 1:
            raise UsageError(
                f"{plain(words[1])} cannot be applied to a whole dataset", hint="name an item: dtool:URI#ITEM"
            )
        return Reference(uri, None, ())
    item = item.removeprefix("./")
    if not item:
        raise UsageError(
            f"{plain(words[0])} does not name an item",
            hint="give the item's identifier or its path in the dataset: dtool:URI#ITEM",
        )
    steps = parse_stack(["file:/item", *words[1:]]).steps
    if not is_identifier(item):
        item = hashlib.sha1(item.encode(), usedforsecurity=False).hexdigest()
    return Reference(uri, item, steps)


def wanted_from_words(words: Sequence[str], root: str) -> Wanted:
    """The item that ``dtool:URI#ITEM [STEP]...`` means. Raises UsageError, or FetchFailed if a server must be asked."""
    reference = parse(words)
    if reference.identifier is None:
        raise UsageError(
            f"{plain(words[0])} is a whole dataset, but one item is needed here",
            hint="give dtool:URI#ITEM; `sc-dtool use` also accepts whole datasets",
        )
    uri = reference.uri
    return wanted(reference.uuid, reference.identifier, root, lambda: open_dataset(uri), reference.steps)


def view_key(uuid: str) -> str:
    """The key of the directories that show a whole dataset; see `dtool/staging.py`."""
    return item_key((f"{DTOOL}{uuid}",), f"{uuid[:8]}{VIEW}")


def open_dataset(uri: str) -> DataSet:
    """The dataset at a URI, opened once by each thread: brokers are not made to be shared. Raises FetchFailed."""
    opened: dict[str, Any] = _opened.__dict__
    if uri not in opened:
        with _opening.lock:  # dtool and boto3 set up what is the whole process's
            opened[uri] = _open(uri)
    return opened[uri]


def _open(uri: str) -> DataSet:
    try:
        import dtoolcore
    except Exception as error:
        raise FetchFailed(
            f"dtool cannot be loaded: {why(error)}", hint="install it: pip install 'sccache-dtool[dtool]'"
        ) from error
    try:
        return dtoolcore.DataSet.from_uri(uri)
    except KeyError as error:
        scheme = uri.partition(":")[0]
        if error.args != (scheme,) or re.fullmatch("[a-z0-9]+", scheme) is None:
            raise FetchFailed(f"cannot open dataset {plain(uri)}: no {why(error)}") from error
        raise FetchFailed(
            f"cannot open dataset {plain(uri)}: dtool has no storage broker for {scheme!r}",
            hint=f"install it: pip install dtool-{scheme}",
        ) from error
    except Exception as error:
        raise FetchFailed(f"cannot open dataset {plain(uri)}: {why(error)}") from error
