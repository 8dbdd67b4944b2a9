"""What one of several hosts does while others do the same, or the opposite.

`lock PLACE SESSION PATH…` takes locks of a session, one after the other, until it has ended, and prints how many. It
prints "some" when it has a few. `delete PLACE SESSION CALLS` deletes a session, and dies after so many calls that
change something. `count PLACE LOT TIMES` raises the number of objects that a lot may have, one by one, and prints
after each change how many it has made.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults import Dying, Killed
from sccache_dtool.cache import Cache
from sccache_dtool.errors import CacheError
from sccache_dtool.lots.model import Lots


def lock(place: str, session: str, *paths: str) -> None:
    """Until the session has ended. Every third lock is released."""
    found = Cache(place).session(session)
    count = 0
    try:
        for path in itertools.cycle(paths):
            taken = found.lock(path)
            count += 1
            if count % 3 == 0:
                taken.release()
            if count == 4:
                print("some", flush=True)
    except CacheError as error:
        print(count, error.message, flush=True)


def delete(place: str, session: str, calls: str) -> None:
    """As if killed after so many calls."""
    cache = Cache(place, fs=Dying(int(calls)))
    try:
        cache.session(session).delete()
    except Killed:
        print("killed", flush=True)
        os._exit(0)


def count(place: str, lot: str, times: str) -> None:
    """Each change is made once, whoever else makes one."""
    cache = Cache(place)

    def more(lots: Lots) -> Lots:
        return lots.update(lot, objects=(lots[lot].objects or 0) + 1, caller=None)

    for number in range(int(times)):
        cache.change_lots(more)
        print(number + 1, flush=True)


if __name__ == "__main__":
    {"lock": lock, "delete": delete, "count": count}[sys.argv[1]](*sys.argv[2:])
