"""Calls that are given up: how long they are waited for, and the threads that make them."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from sccache_dtool.fetch.patience import within

NO_LIMIT = "there is no limit"


def test_calls_in_turn_are_made_by_one_thread() -> None:
    """Each use of a local source would wait for the start of a thread, which takes longer than all else in a hit."""
    makers = {within(60, threading.get_ident, NO_LIMIT) for _ in range(10)}
    assert len(makers) == 1
    assert makers != {threading.get_ident()}


def test_the_thread_takes_no_signals() -> None:
    """`run` could not tell who has sent a signal, and would send a command its own signals again and again."""
    blocked = within(60, lambda: signal.pthread_sigmask(signal.SIG_BLOCK, []), NO_LIMIT)
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD} <= set(blocked)


def test_an_error_is_raised_and_the_thread_lives_on() -> None:
    """One file that is missing would cost all later uses their limit."""
    before = within(60, threading.get_ident, NO_LIMIT)
    with pytest.raises(FileNotFoundError):
        within(60, lambda: os.stat("/does/not/exist"), NO_LIMIT)
    assert within(60, threading.get_ident, NO_LIMIT) == before


def test_a_call_that_does_not_end_keeps_its_thread_and_no_other_call() -> None:
    """After one look at a mount whose server is down, no item could be used any more."""
    stuck, silent = [], threading.Event()

    def call() -> None:
        stuck.append(threading.get_ident())
        silent.wait()

    try:
        with pytest.raises(TimeoutError, match="no answer for"):
            within(0.01, call, NO_LIMIT)
        assert within(60, threading.get_ident, NO_LIMIT) not in stuck
    finally:
        silent.set()


def test_a_call_may_make_another() -> None:
    """It would wait for itself."""
    assert within(60, lambda: within(60, lambda: 7, NO_LIMIT), NO_LIMIT) == 7


def test_a_forked_child_has_a_thread_of_its_own() -> None:
    """It would wait for a thread that only its parent has, and then take each source for one that does not answer."""
    within(60, threading.get_ident, NO_LIMIT)
    child = os.fork()
    if child == 0:
        os._exit(within(60, lambda: 7, NO_LIMIT))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
