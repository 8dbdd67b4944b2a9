"""The package's loggers: children of `sccache_dtool`, as of the standard library's logging.

A program that does not configure logging sees warnings on standard error. Notes say what the program waits for, or does
without having been asked; the command line prints them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

#: The root of the package's loggers.
ROOT = "sccache_dtool"

#: Levels, as in `logging`; notes are between information and warnings.
DEBUG, INFO, NOTE, WARNING = 10, 20, 25, 30


def printable(text: str) -> str:
    """`text` with control characters escaped, so that texts of other users cannot control the terminal."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "�" for character in text)


class Log:
    """A logger by name. `logging` is imported by the first message: a hit has none, and the import takes as long."""

    def __init__(self, name: str = ROOT) -> None:
        self._name = name

    def warning(self, message: object) -> None:
        """Log what a user must know; `message` is a text or an Oddity."""
        self._log(WARNING, message)

    def note(self, message: object) -> None:
        """Log what the program waits for, or does without having been asked."""
        self._log(NOTE, message)

    def notice(self, message: object) -> None:
        """Log a note or, in a program that does not show notes, a warning."""
        self._log(NOTE if _logger(self._name).isEnabledFor(NOTE) else WARNING, message)

    def info(self, message: object) -> None:
        """Log what may help to understand a result; shown with `-v`."""
        self._log(INFO, message)

    def debug(self, message: object) -> None:
        """Log what helps to find a fault; shown with `--debug`."""
        self._log(DEBUG, message)

    def _log(self, level: int, message: object) -> None:
        if level < WARNING and not _may_be_shown(level):
            return
        if not (text := str(message)).isprintable():  # names that other users chose, for terminals and log files
            message = printable(text)
        try:
            _logger(self._name).log(level, message, stacklevel=3)
        except Exception:  # of the program's handler: the work goes on, as after an error in logging's own handlers
            sys.excepthook(*sys.exc_info())


class Collected(Log):
    """Keeps what is logged, in `messages`, for whoever acts on it, or logs it in another process."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[int, object]] = []

    def _log(self, level: int, message: object) -> None:
        self.messages.append((level, message))

    def pass_on(self, log: Log) -> None:
        """Log in `log` what was kept."""
        for level, message in self.messages:
            log._log(level, message)


class Silent(Log):
    """Logs nothing: for a scan of what another scan reports."""

    def _log(self, level: int, message: object) -> None:
        """Log nothing."""


_shown: tuple[int, Callable[[int, str], None]] | None = None

#: The handler that shows it, and the logger's level before; of one or no element. Two threads may log their first
#: message at once: `setdefault` accepts the handler of one of them.
_attached: dict[bool, tuple[logging.Handler, int]] = {}


def show(level: int, emit: Callable[[int, str], None]) -> None:
    """Give messages of `level` and above to `emit`, with their level, from now on, and to no earlier one.

    For a program that prints messages itself. `logging` is configured by the first message.
    """
    global _shown
    hide()
    _shown = (level, emit)


def hide() -> None:
    """End what `show` began."""
    global _shown
    for handler, level in _attached.values():
        logger = _logger(ROOT)
        logger.removeHandler(handler)
        logger.setLevel(level)
    _attached.clear()
    _shown = None


def _may_be_shown(level: int) -> bool:
    """Whether anybody can have asked for messages of a level below warnings: nobody has, if `logging` is not loaded."""
    return "logging" in sys.modules or (_shown is not None and level >= _shown[0])


def _logger(name: str) -> logging.Logger:
    import logging

    logging.addLevelName(NOTE, "NOTE")
    shown = _shown
    if shown is not None:
        logger = logging.getLogger(ROOT)
        attached = _attached.get(True) or _attached.setdefault(True, (_make_handler(*shown), logger.level))
        logger.addHandler(attached[0])  # once, whoever has made it
        logger.setLevel(min(shown[0], WARNING))
    return logging.getLogger(name)


def _make_handler(level: int, emit: Callable[[int, str], None]) -> logging.Handler:
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            emit(record.levelno, record.getMessage())

    return Handler(level)
