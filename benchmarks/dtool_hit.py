"""A hit through the plugin beside a hit of plain dtool-s3, whose server is on loopback: the nearest that one can be.

Every hit is one of an item that this process does not hold, so that ours takes a lease each time: a listing of the
item, a listing of its payload, and the lease. (An item that the process holds already costs ours no call at all, and
plain dtool-s3 the same as before.) The process has entered the cache before, and the dataset is open.

`python benchmarks/dtool_hit.py` runs it alone; it needs dtool-s3 and moto[server].
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measure import Figure, in_turns, ratio

#: Items, and so operations in a round.
_ITEMS = 20

#: What is claimed.
_TIMES_FASTER = 30.0

_BUCKET = "benchbucket"


def figures(directory: Path, rounds: int, budget: float) -> Iterator[Figure]:
    """All figures of this module; nothing where dtool-s3 or moto is not installed."""
    try:
        import dtool_s3  # noqa: F401
        from moto.server import ThreadedMotoServer
    except ImportError:
        return
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield from _figures(directory, "http://{}:{}".format(*server.get_host_and_port()), rounds, budget)
    finally:
        server.stop()


def _figures(directory: Path, endpoint: str, rounds: int, budget: float) -> Iterator[Figure]:
    dataset = _dataset(endpoint, directory)
    from sccache_dtool.dtool import plugin

    identifiers = sorted(dataset.identifiers)

    def ask() -> float:
        began = time.perf_counter()
        for identifier in identifiers:
            dataset.item_content_abspath(identifier)
        return (time.perf_counter() - began) / len(identifiers)

    def ours() -> float:
        os.environ[plugin.SWITCH] = "on"
        seconds = ask()
        for lease in plugin._state.held.values():
            lease.release()
        plugin._state.held.clear()
        return seconds

    def plain() -> float:
        os.environ[plugin.SWITCH] = "off"
        return ask()

    runners: dict[str, Callable[[], float]] = {"plain dtool-s3": plain, "with the plugin": ours}
    for warm in runners.values():
        warm()
    times = in_turns(runners, rounds, budget)
    os.environ[plugin.SWITCH] = "off"
    yield ratio(
        "dtool_hit",
        "a hit of plain dtool-s3 takes so many times as long as one through the plugin",
        "plain dtool-s3",
        "with the plugin",
        times,
        ">=",
        _TIMES_FASTER,
    )


def _dataset(endpoint: str, directory: Path) -> Any:
    import boto3

    os.environ |= {
        f"DTOOL_S3_ENDPOINT_{_BUCKET}": endpoint,
        f"DTOOL_S3_ACCESS_KEY_ID_{_BUCKET}": "testing",
        f"DTOOL_S3_SECRET_ACCESS_KEY_{_BUCKET}": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "DTOOL_CACHE_DIRECTORY": str(directory / "cache"),
    }
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=_BUCKET)
    import dtoolcore

    with dtoolcore.DataSetCreator("bench", f"s3://{_BUCKET}") as creator:
        for number in range(_ITEMS):
            Path(creator.prepare_staging_abspath_promise(f"item{number}.dat")).write_bytes(os.urandom(1000))
        uri = creator.uri
    return dtoolcore.DataSet.from_uri(uri)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="sc-dtool-bench-") as scratch:
        for figure in figures(Path(scratch), 30, 30.0):
            print(
                f"{figure.what}: {figure.value:.1f} ({figure.least:.1f} to {figure.most:.1f}, {figure.rounds} rounds)"
            )
            for name, median in figure.medians.items():
                print(f"  {name}: {median * 1e6:.0f} us")
            sys.exit(0 if figure.met else 1)
