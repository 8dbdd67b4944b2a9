"""A batch system's commands for tests: they say what was recorded, and note what they were asked."""

from __future__ import annotations

from collections.abc import Sequence

from sccache_dtool.liveness.batch.query import Reply


class Commands:
    """Answers by the name of the program; what is not there raises what `missing` says."""

    def __init__(self, **replies: str | Reply | Exception) -> None:
        self.replies = replies
        self.asked: list[list[str]] = []

    def __call__(self, argv: Sequence[str]) -> Reply:
        self.asked.append(list(argv))
        reply = self.replies[argv[0]]
        if isinstance(reply, Exception):
            raise reply
        return Reply(0, reply, "") if isinstance(reply, str) else reply

    def programs(self) -> list[str]:
        """The programs that were called, in order."""
        return [argv[0] for argv in self.asked]
