"""The package's loggers: children of `sccache_dtool`, as of the standard library's logging.

A program that does not configure logging sees warnings on standard error. Notes say what the program waits for, or does
without having been asked; the command line prints them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: The root of the package's loggers.
ROOT = "sccache_dtool"

#: The level of notes, between INFO (20) and WARNING (30).
NOTE = 25


class Log:
    """A logger by name. `logging` is imported by the first message: a hit has none, and the import takes as long as it."""

    def __init__(self, name: str = ROOT) -> None:
        self._name = name

    def warning(self, message: object) -> None:
        """Log what a user must know; `message` is a text or an Oddity."""
        self._log(30, message)

    def note(self, message: object) -> None:
        """Log what the program waits for, or does without having been asked."""
        self._log(NOTE, message)

    def info(self, message: object) -> None:
        """Log what may help to understand a result; shown with `-v`."""
        self._log(20, message)

    def debug(self, message: object) -> None:
        """Log what helps to find a fault; shown with `--debug`."""
        self._log(10, message)

    def _log(self, level: int, message: object) -> None:
        import logging

        logging.addLevelName(NOTE, "NOTE")
        if _shown is not None:
            _attach(*_shown)
        logging.getLogger(self._name).log(level, message, stacklevel=3)


class Collected(Log):
    """Keeps what is logged, in `messages`, for whoever acts on it, or logs it in another process."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[int, object]] = []

    def _log(self, level: int, message: object) -> None:
        self.messages.append((level, message))


_shown: tuple[int, Callable[[int, str], None]] | None = None


def show(level: int, tell: Callable[[int, str], None]) -> None:
    """Give messages of `level` and above to `tell`, with their level, from now on; to nobody who was named before.

    For a program that prints messages itself. `logging` is configured by the first message.
    """
    global _shown
    _shown = (level, tell)


def _attach(level: int, tell: Callable[[int, str], None]) -> None:
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(record.levelno, record.getMessage())

    logger = logging.getLogger(ROOT)
    for handler in [one for one in logger.handlers if one.get_name() == ROOT]:
        logger.removeHandler(handler)
    handler = Handler(level)
    handler.set_name(ROOT)
    logger.addHandler(handler)
    logger.setLevel(min(level, logging.WARNING))
