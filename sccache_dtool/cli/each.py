"""What is done to each of several things, even if one fails, and the exit code for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from sccache_dtool.cli.options import Invocation
from sccache_dtool.errors import CacheError, Exit, translate
from sccache_dtool.pool import Threads

Task = TypeVar("Task")
Result = TypeVar("Result")


def each(call: Invocation, tasks: Sequence[Task], act: Callable[[Task], object]) -> int:
    """Do each task in turn, even if one fails; the exit code is as for `each_at_once`."""
    return each_at_once(call, tasks, act, lambda task, result: None, most=1)


def each_at_once(
    call: Invocation,
    tasks: Sequence[Task],
    act: Callable[[Task], Result],
    report: Callable[[Task, Result], object],
    most: int,
) -> int:
    """Do up to `most` tasks at a time, and call `report` with each result, in the order of the tasks.

    Returns the first error's exit code if all failed, PARTIAL if some did.
    """
    codes = []
    with Threads(most) as threads:
        at_once = len(tasks) > 1 and most != 1
        waiting = [threads.submit(act, task).result if at_once else partial(act, task) for task in tasks]
        for task, result in zip(tasks, waiting, strict=True):
            try:
                report(task, result())
            except BrokenPipeError:  # nobody reads what is reported
                raise
            except (CacheError, OSError) as error:
                failure = error if isinstance(error, CacheError) else translate(error)
                call.out.error(failure)
                codes.append(failure.exit_code)
    if not codes:
        return Exit.DONE
    return codes[0] if len(codes) == len(tasks) else Exit.PARTIAL
