"""A download that can be continued: by a later attempt, and by another process or host when this one is gone.

Beside the bytes lies, in a file of its own, what they are the beginning of. A successor never writes to the same
file: the one who began may only be frozen, and go on writing when it wakes up. It copies as much as was said to be
on stable storage (below that mark nothing ever changes) into a new file of its own, and continues there. The one who
wakes up writes into a file that has no name any more, finds its work area gone, and waits like everybody else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from sccache_dtool.disk import records
from sccache_dtool.disk.names import ORIGIN, WORK
from sccache_dtool.errors import FULL
from sccache_dtool.fallback import do_without
from sccache_dtool.fetch.context import Context
from sccache_dtool.fetch.request import Source
from sccache_dtool.fetch.sink import Sink
from sccache_dtool.protocol import downloads

#: Characters of an ETag or a date that is noted; a longer one is not.
_LONGEST_VERSION = 1000


def is_version(text: str) -> bool:
    """Whether what a server calls a version can be noted, and sent again: what is noted, others may have changed."""
    return text.isascii() and text.isprintable() and text == text.strip() and 0 < len(text) <= _LONGEST_VERSION


class Origin(NamedTuple):
    """Which version of which file bytes are the beginning of."""

    source: str  # canonical
    validator: str | None  # a strong one: the same text means the same bytes
    length: int | None
    name: str | None = None  # what the server calls it

    @classmethod
    def decode(cls, text: str) -> Origin:
        """Raises records.Damaged for what `records.encode_document` has not made of an Origin."""
        fields = records.decode_document(text)
        source, validator, length, name = (fields.get(name) for name in cls._fields)
        if not (
            isinstance(source, str)
            and isinstance(validator, str | None)
            and isinstance(length, int | None)
            and isinstance(name, str | None)
        ):
            raise records.Damaged("no origin of a download")
        if validator is not None and not is_version(validator):
            raise records.Damaged("no version of a file that a server could have named")
        return cls(source, validator, length, name)


class Partial(Sink):
    """A Sink that knows what its bytes are the beginning of. A context manager."""

    def __init__(self, context: Context, path: str, algorithms: Sequence[str], source: Source) -> None:
        """What is the beginning of another source than `source` is not continued."""
        super().__init__(context.fs, path, algorithms, context.progress, throttle=context.throttle)
        self.origin: Origin | None = None
        self.resumed = False
        self._context = context
        self._source = source
        self._shown = False
        try:
            left = None if context.fresh else self._adopt()
            if context.track is not None:
                context.track.follow(context.number, self)
                if self.size:
                    context.track.pulse()
            if left is not None:  # not before the copy is durable; a large file need not fit twice
                with contextlib.suppress(OSError):
                    self._fs.unlink(left)
        except BaseException:
            super().__exit__(None, None, None)
            raise

    @property
    def resumable(self) -> bool:
        """Whether to ask for the rest: only if it is sure that it is the rest, or if a digest will tell."""
        return self.size > 0 and self.origin is not None and bool(self.origin.validator or self.algorithms)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.resumable and self.origin is not None and self.size == self.origin.length

    def show(self, total: int | None) -> None:
        """Begin to show progress, once."""
        if not self._shown:
            self._shown = True
            self._progress.start(self._source.name, total, self.size)

    def begin(self, origin: Origin | None) -> None:
        """What comes next is the first byte of `origin`; what there was of another version is thrown away.

        None: of what cannot be continued, whatever becomes of it.
        """
        if self.size or self.origin is not None:
            self.restart()
        self.origin = origin
        if origin is not None:
            self._note_origin(origin)

    def restart(self) -> None:
        """Start again; the names by which others could continue the old file are removed first."""
        if self._context.track is not None:
            self._context.track.forget(self._context.number)
        if self.origin is not None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.unlink(f"{self.path}{ORIGIN}")
        self.origin = None
        self.resumed = False
        super().restart()

    def _note_origin(self, origin: Origin) -> None:
        try:
            self._fs.write_new(f"{self.path}{ORIGIN}", records.encode_document(origin._asdict()))
        except OSError as error:
            do_without(f"no other process can continue this download if it is interrupted ({error.strerror})")

    def _adopt(self) -> str | None:
        """Begin with what another has left, if it is of the same source; the path of what was copied.

        What cannot be read is left. What does not fit is removed, as this download needs its space.
        """
        track = self._context.track
        if track is None or track.taken is None:
            return None
        there = f"{track.taken}/{WORK}/{self.path.rpartition('/')[2]}"
        try:
            size = downloads.parts(self._fs, track.taken).get(self._context.number, 0)
            origin = Origin.decode(self._fs.read_text(f"{there}{ORIGIN}"))
            if not size or origin.source != self._source.canonical or not (origin.validator or self.algorithms):
                return None
            if not self.take(there, size):
                return None
            self._note_origin(origin)
        except (OSError, records.Damaged) as error:
            if self.size:
                super().restart()
            if isinstance(error, OSError) and error.errno in FULL:
                self._fs.remove_tree(track.taken)
            return None
        self.origin, self.resumed = origin, True
        return there

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._context.track is not None:
                self._context.track.leave(interrupted=error is not None)
        except OSError:
            if error is None:
                raise
        finally:
            super().__exit__(kind, error, trace)


def tidy(context: Context, path: str) -> None:
    """Remove what lies beside a download that is not to be continued any more."""
    with contextlib.suppress(FileNotFoundError):
        context.fs.unlink(f"{path}{ORIGIN}")
