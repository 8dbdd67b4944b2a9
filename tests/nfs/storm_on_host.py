"""One host's part of a storm on several, and the verdict on all of it; each prints one object in JSON.

`rage PLACE WEATHER ITEMS` and `judge PLACE JOURNAL ITEMS`, where WEATHER is a `Weather` in JSON, and JOURNAL and ITEMS
are files, which all hosts can read.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from races.storm import Item, Storm, Weather, verdict


def _items(path: str) -> list[Item]:
    return [Item(tuple(words), digest) for words, digest in json.loads(Path(path).read_text())]


def rage(place: str, weather: str, items: str) -> dict[str, object]:
    """What went wrong with the processes of this host, what they noted, and how much they did."""
    storm = Storm(Path(tempfile.mkdtemp()), _items(items), Weather(**json.loads(weather)), place=place)
    wrong = storm.blow()
    journal = {kind: sorted(lines) for kind, lines in storm.read_journals().items()}
    return {"wrong": wrong, "journal": journal, "counts": storm.counts}


def judge(place: str, journal: str, items: str) -> dict[str, object]:
    """What is not as it must be, and how many uses are in the history."""
    noted = {kind: set(lines) for kind, lines in json.loads(Path(journal).read_text()).items()}
    violations, uses = verdict(place, _items(items), noted)
    return {"violations": violations, "in history": uses}


if __name__ == "__main__":
    print(json.dumps({"rage": rage, "judge": judge}[sys.argv[1]](*sys.argv[2:])))
