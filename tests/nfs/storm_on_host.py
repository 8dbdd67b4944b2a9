"""One host's part of a storm on several, what is seen of it on the server, and the verdict on all of it.

`rage PLACE WEATHER ITEMS [JOURNALS [MUTANT]]` rages here; with JOURNALS, a directory, until the standard input ends.
`watch PLACE ITEMS JOURNALS` runs where the disk is, and sees it as it is, until the standard input ends.
`judge PLACE JOURNAL ITEMS` waits until everybody's lifetime is over who left something behind.

WEATHER is a `Weather` in JSON; JOURNAL and ITEMS are files, which all hosts can read. Each prints an object in JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from races.actors import digest_of, generations, left_in, names
from races.storm import Item, ListThenDelete, Notes, Storm, Weather, _Evicting, verdict
from sccache_dtool.cache import Cache
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import GATE, PAYLOAD, Layout
from sccache_dtool.liveness import lifetime
from sccache_dtool.protocol import election
from waiting import wait_until

#: Seconds in which the last holder of a host that is gone has lapsed.
PATIENCE = 180.0

#: Seconds between two rounds of the watch, which shares its processor with the file server.
_PAUSE = 0.2


def _suspect_everybody() -> None:
    """Take what has not been seen to beat since a moment ago for dead."""
    lifetime.MARGIN = -(10.0**6)
    lifetime.MISSED_BEATS = 0


#: Wrong protocols: the class of an evictor's file system, and what else is wrong.
MUTANTS: dict[str, tuple[type[_Evicting], Callable[[], None]]] = {
    "none": (_Evicting, lambda: None),
    "list, then delete": (ListThenDelete, lambda: None),
    "reap on suspicion": (_Evicting, _suspect_everybody),
}


def _items(path: str) -> list[Item]:
    return [Item(tuple(words), digest) for words, digest in json.loads(Path(path).read_text())]


def rage(place: str, weather: str, items: str, journals: str = "", mutant: str = "none") -> dict[str, object]:
    """What went wrong with the processes of this host, what they noted, and how much they did."""
    if journals:  # hosts are to fall silent, and those who wait for them are not to wait for minutes
        election.LIFETIME, election.REFRESH = 20, 4.0
    evicting, break_more = MUTANTS[mutant]
    break_more()
    storm = Storm(
        Path(tempfile.mkdtemp()),
        _items(items),
        Weather(**json.loads(weather)),
        evicting=evicting,
        place=place,
        journals=Path(journals) if journals else None,
        until=sys.stdin.fileno() if journals else None,
    )
    wrong = storm.blow()
    journal = {kind: sorted(lines) for kind, lines in storm.notes.read().items()}
    return {"wrong": wrong, "journal": journal, "counts": storm.counts}


def watch(place: str, items: str, journals: str) -> dict[str, object]:
    """How many copies were looked at. What is published must be whole for as long as it is there."""
    notes, looks = Notes(Path(journals), durable=True), 0
    layout, cache = Layout(place), Cache(place, fs=FileSystem())
    digests = {cache.key_for(item.words): item.digest for item in _items(items)}
    while not select.select([sys.stdin], [], [], _PAUSE)[0]:
        for key, digest in digests.items():
            for generation in generations(place, key):
                looks += 1
                for violation in _looked_at(layout.generation(key, generation), digest):
                    notes.add(0, "violation", violation)
        notes.add(0, "counts", json.dumps({"looks": looks}))
    return {"looks": looks}


def _looked_at(copy: str, digest: str) -> Iterator[str]:
    """What is wrong with a copy; nothing if it was moved away meanwhile, for its name is never used again."""
    held = set(names(copy, GATE))
    try:
        (name,) = os.listdir(f"{copy}/{PAYLOAD}")
        found = "whole" if digest_of(f"{copy}/{PAYLOAD}/{name}") == digest else "not whole"
    except (OSError, ValueError) as error:
        found = str(error)
    still_held = held & set(names(copy, GATE))
    if found != "whole" and os.path.isdir(copy):
        yield f"seen on the server: {copy}, held by {sorted(still_held)}: {found}"


def judge(place: str, journal: str, items: str) -> dict[str, object]:
    """What is not as it must be, and how many uses are in the history."""
    cache = Cache(place, fs=FileSystem())

    def reaped() -> bool:
        cache.reap()
        return "holders" not in left_in(place)

    with contextlib.suppress(AssertionError):  # what is left is a violation, and said with all others
        wait_until(reaped, "all holders are reaped", patience=PATIENCE, pause=0.5)
    noted = {kind: set(lines) for kind, lines in json.loads(Path(journal).read_text()).items()}
    violations, uses = verdict(place, _items(items), noted)
    return {"violations": violations, "in history": uses}


if __name__ == "__main__":
    print(json.dumps({"rage": rage, "watch": watch, "judge": judge}[sys.argv[1]](*sys.argv[2:])))
