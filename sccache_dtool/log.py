"""The package's loggers: children of `sccache_dtool`, as of the standard library's logging.

A program that does not configure logging sees warnings on standard error. Notes say what the program waits for, or does
without having been asked; the command line prints them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

#: The level of notes, between INFO (20) and WARNING (30).
NOTE = 25


class Log:
    """A logger by name. `logging` is imported by the first message: a hit has none, and the import takes as long."""

    def __init__(self, name: str = "sccache_dtool") -> None:
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
        logger: logging.Logger = logging.getLogger(self._name)
        logger.log(level, message, stacklevel=3)
