"""`sc-dtool` as one of many processes that share even the smallest work; run by the tests beside it.

Each process leaves a file ``by-<process>`` in $EVENTS. With $WAIT_FOR, each process waits before its first eviction
until so many have come so far, so that none does everything. With $KILL_RANK, that rank kills itself there instead.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from sccache_dtool import pool
from sccache_dtool.cli import main
from sccache_dtool.evict import execution, trash
from waiting import wait_until

_events = Path(os.environ["EVENTS"])
_rank = os.environ.get("PMI_RANK", "0")
_evict = trash.evict
_leads = __name__ == "__main__" and _rank == "0"
_numbers = itertools.count(1)  # threads may evict


def evict(*arguments: Any) -> trash.Outcome:
    """Evict, and leave a trace."""
    if next(_numbers) == (3 if _leads else 1):  # the first piece, of two, is done before anything is shared
        (_events / f"by-{os.uname().nodename}-{os.getpid()}").touch()
        awaited = int(os.environ.get("WAIT_FOR", "1"))
        wait_until(lambda: len(list(_events.glob("by-*"))) >= awaited, "others have come so far")
        if os.environ.get("KILL_RANK") == _rank:
            os.kill(os.getpid(), signal.SIGKILL)
    return _evict(*arguments)


def share_everything() -> None:
    """Let the smallest work be shared."""
    trash.evict = evict  # type: ignore[assignment]
    execution.AT_ONCE = 2
    pool.PROBE, pool.WORTH, pool.OUTSTANDING = 0.0, -1.0, 4


share_everything()
if __name__ == "__main__":
    sys.argv[0] = "sc-dtool"
    main.main()
