"""Calls of other people's code that might never return."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from sccache_dtool.fallback import start_thread
from sccache_dtool.units import short_duration

Result = TypeVar("Result")


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """What `call` returns, or raises. Raises TimeoutError if it has done neither after so many seconds.

    It is then left to itself, in a thread that ends with it or with this process. Where the system gives no thread,
    there is no limit.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    if start_thread(run, "sc-dtool call", "how long a server may take to answer is not limited") is None:
        return call()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise
        raise TimeoutError(f"no answer for {short_duration(seconds)}") from None
