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
        if level >= WARNING or _may_be_shown(level):
            _logger(self._name).log(level, message, stacklevel=3)


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
    """Logs nothing: for a look at what another look reports."""

    def _log(self, level: int, message: object) -> None:
        """Log nothing."""


_shown: tuple[int, Callable[[int, str], None]] | None = None
_attached: tuple[logging.Handler, int] | None = None  # the handler that shows it, and the logger's level before


def show(level: int, tell: Callable[[int, str], None]) -> None:
    """Give messages of `level` and above to `tell`, with their level, from now on; to nobody who was named before.

    For a program that prints messages itself. `logging` is configured by the first message.
    """
    global _shown
    hide()
    _shown = (level, tell)


def hide() -> None:
    """End what `show` began."""
    global _shown, _attached
    if _attached is not None:
        handler, level = _attached
        logger = _logger(ROOT)
        logger.removeHandler(handler)
        logger.setLevel(level)
    _shown = _attached = None


def _may_be_shown(level: int) -> bool:
    """Whether anybody can have asked for messages of a level below warnings: nobody has, if `logging` is not loaded."""
    return "logging" in sys.modules or (_shown is not None and level >= _shown[0])


def _logger(name: str) -> logging.Logger:
    import logging

    global _attached
    logging.addLevelName(NOTE, "NOTE")
    if _shown is not None and _attached is None:
        level, tell = _shown

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                tell(record.levelno, record.getMessage())

        logger = logging.getLogger(ROOT)
        _attached = Handler(level), logger.level
        logger.addHandler(_attached[0])
        logger.setLevel(min(level, WARNING))
    return logging.getLogger(name)
