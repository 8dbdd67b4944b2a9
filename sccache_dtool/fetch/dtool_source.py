"""Items of dtool datasets: which item that is, what its digest must be, and how its own broker fetches it.

An item is what its dataset's UUID and its identifier say, wherever it comes from: what was fetched over S3 and what
over HTTP is one item. Its key needs neither manifest nor network.

No broker writes into the shared cache itself. A shallow copy of it is used whose cache directory is the work area: all
brokers keep that directory in an attribute. (A configuration file is not sufficient: the environment takes precedence,
dtool-http ignores the file, and the environment belongs to the whole process.)
"""

from __future__ import annotations

import binascii
import contextlib
import copy
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sccache_dtool.catalog.broker_names import LooseName, is_uuid
from sccache_dtool.disk import names as layout
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.errors import FULL, FetchFailed, UsageError
from sccache_dtool.fetch.progress import Progress
from sccache_dtool.fetch.reasons import CONTROL, causes, plain, why
from sccache_dtool.fetch.request import DTOOL, Chain, DatasetRequest, Location, Request, Source, Stack
from sccache_dtool.fetch.stack import parse_stack
from sccache_dtool.fetch.steps import file_digest
from sccache_dtool.forking import Guard

#: A dtool dataset object; dtool has no types.
DataSet = Any
Broker = Any

#: Kinds of storage whose URIs end in the dataset's UUID, or in no UUID at all. A directory may have any name.
_NAMED_BY_UUID = frozenset({"s3", "ecs", "azure", "irods", "http", "https"})

_opening = Guard()
_opened = threading.local()

_HASH_FUNCTION = re.compile(r"(md5|sha(?:1|224|256|384|512)?)(?:sum)?(?:_(?:hex)?digest)?", re.ASCII)


class WrongContent(FetchFailed):
    """What a broker brought is not what the manifest says, and was not at the second attempt either."""


class NoSuchItem(FetchFailed):
    """The manifest has no item of that identifier."""


class BrokerFailed(FetchFailed):
    """The broker could not fetch the item; `original` is what it raised, the same as without the plugin."""

    def __init__(self, what: str, original: Exception) -> None:
        super().__init__(f"cannot fetch {what}: {why(original)}")
        self.original = original


def is_identifier(text: object) -> bool:
    """Whether `text` has the form of an item's identifier."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{40}", text) is not None


def identity(uuid: str, identifier: str) -> str:
    """What stands for an item in every cache: ``dtool:<dataset's UUID>/<item's identifier>``."""
    return f"{DTOOL}{uuid}/{identifier}"


def item_key(uuid: str, identifier: str, steps: Sequence[str] = ()) -> str:
    """The key of an item, or of what `steps` make of it."""
    return layout.item_key((identity(uuid, identifier), *steps), f"{uuid[:8]}.{identifier}")


def item_request(
    uuid: str,
    identifier: str,
    root: str,
    open_dataset: Callable[[], DataSet],
    steps: Sequence[str] = (),
    path: str | None = None,
    uri: str = "",
) -> Request:
    """An item of the dataset `uuid`; `open_dataset` is called only if the item must be fetched.

    `root`: the cache, in which dtool itself may have left the item. `steps` are canonical, such as ``"tar"``. `path`:
    what the user gave instead of the identifier, for messages. `uri`: of the dataset, if it was opened by that.
    """
    key = item_key(uuid, identifier, steps)
    label = f"{uuid[:8]}.{identifier}"
    source = Stack((identity(uuid, identifier), *steps))

    def complete() -> Request:
        return _completed(key, open_dataset(), uuid, identifier, root, steps, path)

    if uri and ":" not in uri:
        uri = os.path.abspath(uri)
    spelled = (f"{DTOOL}{plain(uri)}#{identifier}", *steps) if uri else ()
    return Request(key, None, label, source, complete=complete, spelled=spelled)


def _completed(
    key: str, dataset: DataSet, uuid: str, identifier: str, root: str, steps: Sequence[str], path: str | None
) -> Request:
    """All that a fetch needs to know. Raises FetchFailed if the dataset is another, or NoSuchItem."""
    if dataset.uuid != uuid:
        raise FetchFailed(f"{plain(dataset.uri)} is dataset {plain(str(dataset.uuid))}, not {uuid}")
    manifest = manifest_of(dataset)
    if identifier not in manifest["items"]:
        raise NoSuchItem(
            f"dataset {plain(dataset.name)} has no item {plain(path or identifier)}",
            hint=f"list them: dtool ls {plain(str(dataset.uri))}",
        )
    properties = manifest["items"][identifier]
    relpath, size = described(dataset.uri, properties)
    digest = expected_digest(manifest, properties)
    canonical = (identity(uuid, identifier), *([":".join(digest)] if digest else []), *steps)
    name = _payload_name(relpath, steps)
    fetcher = ItemFetcher(
        label=name,
        what=f"{plain(relpath)} of dataset {plain(dataset.name)} ({plain(dataset.uri)})",
        identifier=identifier,
        size=size,
        digest=digest,
        broker=dataset._storage_broker,
        root=root,
        directories=tuple(dict.fromkeys((uuid, str(getattr(dataset._storage_broker, "uuid", uuid)).strip("/")))),
    )
    noted = {"uuid": uuid, "name": str(dataset.name), "uri": plain(str(dataset.uri))}
    source = Source(canonical[0], Location(dataset.uri), name)
    stack = Stack(canonical, name, (Chain((source,), canonical[1:], name),))
    return Request(key, None, name, stack, bringer.retrieve, noted, relpath)


def manifest_of(dataset: DataSet) -> Mapping[str, Any]:
    """What a dataset says of its items; asks a server at the first time. Raises FetchFailed."""
    try:
        manifest: Any = dataset._manifest
    except Exception as error:
        raise FetchFailed(f"cannot read the manifest of {plain(str(dataset.uri))}: {why(error)}") from error
    if not isinstance(manifest, Mapping) or not isinstance(manifest.get("items"), Mapping):
        raise _damaged(dataset.uri, "it lists no items")
    checked: Mapping[str, Any] = manifest
    return checked


def described(uri: object, properties: Any) -> tuple[str, int]:
    """Path and size of an item, from what the manifest of the dataset at `uri` says of it. Raises FetchFailed."""
    try:
        relpath, size = properties["relpath"], int(properties["size_in_bytes"])
    except (TypeError, ValueError, LookupError, OverflowError):
        relpath, size = None, -1
    if not isinstance(relpath, str) or size < 0:
        raise _damaged(uri, "it has an item without a path or a size")
    return relpath, size


class ListedItem(NamedTuple):
    """An item as the manifest of its dataset lists it."""

    identifier: str
    relpath: str
    size: int  # bytes


def items_of(dataset: DataSet) -> Iterator[ListedItem]:
    """All items of a dataset. Asks a server at the first time. Raises FetchFailed."""
    for identifier, properties in manifest_of(dataset)["items"].items():
        yield ListedItem(identifier, *described(dataset.uri, properties))


def _damaged(uri: object, what: str) -> FetchFailed:
    return FetchFailed(f"the manifest of {plain(str(uri))} is damaged: {what}")


def _payload_name(relpath: str, steps: Sequence[str]) -> str:
    """The last part of an item's path, so that programs find the extension they go by."""
    name = CONTROL.sub("_", relpath.rstrip("/").rpartition("/")[2])
    name = name.encode(errors="replace").decode()
    if name in ("", ".", ".."):
        return "data"
    return parse_stack([f"file:/{name}", *steps]).label if steps else layout.shortened(name)


def expected_digest(manifest: Mapping[str, Any], properties: Mapping[str, Any]) -> tuple[str, str] | None:
    """Algorithm and hexadecimal digest that a manifest gives for an item; None if it gives none that is known here."""
    match = _HASH_FUNCTION.fullmatch(str(manifest.get("hash_function")))
    text = properties.get("hash")
    if match is None or not isinstance(text, str):
        return None
    algorithm = "sha1" if match[1] == "sha" else match[1]
    import hashlib

    size = hashlib.new(algorithm, usedforsecurity=False).digest_size
    if re.fullmatch("[0-9A-Fa-f]*", text) and len(text) == 2 * size:
        return algorithm, text.lower()
    try:
        digest = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        return None
    return (algorithm, digest.hex()) if len(digest) == size else None


# -- words and datasets ------------------------------------------------------------------------------------------------


def parse_dtool(words: Sequence[str], root: str, *, may_be_all: bool) -> Request | DatasetRequest:
    """What ``dtool:URI`` or ``dtool:URI#ITEM [STEP]...`` means; ITEM is an identifier, or a path in the dataset.

    Raises UsageError if it means nothing, and FetchFailed if a server must be asked which dataset is at the URI.
    `may_be_all`: whether a whole dataset will do, which has no name but its own.
    """
    uri, mark, item = words[0].removeprefix(DTOOL).partition("#")
    if not uri or CONTROL.search(words[0]):
        raise UsageError(
            f"{plain(words[0])} does not name a dataset", hint="give dtool:URI, or dtool:URI#ITEM for one item"
        )
    if not mark:
        if len(words) > 1:
            raise UsageError(
                f"{plain(words[1])} cannot be applied to a whole dataset", hint="name an item: dtool:URI#ITEM"
            )
        if not may_be_all:
            raise UsageError("-n cannot be used with a whole dataset", hint="leave out -n")
        return DatasetRequest(uri, uuid_of(uri))
    item = item.removeprefix("./")
    if not item:
        raise UsageError(
            f"{plain(words[0])} does not name an item",
            hint="give the item's identifier or its path in the dataset: dtool:URI#ITEM",
        )
    steps = parse_stack(["file:/item", *words[1:]]).steps
    if is_identifier(item):
        return item_request(uuid_of(uri), item, root, lambda: open_dataset(uri), steps, uri=uri)
    import hashlib

    identifier = hashlib.sha1(item.encode(), usedforsecurity=False).hexdigest()
    return item_request(uuid_of(uri), identifier, root, lambda: open_dataset(uri), steps, item, uri)


def uuid_of(uri: str) -> str:
    """The UUID of the dataset at a URI. Asks a server only if the URI does not say. Raises FetchFailed."""
    last = uri.partition("?")[0].rstrip("/").rpartition("/")[2].lower()
    if uri.partition(":")[0].lower() in _NAMED_BY_UUID and is_uuid(last):
        return last
    return str(open_dataset(uri).uuid)


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


# -- fetching it -------------------------------------------------------------------------------------------------------


class ItemFetcher(NamedTuple):
    """Brings one item (see `Request.retrieve`): from what dtool left in the cache, else by its dataset's broker."""

    what: str  # the item, for people
    label: str
    identifier: str
    size: int  # bytes
    digest: tuple[str, str] | None
    broker: Broker
    root: str
    directories: tuple[str, ...]  # below the root, where dtool itself keeps the items of this dataset

    def retrieve(self, fs: FileSystem, target: str, progress: Progress) -> None:
        """Bring the item to `target`; what arrives wrong is fetched once more."""
        for path in (target, f"{target}.broker"):  # of a killed fetch that is continued
            with contextlib.suppress(FileNotFoundError):
                fs.remove_tree(path)
        progress.start(self.label, self.size)
        if self._adopt(fs, target):
            progress.advance(self.size)
            return
        fault = ""
        for last in (False, True):
            try:
                self._fetch(fs, target)
            except BrokerFailed as error:
                if last or not _was_torn(error.original):
                    raise
                continue
            fault = self._fault(fs, target)
            if not fault:
                progress.advance(self.size)
                return
            fs.unlink(target)
        expected = f"{self.size} bytes" + (f", {self.digest[0]} {self.digest[1]}" if self.digest else "")
        raise WrongContent(
            f"{self.what} was received with errors twice: {fault}",
            details=[f"item {self.identifier}, expected {expected}"],
            hint="the stored file is not the frozen one, or the transfer damages it: ask the owner of the dataset",
            shared=True,
        )

    def _fault(self, fs: FileSystem, path: str) -> str:
        """What is wrong with the file at `path`, in words; empty if nothing is."""
        size = fs.lstat(path).st_size
        if size != self.size:
            return f"received {size} bytes, expected {self.size}"
        if self.digest is not None:
            found = file_digest(fs, path, self.digest[0])
            if found != self.digest[1]:
                return f"its {self.digest[0]} is {found}, expected {self.digest[1]}"
        return ""

    def _fetch(self, fs: FileSystem, target: str) -> None:
        """Have the broker put the item at `target`."""
        area = f"{target}.broker"
        fs.mkdir(area)
        twin = redirected(self.broker, area)
        try:
            path = os.path.realpath((twin or self.broker).get_item_abspath(self.identifier))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise  # the file system that the cache is on is full
            fs.remove_tree(area)
            raise BrokerFailed(self.what, error) from error
        if path.startswith(f"{os.path.realpath(area)}/") and stat.S_ISREG(fs.lstat(path).st_mode):
            fs.rename(path, target)
        else:  # its original data, or a cache of its own: neither may be moved
            fd = fs.open(path)
            try:
                _copy(fs, fd, target)
            finally:
                fs.close(fd)
        fs.remove_tree(area)

    # -- what dtool itself left in the cache ---------------------------------------------------------------------

    def _adopt(self, fs: FileSystem, target: str) -> bool:
        """Copy the item from a loose file to `target` if there is one with the right digest.

        A link would be cheaper, but another process's broker may still hold the file open and write to it. The loose
        file itself stays until `clean` finds it old enough: it may have readers that hold no lease.
        """
        if self.digest is None:
            return False
        for inner in self._loose(fs):
            try:
                if self._copied(fs, inner, target) and not self._fault(fs, target):
                    return True
            except OSError as error:
                if error.errno in FULL:
                    raise
            with contextlib.suppress(FileNotFoundError):
                fs.unlink(target)
        return False

    def _loose(self, fs: FileSystem) -> Iterator[str]:
        """Paths, relative to the root, of files that dtool has left for this item, whole or not."""
        for directory in self.directories:
            if any(part in ("", ".", "..") for part in directory.split("/")):
                continue  # it does not name something below the root
            try:
                found = fs.names(f"{self.root}/{directory}")
            except OSError:
                continue
            for name in found:
                parsed = LooseName.parse(name)
                if parsed is not None and parsed.identifier == self.identifier:
                    yield f"{directory}/{name}"

    def _copied(self, fs: FileSystem, inner: str, target: str) -> bool:
        """Copy a file from below the root; False for one of another size, or no file."""
        fd = fs.open_below(self.root, inner)
        try:
            status = fs.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size != self.size:
                return False
            _copy(fs, fd, target)
        finally:
            fs.close(fd)
        return True


def _copy(fs: FileSystem, source: int, target: str) -> None:
    """Copy what is open to a new file; what came of it, the caller checks."""
    from sccache_dtool.fetch import local
    from sccache_dtool.fetch.progress import NoProgress
    from sccache_dtool.fetch.sink import Sink

    with Sink(fs, target, (), NoProgress()) as sink:
        if not sink.clone(source):
            local.fill(fs, source, fs.fstat(source), sink)


def redirected(broker: Broker, directory: str) -> Broker | None:
    """A copy of a broker that keeps what it downloads in `directory`; None if it has no such attribute."""
    names = cache_attributes(broker)
    if not names:
        return None
    twin = copy.copy(broker)
    for name in names:
        setattr(twin, name, directory)
    return twin


def cache_attributes(broker: Broker) -> list[str]:
    """Names of the attributes in which a broker keeps the path of its cache: ``_s3_cache_abspath`` and the like."""
    texts = {name: value for name, value in getattr(broker, "__dict__", {}).items() if isinstance(value, str)}
    named = [name for name in texts if name.endswith("_cache_abspath")]
    if named:
        return named
    from dtoolcore.utils import DEFAULT_CACHE_PATH, get_config_value

    configured = get_config_value("DTOOL_CACHE_DIRECTORY", default=DEFAULT_CACHE_PATH)
    return [name for name, value in texts.items() if value == configured]


def _was_torn(error: BaseException) -> bool:
    """Whether a transfer broke off in its middle, as http.client, urllib3, requests and botocore each say it."""
    torn = {"IncompleteRead", "IncompleteReadError", "ProtocolError", "ChunkedEncodingError", "ResponseStreamingError"}
    return any(type(cause).__name__ in torn for cause in causes(error))
