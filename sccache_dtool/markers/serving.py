"""What a server of an archive answers, whatever web framework it is written in; the client is `served.py`.

    HEAD|GET /objects/{sha256}     look
    PUT      /objects/{sha256}     Upload
    GET      /index?after=&limit=  page
    POST     /index/{sha256}       note

Each raises Refused or another CacheError, or an OSError; `refusal` is the answer to that. Nothing is ever deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from http import HTTPStatus
from itertools import islice
from types import TracebackType
from typing import Any, NamedTuple, Self

from sccache_dtool.errors import FULL, CacheError, Exit, FetchFailed, NoSpace, UsageError
from sccache_dtool.fetch import objects
from sccache_dtool.fetch.objects import DIGITS
from sccache_dtool.fetch.reasons import plain, why
from sccache_dtool.fetch.request import OBJECT
from sccache_dtool.markers.archive import LONGEST_COMMENT, Archive, Details, Record, staged_in

#: Entries of the index in one answer, at most.
MOST_ENTRIES = 1000

#: Bytes of a document that is posted, at most.
LONGEST_DOCUMENT = 1 << 17

#: Characters of a name, a user or a project in a record.
LONGEST_NAME = 1000

#: Seconds after which a client may ask again if the archive is away.
RETRY_AFTER = 30

_TAGS = re.compile(r'(?:W/)?"([^"]*)"')
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class Refused(CacheError):
    """A request that is answered with an error."""

    def __init__(
        self, status: HTTPStatus, message: str, *, hint: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.headers = dict(headers or {})
        self.exit_code = Exit.USAGE if status == HTTPStatus.BAD_REQUEST else Exit.FETCH_FAILED


class Answer(NamedTuple):
    """What is sent: the status, headers, and either a document, to be sent as JSON, or the bytes of an object."""

    status: HTTPStatus
    headers: Mapping[str, str]
    document: Mapping[str, Any] | None = None
    body: Iterator[bytes] | None = None


def digits_in(text: str) -> str:
    """The digest in a path, as it was sent. Raises Refused for anything but 64 lower-case hexadecimal digits."""
    if re.fullmatch(DIGITS, text) is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "the path does not end with the SHA-256 of an object")
    return text


def refusal(error: Exception) -> Answer:
    """The answer to a request that ended with an error."""
    status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(RETRY_AFTER)}
    if isinstance(error, Refused):
        status, headers = error.status, error.headers
    elif isinstance(error, NoSpace) or (isinstance(error, OSError) and error.errno in FULL):
        status, headers = HTTPStatus.INSUFFICIENT_STORAGE, {}
    elif isinstance(error, objects.Missing):
        status, headers = HTTPStatus.NOT_FOUND, {}
    elif isinstance(error, objects.Damaged):
        status, headers = HTTPStatus.CONFLICT, {}
    elif isinstance(error, UsageError):
        status, headers = HTTPStatus.BAD_REQUEST, {}
    known = error if isinstance(error, CacheError) else FetchFailed(why(error))
    document = {
        "message": plain(known.message),
        "type": type(known).__name__,
        "hint": known.hint,
        "exit_code": int(known.exit_code),
    }
    return Answer(status, headers, document)


# -- objects -----------------------------------------------------------------------------------------------------------


def look(archive: Archive, digits: str, headers: Mapping[str, str]) -> Answer:
    """The answer to a GET, and without its body to a HEAD. `headers`: of the request; names are in lower case."""
    size = archive.size(digits)
    if size is None:
        raise objects.missing(digits, archive.url)
    tag = f'"{digits}"'
    given = {"ETag": tag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    known = headers.get("if-none-match", "")
    if known.strip() == "*" or digits in _TAGS.findall(known):
        return Answer(HTTPStatus.NOT_MODIFIED, given)
    begin, end = 0, size
    status = HTTPStatus.OK
    asked = _RANGE.fullmatch(headers.get("range", "").strip())
    if asked is not None and any(asked.groups()) and headers.get("if-range", tag) == tag:
        begin, end = _span(asked[1], asked[2], size)
        if begin >= end:
            raise Refused(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                f"the object has {size} bytes",
                headers={"Content-Range": f"bytes */{size}"},
            )
        given["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        status = HTTPStatus.PARTIAL_CONTENT
    given["Content-Length"] = str(end - begin)
    return Answer(status, given, body=archive.part(digits, begin, end - begin))


def _span(first: str, last: str, size: int) -> tuple[int, int]:
    """The bytes that a range asks for: from the first of these up to the second."""
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


class Upload:
    """One PUT. The bytes go to a file without a name; unless `finish` returns, nothing is left. A context manager."""

    def __init__(self, archive: Archive, digits: str, length: str | None, limit: int | None = None) -> None:
        """`length`: the Content-Length of the request. `limit`: bytes of one object.

        Raises Refused before anything is read or written.
        """
        if length is None or re.fullmatch(r"\d{1,18}", length, re.ASCII) is None:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "an upload needs a Content-Length")
        self._length = int(length)
        if limit is not None and self._length > limit:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the object has {self._length} bytes, and this server accepts {limit}",
                hint="whoever runs the server can raise the limit",
            )
        archive.require()
        self._archive = archive
        self._digits = digits
        self._sink = archive.receive()
        self._written = ExitStack()
        self._written.push(self._sink)

    def write(self, data: bytes) -> None:
        """Take in more bytes. Raises OSError, and Refused if they are more than were announced."""
        if self._sink.size + len(data) > self._length:
            raise Refused(HTTPStatus.BAD_REQUEST, f"more came than the {self._length} bytes announced")
        self._sink.write(data)

    def finish(self) -> Answer:
        """Give the object its name: 201, or 200 if it was there. Raises Refused if it is not what was announced."""
        self._sink.finish()
        staged = staged_in(self._sink)
        self._written.close()
        size = staged.bytes
        if size != self._length:
            raise Refused(HTTPStatus.BAD_REQUEST, f"{size} bytes came of the {self._length} announced")
        if staged.digits != self._digits:
            raise Refused(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"what came has {OBJECT} {staged.digits}, and not {self._digits}",
                hint="send it again; nothing was stored",
            )
        is_new = self._archive.accept(staged)
        document = {"id": objects.word(self._digits), "bytes": size}
        return Answer(HTTPStatus.CREATED if is_new else HTTPStatus.OK, {"ETag": f'"{self._digits}"'}, document)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._written.__exit__(kind, error, trace)  # nothing is left to be done after `finish`
        finally:
            self._archive.discard(self._sink.path)


# -- the index ---------------------------------------------------------------------------------------------------------


def page(archive: Archive, after: str = "", limit: int = MOST_ENTRIES, md5: str = "") -> dict[str, Any]:
    """The answer to a GET of the index: `entries`, sorted; `next` is what to give as `after`, None at the end.

    `after`: empty, the name of a record, or a digest. `md5`: the entries of the object that a predecessor knew by it.
    """
    if md5:
        if re.fullmatch("[0-9a-f]{32}", md5) is None:
            raise Refused(HTTPStatus.BAD_REQUEST, "md5 is not an MD5")
        digits = archive.alias(md5)
        return {"entries": [] if digits is None else _described(archive, archive.records(digits)), "next": None}
    if limit < 0:
        raise Refused(HTTPStatus.BAD_REQUEST, "limit is negative")
    start = Record.parse(after)
    if start is None and after:
        start = Record(digits_in(after), -1, 0, "")
    archive.require()
    wanted = list(islice(archive.entries(start), min(limit, MOST_ENTRIES) + 1)) if limit else []
    more = len(wanted) > min(limit, MOST_ENTRIES)
    wanted = wanted[: min(limit, MOST_ENTRIES)]
    return {"entries": _described(archive, iter(wanted)), "next": str(wanted[-1]) if more else None}


def _described(archive: Archive, wanted: Iterator[Record]) -> list[dict[str, Any]]:
    found = []
    there: Iterator[str] | None = None
    here = ""
    for one in wanted:
        if there is None:
            there = archive.objects(one.digits)
        while here < one.digits:
            here = next(there, "g")  # which is sorted after all digests
        details = archive.details(one) if one.ms else Details()
        found.append(
            {
                "id": objects.word(one.digits),
                "ms": one.ms,
                "bytes": one.bytes,
                "random": one.random,
                "archived": here == one.digits,
                **details._asdict(),
            }
        )
    return found


def note(archive: Archive, digits: str, document: Mapping[str, Any], by: str | None = None) -> Answer:
    """Record that an object was added: 201, or 200 if a record with this `random` is there.

    The fields of `document` may be left out. They are those of Details; `random`, 16 hexadecimal digits, which stays
    the same when the request is repeated; `verify`: whether to read the object first; `md5`, by which the object can be
    found as well; `record`: false if only that is wanted. `by`: who asks, if the server knows it.
    """
    texts = {name: _text(document, name) for name in Details._fields}
    details = Details(**texts) if by is None else Details(**{**texts, "by": by})
    random, md5 = _hex(document, "random", 16), _hex(document, "md5", 32)
    if document.get("verify"):
        archive.check(digits)
    if md5:
        _check_md5(archive, digits, md5)
        archive.add_alias(md5, digits)
    if document.get("record") is False:
        return Answer(HTTPStatus.OK, {}, {"id": objects.word(digits)})
    earlier = [one for one in archive.records(digits) if random and one.random == random]
    record = earlier[0] if earlier else archive.add_record(digits, details, random)
    fields = {"id": objects.word(digits), "ms": record.ms, "bytes": record.bytes, "random": record.random}
    return Answer(HTTPStatus.OK if earlier else HTTPStatus.CREATED, {}, fields)


def _text(document: Mapping[str, Any], name: str) -> str:
    text = document.get(name, "")
    longest = LONGEST_COMMENT if name == "comment" else LONGEST_NAME
    if not isinstance(text, str) or len(text) > longest:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{name} is not a text of at most {longest} characters")
    return text


def _hex(document: Mapping[str, Any], name: str, length: int) -> str:
    text = document.get(name, "")
    if not isinstance(text, str) or (text and re.fullmatch(f"[0-9a-f]{{{length}}}", text) is None):
        raise Refused(HTTPStatus.BAD_REQUEST, f"{name} is not {length} hexadecimal digits")
    return text


def _check_md5(archive: Archive, digits: str, md5: str) -> None:
    """Others will ask for the object by it."""
    import hashlib

    found = hashlib.md5(usedforsecurity=False)
    for piece in archive.pieces(digits):
        found.update(piece)
    if found.hexdigest() != md5:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"the object has the MD5 {found.hexdigest()}, and not {md5}")
