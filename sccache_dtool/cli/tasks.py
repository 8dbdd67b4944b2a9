"""Commands that scan the whole cache with the processes of an executor: MPI ranks, or the workers of a Dask cluster."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from sccache_dtool import executors
from sccache_dtool.cli.options import Command, Invocation
from sccache_dtool.errors import Exit, UsageError
from sccache_dtool.executors import Rank
from sccache_dtool.extras import to_install


def by_all_tasks(function: Command) -> Command:
    """Decorator for commands that scan the whole cache: run them with the executor of --executor, or of MPI.

    A part of the work may be done twice, so the command must be idempotent.
    """

    @functools.wraps(function)
    def run(call: Invocation, /, *arguments: Any, **options: Any) -> Any:
        command = functools.partial(function, call, *arguments, **options)
        kind, _, place = (call.executor or "auto").partition(":")
        if kind == "dask" and place:
            with executors.dask(place, insecure=call.insecure_executor) as call.spread:
                return command()
        if kind not in ("auto", "mpi", "none") or place:
            raise UsageError(
                f"unknown executor {call.executor!r}", hint="give mpi, none, dask:ADDRESS or dask:SCHEDULER-FILE"
            )
        rank = executors.rank_from(os.environ, os.getpid(), executors.parent_name()) if kind == "auto" else None
        if kind == "mpi" or (rank is not None and rank.mpi):
            return _by_mpi(call, rank, command)
        if rank is not None:
            return _alone(call, rank, command, "srun started the tasks without MPI; add --mpi=pmi2")
        return command()

    return run  # type: ignore[return-value]


def _by_mpi(call: Invocation, rank: Rank | None, command: Callable[[], Any]) -> Any:
    try:
        with executors.mpi() as call.spread:
            return Exit.DONE if call.spread is None else command()
    except ImportError as error:
        if rank is None:
            raise UsageError(
                "MPI is not available", details=[str(error)], hint=f"install it: {to_install('mpi')}"
            ) from error
        return _alone(call, rank, command, f"mpi4py is not installed; install it: {to_install('mpi')}")


def _alone(call: Invocation, rank: Rank, command: Callable[[], Any], why: str) -> Any:
    """Run the command in the first of several tasks; the others do nothing."""
    if rank.number != 0:
        return Exit.DONE
    call.out.warning(f"one of {rank.total} tasks does all the work: {why}")
    return command()
