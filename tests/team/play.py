"""One task of a team as a real process, with what happens to it while it evicts; run by `test_team.py`.

In $PLAYS, for each rank: ``stop@N`` and ``kill@N`` stop and kill the whole task at its Nth eviction, ``hang@N`` hangs
in it, as in a request to a server; ``die@WORD`` ends, as if for want of memory, whatever process of any task evicts an
item with WORD in its key, but for the one that leads; ``wait@NAME`` waits with the first eviction until another task
has come so far, and says so. What is reached is a file in $EVENTS.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from sccache_dtool import crew
from sccache_dtool.cli import main
from sccache_dtool.evict import clean, trash
from sccache_dtool.team import board, lead
from sccache_dtool.team.lead import Lead
from sccache_dtool.team.task import task_from

#: Seconds of silence after which a task is given up here.
SILENCE = 2.0

_task = task_from(os.environ, os.getpid())
assert _task is not None
_play, _, _argument = json.loads(os.environ["PLAYS"]).get(str(_task.rank), "").partition("@")
_SIGNALS = {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}
_events = Path(os.environ["EVENTS"])
_leading = os.getpid()
_evict = trash.evict
_count = 0


def _reach(name: str) -> None:
    (_events / name).touch()


def _is_reached(name: str) -> bool:
    os.utime(_events)  # or NFS may hide for a minute what another host has made
    return name in os.listdir(_events)


def _evict_in_play(fs: Any, layout: Any, key: str, *more: Any) -> trash.Outcome:
    global _count
    _count += 1
    if os.getpid() != _leading:
        if _play in _SIGNALS and _count == int(_argument):
            _reach(_play)
            os.killpg(0, _SIGNALS[_play])
        if _play == "hang" and _count == int(_argument):
            _reach(_play)
            signal.pause()
        if _play == "die" and _argument in key:
            _reach(f"died-{os.getpid()}")
            os.kill(os.getpid(), signal.SIGKILL)
        if _play == "wait" and not _is_reached(_argument):
            _reach(f"waiting-{_task.rank}")
            while not _is_reached(_argument):
                time.sleep(0.005)
    return _evict(fs, layout, key, *more)


trash.evict = _evict_in_play  # type: ignore[assignment]
board.SILENCE = SILENCE
lead._PATIENCE = 2
clean._AT_ONCE = 2
crew._PROBE = 0.0
Lead.worth = 0.0
sys.argv[0] = "sc-dtool"
main.main()
