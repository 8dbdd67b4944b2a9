"""All paths and names on disk: encodes and parses them. See `docs/reference/format.md`.

Names contain what a scan needs, such as the size and age of a generation, so that a scan only lists directories.
Random parts are never reused.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from sccache_dtool.disk.records import printable
from sccache_dtool.log import Log
from sccache_dtool.oddity import Fate, Oddity
from sccache_dtool.tuples import NamedTuple

#: The control directory, in the root of a cache. No symbolic link is followed below it.
CONTROL = ".sc-dtool"

#: Prefix of the names that a verification of a file system creates.
VERIFICATION = f"{CONTROL}-verify-"

#: A control directory that is being set up, beside its place.
_ASIDE = rf"{re.escape(CONTROL)}\.[0-9a-f]{{16}}"
_SCRATCH = rf"{re.escape(VERIFICATION)}[0-9a-f]{{16}}"

#: What is guarded against symbolic links in a path, and what is below it: see `nofollow`.
GUARDED = rf"(.*?/(?:{re.escape(CONTROL)}|{_ASIDE}|{_SCRATCH}))/(.+)"

FORMAT_VERSION = 1
FORMAT_NAME = "FORMAT"
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
_GENERATION = r"g([0-9a-f]{16})-([0-9]{1,12})-([0-9]{1,18})-([0-9]{1,12})(?:-t([0-9]{1,12}))?(?:-v([0-9a-f]{16}))?"
_HOLDER = r"([prsnj][0-9a-f]{12}-[0-9a-f]{12})\.([0-9]{1,12})\.([0-9]{1,12})"
_LEASE = r"([prsnj][0-9a-f]{12}-[0-9a-f]{12})\.([0-9]{1,12})"
_ENDED = r"([prsnj][0-9a-f]{12}-[0-9a-f]{12}\.[0-9]{1,12})~([0-9]{1,15})~(released|reaped)"
_SEGMENT = r"segment-([0-9]{1,12})-([0-9]{1,15})-([0-9a-f]{16})"
_TRASHED = r"(g[0-9a-f]{16}(?:-[0-9]{1,18}){3}(?:-t[0-9]{1,12})?(?:-v[0-9a-f]{16})?)~([0-9]{1,12})(~going)?"
_OF = r"[0-9a-f]{32}|g[0-9a-f]{16}(?:-[0-9]{1,18}){3}(?:-t[0-9]{1,12})?(?:-v[0-9a-f]{16})?~[0-9]{1,12}"
_WORK = rf"([prsnj][0-9a-f]{{12}}-[0-9a-f]{{12}}\.[0-9]{{1,12}})~([a-z]+)(?:~({_OF}))?"
_KEPT = r"kept~([0-9]{1,12})"
_STATE = r"at~([a-z]+)~([0-9]{1,18})~([0-9]{1,18}|x)~([0-9]{1,6})"
_PART = r"part~([0-9]{1,6})~([0-9]{1,18})"
_WHY = r"why~([0-9]{1,6})"
_CHECKED = r"checked~([0-9]{1,12})"
_OUTCOME = r"([0-9a-f]{32})~([prsnj][0-9a-f]{12}-[0-9a-f]{12}\.[0-9]{1,12})~([0-9]{1,15})~(done|failed)"
_CLEANING = (
    r"([0-9]{1,15})~([0-9]{1,12})~([0-9]{1,18})~([0-9]{1,12})~([0-9a-f]{16})(?:~l([0-9]{1,12}))?(?:~r([0-9]{1,12}))?"
)
_SESSION = r"s[0-9a-f]{16}"
_VERSION = r"now~([0-9]{1,12})~([0-9a-f]{16})"
_VERSION_FILE = r"data-([0-9]{1,12})-([0-9a-f]{16})-([0-9a-f]{16}|first)\.json"
_ENDED_SESSION = rf"({_SESSION})~([0-9]{{1,15}})"
_ESCAPED = "[%~/\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
_ESCAPES = r"(?:%[0-9A-F]{2})+"

#: Most bytes of an item's name in a file name. File systems allow 255 bytes: a key needs 33 for its digits, a pin needs
#: 13 for its end, and backup programs append to names.
NAME_LIMIT = 200


def unique(digits: int = 16) -> str:
    """`digits` random hexadecimal digits."""
    return os.urandom(digits // 2).hex()


def digest_of(*lines: str) -> str:
    """The SHA-256 of lines of text, in hexadecimal digits.

    `hashlib` is avoided: it loads OpenSSL, which takes longer than what a hit does. `random` does the same.
    """
    try:
        if sys.version_info >= (3, 12):
            from _sha2 import sha256
        else:
            from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:  # an interpreter that was built without it
        from hashlib import sha256
    text = "\n".join(lines)  # JSON that somebody else has written may have surrogates
    return str(sha256(text.encode("utf-8", "surrogatepass")).hexdigest())


def label(name: str) -> str:
    """The readable part of an item's key: its name in UTF-8, with as few escapes as possible.

    ``%XX`` stands for the bytes of ``/``, of control characters, of ``%`` and ``~``, of a leading dot, and of what is
    not UTF-8. If the result is longer than NAME_LIMIT bytes, its middle is replaced by a digest. Two names never have
    the same label.
    """
    units = list(name)
    if not name.isprintable() or any(character in name for character in "%~/"):
        units = [_escape(character) if re.match(_ESCAPED, character) else character for character in name]
    if name.startswith("."):
        units[0] = _escape(".")
    return _shortened(units, name)


def shortened(name: str) -> str:
    """A file name of at most NAME_LIMIT bytes: `name`, with its middle replaced by a digest if it is longer."""
    return _shortened(list(name), name)


def key_name(key: str) -> str | None:
    """The name of an item from its key; None if the key contains only a part of it."""
    return None if "~" in key and re.search(_GAP, key) else _unescape(key[33:])


def key_label(key: str) -> str:
    """The name of an item for people, as far as its key contains it."""
    return _unescape(key[33:])


def is_named(key: str, name: str) -> bool:
    """Whether `name` is the name of the item with this key."""
    return key[33:] == label(name)


def _escape(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _unescape(text: str) -> str:
    if "%" not in text:  # as most: a scan does this for each of a million items
        return text

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
    gap = f"~{digest_of(name)[:32]}~"
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
    return f"{digest_of(*identity)[:32]}-{label(name)}"


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


def only_if(is_known: Callable[[str], bool]) -> Callable[[str], str | None]:
    """For `understood`, where a name stands for itself."""
    return lambda name: name if is_known(name) else None


class Generation(NamedTuple):
    """One fetched copy of an item: ``g<random>-<created>-<bytes>-<entries>-t<took>-v<version>``.

    The last two parts are present only if they are known.
    """

    random: str
    created: int  # seconds since 1970, by the clock of the host that fetched it
    bytes: int
    entries: int
    took: int | None = None  # milliseconds that the fetch took
    version: str | None = None  # 16 hexadecimal digits that stand for the local files it was copied from

    def __str__(self) -> str:
        took = "" if self.took is None else f"-t{self.took}"
        version = "" if self.version is None else f"-v{self.version}"
        return f"g{self.random}-{self.created}-{self.bytes}-{self.entries}{took}{version}"

    @classmethod
    def parse(cls, name: str) -> Generation | None:
        """The generation that `name` stands for; None if it has another form."""
        match = re.fullmatch(_GENERATION, name)
        if match is None:
            return None
        took = None if match[5] is None else int(match[5])
        return cls(match[1], int(match[2]), int(match[3]), int(match[4]), took, match[6])


class HolderName(NamedTuple):
    """A holder's entry: ``<id>.<beats>.<end>``. The whole heartbeat is in the name."""

    id: str
    beats: int
    end: int  # seconds since 1970 by the file system's clock, after which the holder may be considered dead; 0: none

    def __str__(self) -> str:
        return f"{self.id}.{self.beats}.{self.end}"

    @classmethod
    def parse(cls, name: str) -> HolderName | None:
        """The holder that `name` stands for; None if it has another form."""
        match = re.fullmatch(_HOLDER, name)
        return cls(match[1], int(match[2]), int(match[3])) if match else None


class LeaseName(NamedTuple):
    """A lease in a gate: ``<holder id>.<number>``. It is never reused, because the holder's id is not."""

    holder: str
    number: int

    def __str__(self) -> str:
        return f"{self.holder}.{self.number}"

    @classmethod
    def parse(cls, name: str) -> LeaseName | None:
        """The lease that `name` stands for; None if it has another form."""
        match = re.fullmatch(_LEASE, name)
        return cls(match[1], int(match[2])) if match else None


RELEASED = "released"
REAPED = "reaped"


class EndedName(NamedTuple):
    """A finished lease in the history: ``<lease>~<end>~released`` or ``…~reaped``."""

    lease: str
    end: int  # milliseconds since 1970, by the clock of the host that ended it
    how: str

    def __str__(self) -> str:
        return f"{self.lease}~{self.end}~{self.how}"

    @classmethod
    def parse(cls, name: str) -> EndedName | None:
        """The finished lease that `name` stands for; None if it has another form."""
        match = re.fullmatch(_ENDED, name)
        return cls(match[1], int(match[2]), match[3]) if match else None


class SegmentName(NamedTuple):
    """Many finished leases folded into one file: ``segment-<uses>-<last end>-<random>``."""

    uses: int
    last: int  # milliseconds since 1970
    random: str

    def __str__(self) -> str:
        return f"segment-{self.uses}-{self.last}-{self.random}"

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """The segment that `name` stands for; None if it has another form."""
        match = re.fullmatch(_SEGMENT, name)
        return cls(int(match[1]), int(match[2]), match[3]) if match else None


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
        match = re.fullmatch(_TRASHED, name)
        generation = Generation.parse(match[1]) if match else None
        return cls(generation, int(match[2]), match[3] is not None) if match and generation else None


class Purpose:
    """What a work area in `tmp/` is for."""

    AUDIT = "audit"  # a file: the record of a cleaning
    DESCRIPTION = "description"  # a file: an item.json that doctor writes again
    EMPTIED = "emptied"  # what is left of a directory of the trash once its copy is restored
    FETCH = "fetch"  # a download
    FOLD = "fold"  # a file: a segment of a history
    GLOBUS = "globus"  # where Globus puts files, for a download that any process may continue
    GOING = "going"  # a work area that is being deleted
    LOOSE = "loose"  # files that dtool's brokers left, on their way out
    REGISTER = "register"  # a directory of holders that doctor creates again
    RESTORE = "restore"  # a copy on its way out of the trash
    RETURN = "return"  # a copy on its way back to the trash
    TAKEN = "taken"  # an abandoned download whose data another process continues
    WAIT = "wait"  # a file: a wait for the download of another process


class WorkName(NamedTuple):
    """A work area in `tmp/`: ``<lease>~<purpose>[~<of>]``. It may be removed once its holder is dead."""

    lease: str
    purpose: str
    of: str = ""  # the copy in the trash, or the beginning of the item's key

    def __str__(self) -> str:
        return f"{self.lease}~{self.purpose}{f'~{self.of}' if self.of else ''}"

    @classmethod
    def unowned(cls, purpose: str) -> WorkName:
        """A work area of a holder that does not exist: if it is left behind, it is removed like that of a dead one."""
        return cls(f"p{unique(12)}-{unique(12)}.0", purpose)

    @property
    def holder(self) -> str:
        """The id of the holder that works there."""
        return self.lease.rpartition(".")[0]

    @classmethod
    def parse(cls, name: str) -> WorkName | None:
        """The work area that `name` stands for; None if it has another form."""
        match = re.fullmatch(_WORK, name)
        return cls(match[1], match[2], match[3] or "") if match else None


class KeptName(NamedTuple):
    """``kept~<until>`` in a copy that is evicted to the trash: whoever finishes the eviction keeps it until then."""

    until: int  # seconds since 1970

    def __str__(self) -> str:
        return f"kept~{self.until}"

    @classmethod
    def parse(cls, name: str) -> KeptName | None:
        """The note that `name` stands for; None if it has another form."""
        match = re.fullmatch(_KEPT, name)
        return cls(int(match[1])) if match else None


class PinName(NamedTuple):
    """A pin: ``<key>~<until>``. `clean` keeps an item that has one."""

    key: str
    until: int  # seconds since 1970; 0: no end

    def __str__(self) -> str:
        return f"{self.key}~{self.until}"

    @classmethod
    def parse(cls, name: str) -> PinName | None:
        """The pin that `name` stands for; None if it has another form."""
        key, _, until = name.rpartition("~")
        return cls(key, int(until)) if is_key(key) and re.fullmatch(r"[0-9]{1,12}", until) else None


class CleaningName(NamedTuple):
    """The record of a clean or a restore: ``<end>~<copies>~<bytes>~<reaped leases>~<random>``.

    It is followed by ``~l<loose>~r<restored>`` if these are not 0.
    """

    end: int  # milliseconds since 1970
    copies: int  # including loose files
    bytes: int
    reaped: int
    random: str
    loose: int = 0
    restored: int = 0

    def __str__(self) -> str:
        loose, restored = f"~l{self.loose}" if self.loose else "", f"~r{self.restored}" if self.restored else ""
        return f"{self.end}~{self.copies}~{self.bytes}~{self.reaped}~{self.random}{loose}{restored}"

    @classmethod
    def parse(cls, name: str) -> CleaningName | None:
        """The record that `name` stands for; None if it has another form."""
        match = re.fullmatch(_CLEANING, name)
        if match is None:
            return None
        end, copies, size, reaped = (int(match[number]) for number in range(1, 5))
        return cls(end, copies, size, reaped, match[5], int(match[6] or 0), int(match[7] or 0))


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
        match = re.fullmatch(_STATE, name)
        if match is None:
            return None
        return cls(match[1], int(match[2]), None if match[3] == "x" else int(match[3]), int(match[4]))


class PartName(NamedTuple):
    """The part of a download that is on stable storage and does not change: ``part~<number of the source>~<bytes>``."""

    source: int
    bytes: int

    def __str__(self) -> str:
        return f"part~{self.source}~{self.bytes}"

    @classmethod
    def parse(cls, name: str) -> PartName | None:
        """The part that `name` stands for; None if it has another form."""
        match = re.fullmatch(_PART, name)
        return cls(int(match[1]), int(match[2])) if match else None


class WhyName(NamedTuple):
    """Why an attempt of a fetch failed that is followed by another, in its work area: ``why~<attempt>``."""

    attempt: int

    def __str__(self) -> str:
        return f"why~{self.attempt}"

    @classmethod
    def parse(cls, name: str) -> WhyName | None:
        """The attempt that `name` stands for; None if it has another form."""
        match = re.fullmatch(_WHY, name)
        return cls(int(match[1])) if match else None


class CheckedName(NamedTuple):
    """When the source of a copy was last found unchanged, in the copy's directory: ``checked~<time>``."""

    time: int  # seconds since 1970, by the clock of the host that checked

    def __str__(self) -> str:
        return f"checked~{self.time}"

    @classmethod
    def parse(cls, name: str) -> CheckedName | None:
        """The check that `name` stands for; None if it has another form."""
        match = re.fullmatch(_CHECKED, name)
        return cls(int(match[1])) if match else None


DONE = "done"
FAILED = "failed"


def is_outcomes(name: str) -> bool:
    """Whether `name` is that of a directory in `transfers/`: the first 32 digits of an item's key."""
    return re.fullmatch(r"[0-9a-f]{32}", name) is not None


class OutcomeName(NamedTuple):
    """How a fetch ended: ``<beginning of the key>~<lease>~<end>~done`` or ``…~failed``."""

    key: str  # the first 32 digits of the key
    lease: str
    end: int  # milliseconds since 1970, by the clock of the host that fetched
    how: str

    def __str__(self) -> str:
        return f"{self.key}~{self.lease}~{self.end}~{self.how}"

    @classmethod
    def parse(cls, name: str) -> OutcomeName | None:
        """The outcome that `name` stands for; None if it has another form."""
        match = re.fullmatch(_OUTCOME, name)
        return cls(match[1], match[2], int(match[3]), match[4]) if match else None


class VersionName(NamedTuple):
    """Which version of a table is in force: ``now~<number>~<random>``. Its text is in a VersionFile."""

    number: int  # how often the table was written, the first time included
    random: str

    def __str__(self) -> str:
        return f"now~{self.number}~{self.random}"

    @classmethod
    def parse(cls, name: str) -> VersionName | None:
        """The version that `name` says is in force; None if it has another form."""
        match = re.fullmatch(_VERSION, name)
        return cls(int(match[1]), match[2]) if match else None


class VersionFile(NamedTuple):
    """The file with the text of a version: ``data-<number>-<random>-<random of the one before, or "first">.json``."""

    version: VersionName
    after: str = "first"

    def __str__(self) -> str:
        return f"data-{self.version.number}-{self.version.random}-{self.after}.json"

    @property
    def before(self) -> VersionName:
        """The version that this one replaces, or would replace."""
        return VersionName(self.version.number - 1, self.after)

    @classmethod
    def parse(cls, name: str) -> VersionFile | None:
        """The version whose text is in the file `name`; None if it has another form."""
        match = re.fullmatch(_VERSION_FILE, name)
        return cls(VersionName(int(match[1]), match[2]), match[3]) if match else None


class MemoName(NamedTuple):
    """The file with what is known of the copies in a directory of items: ``<2 hex>-<lines>-<random>``."""

    directory: str
    lines: int
    random: str

    def __str__(self) -> str:
        return f"{self.directory}-{self.lines}-{self.random}"

    @classmethod
    def parse(cls, name: str) -> MemoName | None:
        """What a name says; None if it has another form."""
        match = re.fullmatch(r"([0-9a-f]{2})-([0-9]{1,12})-([0-9a-f]{16})", name)
        return cls(match[1], int(match[2]), match[3]) if match else None


def is_session(name: str) -> bool:
    """Whether `name` has the form of a session's id: ``s<16 hex>``."""
    return re.fullmatch(_SESSION, name) is not None


class EndedSession(NamedTuple):
    """A session that has ended: ``<id>~<end>``."""

    id: str
    end: int  # milliseconds since 1970, by the clock of the host that ended it

    def __str__(self) -> str:
        return f"{self.id}~{self.end}"

    @classmethod
    def parse(cls, name: str) -> EndedSession | None:
        """The ended session that `name` stands for; None if it has another form."""
        match = re.fullmatch(_ENDED_SESSION, name)
        return cls(match[1], int(match[2])) if match else None


class Layout:
    """The paths of one cache. Its root is stored as an absolute path."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self.shared = False  # whether a group shares the cache; set when FORMAT is read
        self.control = f"{self.root}/{CONTROL}"
        self.format_file = f"{self.control}/{FORMAT_NAME}"
        self.config_file = f"{self.control}/config.toml"
        self.items = f"{self.control}/items"
        self.holders = f"{self.control}/holders"
        self.gone = f"{self.holders}/{REVOKED}"
        self.tmp = f"{self.control}/tmp"
        self.trash = f"{self.control}/trash"
        self.locks = f"{self.control}/locks"
        self.transfers = f"{self.control}/transfers"  # created when the first fetch ends
        self.pins = f"{self.control}/pins"  # created by the first pin
        self.cleanings = f"{self.control}/cleanings"  # created by the first clean that removes something
        self.sessions = f"{self.control}/sessions"  # created by the first session
        self.ended_sessions = f"{self.sessions}/gone"
        self.lots = f"{self.control}/lots"  # created by the first lot
        self.facts = f"{self.control}/facts"  # created by the first look-up of many lots
        self.reported_usage = f"{self.lots}/{REPORTED}"
        self.tag_file = f"{self.root}/{TAG_NAME}"

    def session(self, id: str) -> str:
        """The directory of a session."""
        return f"{self.sessions}/{id}"

    def session_at(self, path: str) -> str | None:
        """The id of the session whose view is `path`, or contains it; None for other paths. Need not be there.

        As for `within`, a relative path is not resolved. A link to the view is.
        """
        for text in (os.path.abspath(path), os.path.realpath(path)) if os.path.isabs(path) else ():
            root, mark, inner = text.partition(f"/{CONTROL}/sessions/")
            id, _, below = inner.partition("/")
            if mark and is_session(id) and below.partition("/")[0] == VIEW:
                return id if os.path.realpath(root) == os.path.realpath(self.root) else None
        return None

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
    """The root of the cache that `path`, by its form, belongs to; None if it is not a path in an item or a view."""
    if not os.path.isabs(path):
        return None
    root, mark, _ = os.path.abspath(path).partition(f"/{CONTROL}/")
    layout = Layout(root)
    return root if mark and (layout.within(path) or layout.session_at(path)) else None


def is_of_verification(name: str) -> bool:
    """Whether `name` is one that a verification creates: a scratch directory, or a name created before a listing."""
    return re.fullmatch(_SCRATCH, name) is not None


def is_aside(name: str) -> bool:
    """Whether `name` is that of a control directory that is being set up, or was when `set_up` was killed."""
    return re.fullmatch(_ASIDE, name) is not None


def aside() -> str:
    """A name for a control directory that is being set up."""
    return f"{CONTROL}.{unique()}"


#: The directory of leases in a generation, which is removed before anything is deleted.
GATE = "use"
PAYLOAD = "payload"
ITEM_FILE = "item.json"
TRANSFER_FILE = "transfer.json"
HISTORY = "history"

#: In the work area of a download: what is being unpacked or written; and the suffix of the file that says what a
#: partial download is a part of.
WORK = "work"
ORIGIN = ".origin"

#: In the work area of a restore: the directory that was in the trash.
TRASHED = "trashed"

#: In `holders/`: the directory of revoked and ended holders.
REVOKED = "gone"

#: What the names of probes begin with: a listing that is proof makes a name in the directory, for a moment.
PROBE = "probe-"

#: In `lots/`: the directory of the usage that was reported of data elsewhere.
REPORTED = "reported"

#: In `locks/`: the suffix of flufl.lock's files, and what stands between the name of an election and a sign's number.
LOCK = ".lock"
SIGN = ".by-"

#: The election of the one cleaner.
CLEAN = "clean"

#: A name in `locks/`: a lock, a claim of flufl.lock, or the sign of a winner.
_OF_ELECTIONS = rf".*(?:{re.escape(LOCK)}(?:\|[^|]+\|[0-9]+\|[0-9]+)?|{re.escape(SIGN)}[0-9a-f]{{16}})"

#: The sign of the winner of an election for fetching an item; that for a local source contains its version.
_FETCHER_SIGN = rf"[0-9a-f]{{32}}(?:-[0-9a-f]{{16}})?{re.escape(SIGN)}[0-9a-f]{{16}}"


def is_of_election(name: str) -> bool:
    """Whether `name` is one that elections create."""
    return re.fullmatch(_OF_ELECTIONS, name, re.DOTALL) is not None


def is_fetcher_sign(name: str) -> bool:
    """Whether `name` is the sign of a fetcher."""
    return re.fullmatch(_FETCHER_SIGN, name) is not None


#: The directory of links in a session that shows what it holds.
VIEW = "view"
#: The directories of a cache. `init` creates all of them, `doctor --fix` those that are missing.
DIRECTORIES = ("items", "holders", f"holders/{REVOKED}", "tmp", "trash", "locks")
#: The directories that are created when they are first needed.
MADE_LATER = ("transfers", "pins", "cleanings", "sessions", "sessions/gone", "lots", f"lots/{REPORTED}", "facts")

#: All names in the control directory.
IN_CONTROL = frozenset({*DIRECTORIES, *MADE_LATER, FORMAT_NAME, "config.toml"})
