"""One command by all the tasks of a job: one of them runs it and prints, the others help and are silent."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sccache_dtool.cli.options import Command, Invocation
from sccache_dtool.errors import CacheError, Exit, explain
from sccache_dtool.team.task import Task, task_from

if TYPE_CHECKING:
    from sccache_dtool.team.lead import Lead


def by_all_tasks(function: Command) -> Command:
    """Of commands that scan the whole cache, and do no harm if they are done twice."""

    @functools.wraps(function)
    def run(now: Invocation, /, *arguments: Any, **options: Any) -> Any:
        task = task_from(os.environ, os.getpid())
        if task is None:
            return function(now, *arguments, **options)
        return _take_part(now, task, lambda: function(now, *arguments, **options))

    return run  # type: ignore[return-value]


def _take_part(now: Invocation, task: Task, command: Callable[[], Any]) -> int:
    """The exit code. What went wrong with one who only helps is no failure: others have done its work."""
    result = now.out.withheld()

    def lead(team: Lead | None) -> int:
        now.team = team
        with result:
            code = command()
            return code if isinstance(code, int) else Exit.DONE

    try:
        code = now.cache().take_part(task, lead)
    except (CacheError, OSError) as error:
        if task.leads or result.began:
            result.release()
            raise
        reason = error.message if isinstance(error, CacheError) else explain(error)
        now.out.warning(f"task {task.rank} could not help: {reason}")
        return Exit.DONE
    if code is None:  # the result is another task's
        return Exit.DONE
    result.release()
    return code
