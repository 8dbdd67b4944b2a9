"""Executors that distribute work over several hosts: MPI and Dask.

They have the interface of `concurrent.futures.Executor`. Each of their processes runs this package and sees the cache
at the same path. `pool` decides which work is large enough.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlsplit

from sccache_dtool.errors import CacheError, UsageError, explain
from sccache_dtool.extras import to_install

if TYPE_CHECKING:
    from concurrent.futures import Executor

#: Seconds to wait for a Dask scheduler.
DASK_TIMEOUT = 30

#: Environment variables that MPI launchers set: the rank, and the number of ranks.
_RANKS = (
    ("PMI_RANK", "PMI_SIZE"),  # MPICH's mpiexec, srun --mpi=pmi2
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI's mpirun
)

#: Names of the processes that start MPI ranks. A child of a rank inherits its environment, but is not a rank.
_LAUNCHERS = frozenset({"hydra_pmi_proxy", "orted", "prted", "prterun", "mpirun", "mpiexec", "slurmstepd"})


class Rank(NamedTuple):
    """The number of this process among those with the same command line, from 0."""

    number: int
    total: int
    mpi: bool  # whether the launcher connects them by MPI


def rank_from(environment: Mapping[str, str], pid: int, parent: str) -> Rank | None:
    """The rank of the process `pid`; None if it runs alone. `parent`: the name of its parent process."""
    if environment.get("SLURM_TASK_PID", str(pid)) != str(pid):
        return None  # started by a task of Slurm, not by srun
    if parent in _LAUNCHERS or "SLURM_TASK_PID" in environment:
        for rank, total in _RANKS:
            number, count = environment.get(rank, ""), environment.get(total, "")
            if number.isdecimal() and count.isdecimal() and int(count) > 1:
                return Rank(int(number), int(count), True)
    number, count = environment.get("SLURM_PROCID", ""), environment.get("SLURM_STEP_NUM_TASKS", "")
    if "SLURM_TASK_PID" in environment and number.isdecimal() and count.isdecimal() and int(count) > 1:
        return Rank(int(number), int(count), False)
    return None


def parent_name() -> str:
    """The name of this process's parent; empty if it is unknown."""
    try:
        with open(f"/proc/{os.getppid()}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def mpi() -> Iterator[Executor | None]:
    """Yield an executor of all MPI ranks in rank 0. The other ranks work for it, and yield None at the end.

    Raises ImportError without mpi4py.
    """
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        yield cast("Executor | None", executor)


@contextlib.contextmanager
def dask(place: str, *, insecure: bool = False) -> Iterator[Executor]:
    """Yield an executor of a Dask cluster. `place`: the scheduler's address, or its scheduler file.

    `insecure`: accept a scheduler without TLS on another host. The user's Dask configuration names the certificates.
    Raises UsageError, and CacheError if the scheduler does not answer.
    """
    address = place if "://" in place else _address_in(place)
    if not insecure and not _is_secure(address):
        raise UsageError(
            f"the Dask scheduler {address} does not use TLS",
            hint="whoever reaches its port runs code as you; use tls://, or accept that with --insecure-executor",
        )
    try:
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise UsageError("Dask is not installed", hint=to_install("dask")) from error
    try:
        client = distributed.Client(address, timeout=DASK_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise CacheError(
            f"cannot connect to the Dask scheduler at {address}: {error}",
            hint="check that it is running and reachable from this host",
        ) from error
    with client:
        yield cast("Executor", client.get_executor(pure=False))


def _address_in(path: str) -> str:
    """The address in a scheduler file, as `dask scheduler --scheduler-file` writes it."""
    try:
        with open(path, encoding="utf-8") as file:
            return str(json.load(file)["address"])
    except OSError as error:
        raise UsageError(f"cannot read the Dask scheduler file: {explain(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a Dask scheduler file") from error


def _is_secure(address: str) -> bool:
    parts = urlsplit(address)
    if parts.scheme in ("tls", "wss", "inproc"):
        return True
    host = parts.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
