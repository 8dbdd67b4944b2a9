"""All paths and names on disk: encodes and parses them. See `docs/reference/format.md`.

Names contain what a scan needs, such as the size and age of a generation, so that a scan only lists directories.
Random parts are never reused.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from sccache_dtool.disk.nofollow import CONTROL as CONTROL
from sccache_dtool.disk.nofollow import VERIFICATION as VERIFICATION
from sccache_dtool.disk.records import printable
from sccache_dtool.log import Log
from sccache_dtool.oddity import Fate, Oddity

FORMAT_VERSION = 1
FORMAT_MAGIC = "sc-dtool cache"
TAG_NAME = "CACHEDIR.TAG"
TAG_TEXT = """Signature: 8a477f597d28d172789f06886806bc55
# This file is a cache directory tag created by sc-dtool: backup programs leave the directory out.
# See https://bford.info/cachedir/
"""

# Not compiled here: a short command needs only a few of these patterns, and `re` caches them.
_IN_LABEL = r"[^/~\x00-\x1f\x7f\ud800-\udfff]"
_GAP = r"~[0-9a-f]{32}~"
_KEY = rf"[0-9a-f]{{32}}-(?:{_IN_LABEL}{{1,200}}|{_IN_LABEL}{{1,100}}{_GAP}{_IN_LABEL}{{1,100}})"
_HOLDER = r"[prsnj][0-9a-f]{12}-[0-9a-f]{12}"
_COPY = r"g[0-9a-f]{16}(?:-[0-9]{1,18}){3}(?:-t[0-9]{1,12})?(?:-v[0-9a-f]{16})?"
_ESCAPED = "[%~/\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
_ESCAPES = r"(?:%[0-9A-F]{2})+"

#: What the texts in names look like, by the words that stand for them in `DiskName.form`.
_TEXTS = {
    "hex16": r"[0-9a-f]{16}",
    "hex32": r"[0-9a-f]{32}",
    "holder": _HOLDER,
    "lease": rf"{_HOLDER}\.[0-9]{{1,12}}",
    "key": _KEY,
    "of": rf"[0-9a-f]{{32}}|{_COPY}~[0-9]{{1,12}}",
    "word": r"[a-z]+",
    "ending": "released|reaped",
    "result": "done|failed",
}

#: Most bytes of an item's name in a file name. File systems allow 255 bytes: a key needs 33 for its digits, a pin needs
#: 13 for its end, and backup programs append to names.
NAME_LIMIT = 200


def unique(digits: int = 16) -> str:
    """`digits` random hexadecimal digits."""
    return os.urandom(digits // 2).hex()


def label(name: str) -> str:
    """The readable part of an item's key: its name in UTF-8, with as few escapes as possible.

    ``%XX`` stands for the bytes of ``/``, of control characters, of ``%`` and ``~``, of a leading dot, and of what is
    not UTF-8. If the result is longer than NAME_LIMIT bytes, its middle is replaced by a digest. Two names never have
    the same label.
    """
    units = [_escape(character) if re.match(_ESCAPED, character) else character for character in name]
    if name.startswith("."):
        units[0] = _escape(".")
    return _shortened(units, name)


def shortened(name: str) -> str:
    """A file name of at most NAME_LIMIT bytes: `name`, with its middle replaced by a digest if it is longer."""
    return _shortened(list(name), name)


def key_name(key: str) -> str | None:
    """The name of an item from its key; None if the key contains only a part of it."""
    return None if re.search(_GAP, key) else _unescape(key[33:])


def key_label(key: str) -> str:
    """The name of an item for people, as far as its key contains it."""
    return _unescape(key[33:])


def is_named(key: str, name: str) -> bool:
    """Whether `name` is the name of the item with this key."""
    return key[33:] == label(name)


def _escape(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _unescape(text: str) -> str:
    def decode(match: re.Match[str]) -> str:
        return bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "surrogatepass")

    try:
        return re.sub(_ESCAPES, decode, text)
    except UnicodeDecodeError:  # a key that the program did not create
        return text


def _shortened(units: Sequence[str], name: str) -> str:
    """The units joined, or as many of the first and last ones as fit, with a digest of the whole name between them.

    The digest keeps names with the same beginning and the same end apart.
    """
    text = "".join(units)
    if len(text.encode("utf-8", "surrogatepass")) <= NAME_LIMIT:
        return text
    import hashlib

    gap = f"~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}~"
    half = (NAME_LIMIT - len(gap)) // 2
    front, end = _fitting(units, half), _fitting(units[::-1], half)
    return f"{''.join(front)}{gap}{''.join(end[::-1])}"


def _fitting(units: Sequence[str], room: int) -> list[str]:
    """The first units that fit into `room` bytes."""
    found = []
    for unit in units:
        room -= len(unit.encode("utf-8", "surrogatepass"))
        if room < 0:
            break
        found.append(unit)
    return found


def item_key(identity: tuple[str, ...], name: str) -> str:
    """The name of an item's directory: 128 bits of the SHA-256 of its identity, and its readable name."""
    import hashlib

    return f"{hashlib.sha256(chr(10).join(identity).encode()).hexdigest()[:32]}-{label(name)}"


def is_key(name: str) -> bool:
    """Whether `name` has the form of an `item_key`."""
    return re.fullmatch(_KEY, name) is not None


Name = TypeVar("Name")


def understood(
    directory: str, names: Iterable[str], parse: Callable[[str], Name | None], what: str, log: Log
) -> Iterator[Name]:
    """What names in a directory stand for. Those that the program does not make are logged; `what` they are."""
    for text in names:
        name = parse(text)
        if name is None:
            log.warning(Oddity(f"{directory}/{printable(text)}", what, Fate.LEFT_ALONE))
        else:
            yield name


class DiskName:
    """A name on disk. Its class is a tuple of fields, too, and its `form` says how they are written and parsed.

    ``{end:12}`` is a number of at most 12 digits, and ``{random:hex16}`` a text as in _TEXTS. Fields have the order of
    the tuple. ``[-t{took:12}]`` is left out if the field has its default value; such parts are the last ones.
    """

    __slots__ = ()
    form: ClassVar[str]

    def __str__(self) -> str:
        fields: Any = self
        required, optional = _templates(self.form)
        text: str = required.format(*fields)
        for name, part in optional:
            value = getattr(self, name)
            text += "" if value == fields._field_defaults[name] else part.format(value)
        return text

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """What `name` stands for; None if it has another form."""
        pattern, kinds = _pattern(cls.form)
        match = pattern.fullmatch(name)
        if match is None:
            return None
        fields: Any = cls
        values = [
            fields._field_defaults[field] if text is None else text if kind in _TEXTS else int(text)
            for field, kind, text in zip(fields._fields, kinds, match.groups(), strict=True)
        ]
        parsed: Self = fields(*values)
        return parsed


@functools.cache
def _templates(form: str) -> tuple[str, list[tuple[str, str]]]:
    """The part of a form that is always written, for `str.format`, and the fields and forms of the others."""
    required, _, optional = form.partition("[")
    parts = re.findall(r"([^\[\]{]*)\{(\w+):\w+\}", optional)
    return re.sub(r"\{\w+:\w+\}", "{}", required), [(name, f"{before}{{}}") for before, name in parts]


@functools.cache
def _pattern(form: str) -> tuple[re.Pattern[str], list[str]]:
    """The pattern of the names of a form, with a group for each field, and the kinds of the fields."""
    text = form.replace(".", r"\.").replace("[", "(?:").replace("]", ")?")
    pattern = re.sub(r"\{\w+:(\w+)\}", lambda match: f"({_TEXTS.get(match[1], f'[0-9]{{1,{match[1]}}}')})", text)
    return re.compile(pattern), re.findall(r"\{\w+:(\w+)\}", form)


class _Generation(NamedTuple):
    random: str
    created: int  # seconds since 1970, by the clock of the host that fetched it
    bytes: int
    entries: int
    took: int | None = None  # milliseconds that the fetch took
    version: str | None = None  # 16 hexadecimal digits that stand for the local files it was copied from


class Generation(DiskName, _Generation):
    """One fetched copy of an item. The last two parts of its name are present only if they are known."""

    __slots__ = ()
    form = "g{random:hex16}-{created:12}-{bytes:18}-{entries:12}[-t{took:12}][-v{version:hex16}]"


class HolderName(DiskName, NamedTuple("_HolderName", [("id", str), ("beats", int), ("end", int)])):
    """A holder's entry. The whole heartbeat is in the name.

    `end`: seconds since 1970 by the file system's clock, after which the holder may be considered dead; 0: none.
    """

    form = "{id:holder}.{beats:12}.{end:12}"


class LeaseName(DiskName, NamedTuple("_LeaseName", [("holder", str), ("number", int)])):
    """A lease in a gate. It is never reused, because the holder's id is not."""

    form = "{holder:holder}.{number:12}"


RELEASED = "released"
REAPED = "reaped"


class EndedName(DiskName, NamedTuple("_EndedName", [("lease", str), ("end", int), ("how", str)])):
    """A finished lease in the history. `end`: milliseconds since 1970, by the clock of the host that ended it."""

    form = "{lease:lease}~{end:15}~{how:ending}"


class SegmentName(DiskName, NamedTuple("_SegmentName", [("uses", int), ("last", int), ("random", str)])):
    """Many finished leases folded into one file. `last`: the last end, in milliseconds since 1970."""

    form = "segment-{uses:12}-{last:15}-{random:hex16}"


class TrashName(NamedTuple):
    """An evicted generation: ``<generation>~<keep until>``, and ``…~going`` once its removal has begun."""

    generation: Generation
    keep_until: int  # seconds since 1970; 0: not kept
    going: bool = False

    def __str__(self) -> str:
        return f"{self.generation}~{self.keep_until}{'~going' if self.going else ''}"

    @classmethod
    def parse(cls, name: str) -> TrashName | None:
        """The evicted generation that `name` stands for; None if it has another form."""
        match = re.fullmatch(rf"({_COPY})~([0-9]{{1,12}})(~going)?", name)
        generation = Generation.parse(match[1]) if match else None
        return cls(generation, int(match[2]), match[3] is not None) if match and generation else None


class _WorkName(NamedTuple):
    lease: str
    purpose: str
    of: str = ""  # the copy in the trash, or the beginning of the item's key


class WorkName(DiskName, _WorkName):
    """A work area in `tmp/`. It may be removed once its holder is dead."""

    form = "{lease:lease}~{purpose:word}[~{of:of}]"

    @property
    def holder(self) -> str:
        """The id of the holder that works there."""
        return self.lease.rpartition(".")[0]


class KeptName(DiskName, NamedTuple("_KeptName", [("until", int)])):
    """In a copy that is evicted to the trash: whoever finishes the eviction keeps it until then.

    `until`: seconds since 1970.
    """

    form = "kept~{until:12}"


class PinName(DiskName, NamedTuple("_PinName", [("key", str), ("until", int)])):
    """A pin. `clean` keeps an item that has one. `until`: seconds since 1970; 0: no end."""

    form = "{key:key}~{until:12}"


class _CleaningName(NamedTuple):
    end: int  # milliseconds since 1970
    copies: int  # including loose files
    bytes: int
    reaped: int
    random: str
    loose: int = 0
    restored: int = 0


class CleaningName(DiskName, _CleaningName):
    """The record of a clean or a restore; `reaped`: the leases whose holders were dead."""

    form = "{end:15}~{copies:12}~{bytes:18}~{reaped:12}~{random:hex16}[~l{loose:12}][~r{restored:12}]"


def is_shard(name: str) -> bool:
    """Whether `name` is that of a directory of items: the first two digits of their keys."""
    return re.fullmatch(r"[0-9a-f]{2}", name) is not None


class StateName(NamedTuple):
    """The progress of a fetch, in its work area: ``at~<state>~<bytes>~<total or x>~<attempts>``, updated by renames."""

    state: str
    bytes: int
    total: int | None
    attempts: int

    def __str__(self) -> str:
        return f"at~{self.state}~{self.bytes}~{'x' if self.total is None else self.total}~{self.attempts}"

    @classmethod
    def parse(cls, name: str) -> StateName | None:
        """The state that `name` stands for; None if it has another form."""
        match = re.fullmatch(r"at~([a-z]+)~([0-9]{1,18})~([0-9]{1,18}|x)~([0-9]{1,6})", name)
        if match is None:
            return None
        return cls(match[1], int(match[2]), None if match[3] == "x" else int(match[3]), int(match[4]))


class PartName(DiskName, NamedTuple("_PartName", [("source", int), ("bytes", int)])):
    """The part of a download that is on stable storage and does not change. `source`: its number."""

    form = "part~{source:6}~{bytes:18}"


class CheckedName(DiskName, NamedTuple("_CheckedName", [("time", int)])):
    """When the source of a copy was last found unchanged, in the copy's directory.

    `time`: seconds since 1970, by the clock of the host that checked.
    """

    form = "checked~{time:12}"


DONE = "done"
FAILED = "failed"


def is_outcomes(name: str) -> bool:
    """Whether `name` is that of a directory in `transfers/`: the first 32 digits of an item's key."""
    return re.fullmatch(r"[0-9a-f]{32}", name) is not None


class OutcomeName(DiskName, NamedTuple("_OutcomeName", [("key", str), ("lease", str), ("end", int), ("how", str)])):
    """How a fetch ended. `key`: the first 32 digits of the key.

    `end`: milliseconds since 1970, by the clock of the host that fetched.
    """

    form = "{key:hex32}~{lease:lease}~{end:15}~{how:result}"


class Layout:
    """The paths of one cache. Its root is stored as an absolute path."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self.shared = False  # whether a group shares the cache; set when FORMAT is read
        self.control = f"{self.root}/{CONTROL}"
        self.format_file = f"{self.control}/FORMAT"
        self.config_file = f"{self.control}/config.toml"
        self.items = f"{self.control}/items"
        self.holders = f"{self.control}/holders"
        self.gone = f"{self.holders}/gone"
        self.tmp = f"{self.control}/tmp"
        self.trash = f"{self.control}/trash"
        self.locks = f"{self.control}/locks"
        self.transfers = f"{self.control}/transfers"  # created when the first fetch ends
        self.pins = f"{self.control}/pins"  # created by the first pin
        self.cleanings = f"{self.control}/cleanings"  # created by the first clean that removes something
        self.tag_file = f"{self.root}/{TAG_NAME}"

    def item(self, key: str) -> str:
        """The lock directory of an item."""
        return f"{self.items}/{key[:2]}/{key}"

    def history(self, key: str) -> str:
        """The directory of the item's finished leases."""
        return f"{self.items}/{key[:2]}/{key}/history"

    def generation(self, key: str, generation: str) -> str:
        """One fetched copy of an item."""
        return f"{self.items}/{key[:2]}/{key}/{generation}"

    def key_of(self, path: str) -> str | None:
        """The key of the item that contains `path`; None if there is none, or `path` is not absolute."""
        within = self.within(path)
        return None if within is None else within[0]

    def within(self, path: str) -> tuple[str, str | None] | None:
        """The item that contains `path`, and its copy if it is in one; None for other paths.

        A relative path is not resolved: it may be a name or a source, which does not depend on the working directory.
        """
        if not os.path.isabs(path):
            return None
        inner = os.path.abspath(path).removeprefix(f"{self.items}/")
        if inner == os.path.abspath(path):
            inner = os.path.realpath(path).removeprefix(f"{os.path.realpath(self.items)}/")
        parts = inner.split("/")
        if len(parts) < 2 or not is_key(parts[1]) or parts[1][:2] != parts[0]:
            return None
        return parts[1], parts[2] if len(parts) > 2 and Generation.parse(parts[2]) else None


def cache_of(path: str) -> str | None:
    """The root of the cache that `path`, by its form, belongs to; None if it is not a path in an item."""
    if not os.path.isabs(path):
        return None
    root, mark, inner = os.path.abspath(path).partition(f"/{CONTROL}/items/")
    return root if mark and Layout(root).within(f"{root}{mark}{inner}") else None


def is_of_verification(name: str) -> bool:
    """Whether `name` is created by a verification of a file system."""
    return re.fullmatch(rf"{re.escape(VERIFICATION)}[0-9a-f]{{16}}(\.peer|\.call)?", name) is not None


#: The directory of leases in a generation, which is removed before anything is deleted.
GATE = "use"
PAYLOAD = "payload"
ITEM_FILE = "item.json"
TRANSFER_FILE = "transfer.json"
HISTORY = "history"
#: The directories of a cache. `init` creates all of them, `doctor --fix` those that are missing.
DIRECTORIES = ("items", "holders", "holders/gone", "tmp", "trash", "locks")
#: The directories that are created when they are first needed.
MADE_LATER = ("transfers", "pins", "cleanings")

#: All names in the control directory.
IN_CONTROL = frozenset({*DIRECTORIES, *MADE_LATER, "FORMAT", "config.toml"})
