"""An archive that another host serves; see `fetch/served.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from sccache_dtool.disk.names import unique
from sccache_dtool.errors import FetchFailed, UsageError
from sccache_dtool.fetch import objects
from sccache_dtool.fetch.objects import OBJECTS
from sccache_dtool.fetch.request import OBJECT
from sccache_dtool.fetch.served import Answer, Server, content_length
from sccache_dtool.fetch.sink import new_digest
from sccache_dtool.markers.archive import Details, Record, Staged
from sccache_dtool.markers.remote import RemoteArchive
from sccache_dtool.protocol.store import Store

#: Bytes that are sent at once, and entries that are asked for at once.
_PIECE = 1 << 20
_ENTRIES = 1000

#: The same where only those of one object are wanted.
_FEW = 20

#: How often an object is sent again that was collected meanwhile.
_ATTEMPTS = 3


class ServedArchive(RemoteArchive):
    """An archive behind `sc-dtool serve`. The server writes, hashes and lists; nothing can be removed from here."""

    def __init__(self, store: Store, url: str, *, verify: bool = True, token_file: str | None = None) -> None:
        super().__init__(store, url, verify=verify)
        self._token_file = token_file
        self._page: dict[Record, Details] = {}

    @cached_property
    def server(self) -> Server:
        """The server."""
        return Server(self._store, self.url, self._token_file)

    def init(self) -> bool:
        """See Archive. Raises FetchFailed if there is none: it is set up where it is served."""
        self.require()
        return False

    def require(self) -> None:
        """See Archive."""
        self.server.require()

    def require_removal(self) -> None:
        """See Archive."""
        raise UsageError(
            f"nothing can be removed from {self.url}: the server has no request for that",
            hint="run `sc-dtool archive orphans --delete` on the server's host, where the archive is a directory",
        )

    @property
    def forms(self) -> tuple[str, ...]:
        """See Archive. The server sends and takes the content, whatever form it keeps."""
        return ("",)

    def path_of(self, digits: str, form: str = "") -> str:
        """See Archive."""
        return self.server.source(digits).canonical

    # -- adding ------------------------------------------------------------------------------------------------------

    def put(self, staged: Staged, details: Details) -> Record:
        """See Archive."""
        random = unique()
        for attempt in range(1, _ATTEMPTS + 1):
            is_new = self._upload(staged)
            try:
                fields = {"random": random, **({} if is_new or not self._verify else {"verify": True})}
                return self._post(staged.digits, details, fields, staged.bytes)
            except objects.Missing:  # it was collected
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def accept(self, staged: Staged) -> bool:
        """See Archive."""
        return self._upload(staged)

    def _upload(self, staged: Staged) -> bool:
        """Send an object unless it is there; whether it was sent. What is there afterwards has its hash and size."""
        if self.size(staged.digits) == staged.bytes:
            return False
        status = 0
        for _ in range(_ATTEMPTS):
            body = _Body(staged.path, staged.bytes)
            route = f"/{OBJECTS}/{staged.digits}"
            status = self.server.ask("PUT", route, digits=staged.digits, data=body, size=staged.bytes).status
            if self.size(staged.digits) == staged.bytes:  # whatever the answer was
                return True
        raise FetchFailed(
            f"cannot add to the archive {self.url}: the server answered {status}, and has no such object",
            hint="check what answers at that address",
        )

    def add_record(self, digits: str, details: Details, random: str = "") -> Record:
        """See Archive."""
        return self._post(digits, details, {"random": random or unique()})

    def add_alias(self, md5: str, digits: str) -> None:
        """See Archive. The server compares the MD5 with the object's."""
        self._send(digits, {"md5": md5, "record": False}, self.size(digits) or 0)

    def _post(self, digits: str, details: Details, more: dict[str, Any], size: int = 0) -> Record:
        answer = self._send(digits, {**details._asdict(), **more}, size)
        return self._record({**answer.document, "id": objects.word(digits)})

    def _send(self, digits: str, document: dict[str, Any], size: int) -> Answer:
        data = json.dumps(document).encode()
        return self.server.ask("POST", f"/index/{digits}", digits=digits, data=data, size=size)

    # -- looking -----------------------------------------------------------------------------------------------------

    def form_of(self, digits: str) -> str | None:
        """See Archive."""
        return None if self.size(digits) is None else ""

    def size(self, digits: str) -> int | None:
        """See Archive."""
        try:
            found = self.server.ask("HEAD", f"/{OBJECTS}/{digits}", digits=digits)
        except objects.Missing:
            return None
        length = content_length(found.headers)
        if found.headers.get("ETag") != f'"{digits}"' or length is None:
            raise self.server.strange()
        return length

    def pieces(self, digits: str, offset: int = 0) -> Iterator[bytes]:
        """See Archive."""
        digest, at = new_digest(OBJECT), 0
        for piece in self.server.pieces(digits):
            digest.update(piece)
            skipped = max(0, offset - at)
            at += len(piece)
            if skipped < len(piece):
                yield piece[skipped:] if skipped else piece
        if digest.hexdigest() != digits:
            raise objects.damaged(digits, self.path_of(digits), digest.hexdigest())

    def objects(self, first: str = "") -> Iterator[str]:
        """See Archive."""
        last = ""
        for entry, record in self._entries(first):
            if record.digits != last and entry.get("archived"):
                last = record.digits
                yield last

    def records(self, digits: str | None = None) -> Iterator[Record]:
        """See Archive."""
        for _, record in self._entries(digits or "", _FEW if digits else _ENTRIES):
            if digits not in (None, record.digits):
                return
            if record.ms:
                yield record

    def entries(self, after: Record | None = None) -> Iterator[Record]:
        """See Archive."""
        for _, record in self._entries("" if after is None else str(after)):
            yield record

    def _entries(self, after: str, limit: int = _ENTRIES) -> Iterator[tuple[dict[str, Any], Record]]:
        page: str | None = after
        last: Record | None = None
        while page is not None:
            found, page = self._listed(self.server.ask("GET", "/index", query={"after": page, "limit": limit}))
            self._page = {record: _details(entry) for entry, record in found}
            for entry, record in found:
                if last is not None and record <= last:
                    raise self.server.strange()
                last = record
                yield entry, record
            if page not in (None, str(last)):  # otherwise there need not be an end
                raise self.server.strange()
            limit = _ENTRIES

    def _listed(self, answer: Answer) -> tuple[list[tuple[dict[str, Any], Record]], str | None]:
        entries, following = answer.document.get("entries"), answer.document.get("next")
        if not isinstance(entries, list) or not isinstance(following, str | None) or bool(following) > bool(entries):
            raise self.server.strange()
        return [(entry, self._record(entry)) for entry in entries], following

    def _record(self, entry: Any) -> Record:
        try:
            text = f"{entry['id'].removeprefix(f'{OBJECT}:')}~{entry['ms']}~{entry['bytes']}~{entry['random']}"
            record = Record.parse(text)
        except (AttributeError, KeyError, TypeError) as error:
            raise self.server.strange() from error
        if record is None:
            raise self.server.strange()
        return record

    def details(self, record: Record) -> Details:
        """See Archive."""
        if record not in self._page:
            for _, one in self._entries(record.digits, _FEW):  # its page is remembered
                if one >= record:
                    break
        return self._page.get(record, Details())

    def alias(self, md5: str) -> str | None:
        """See Archive."""
        found, _ = self._listed(self.server.ask("GET", "/index", query={"md5": md5}))
        return found[0][1].digits if found else None


class _Body:
    """The bytes of a file, as the body of a request. It can be read again."""

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        with open(self._path, "rb", buffering=0) as file:
            left = self._size
            while left and (data := file.read(min(_PIECE, left))):
                left -= len(data)
                yield data


def _details(entry: dict[str, Any]) -> Details:
    return Details(*(text if isinstance(text := entry.get(name), str) else "" for name in Details._fields))
