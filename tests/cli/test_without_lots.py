"""What commands print in a cache without lots is, byte for byte, what they printed before there were lots."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import Done
from sccache_dtool.cache import Cache

Sc = Callable[..., Done]

#: Recorded by the last release without lots, from the commands below.
RECORDED = Path(__file__).parent / "data" / "without-lots.txt"

COMMANDS = (
    "clean -n --all",
    "clean -n --all -f json",
    "clean -n --all -f tsv",
    "clean -n --retain-size 3500B --order largest",
    "clean -n --retain-size 3500B --order largest -f json",
    "clean -n --older-than 1d -v",
    "clean -n --high-watermark 1TB",
    "clean -n --retain-size 10B -f json",
    "clean -n --retain-size 2500B -o PLAN",
    "clean --notice 7d --retain-size 3500B -f json",
    "ls",
    "ls -f json",
    "du",
    "du -f json",
    "du --by dataset -f json",
    "summary -f json",
    "status a",
    "why a",
    "doctor",
    "doctor -f json",
    "clean --plan PLAN",
    "clean --plan PLAN -f json",
    "clean --retain-size 1500B -f json",
    "clean --retain-size 10B",
    "clean --all -y",
    "clean --all -y -f json",
)

#: What differs from run to run, and what takes its place.
MASKS = (
    (r"g[0-9a-f]{16}-\d+-", "gRANDOM-TIME-"),
    (r"-v[0-9a-f]{16}", "-vVERSION"),
    (r"[0-9a-f]{32}-", "HASH-"),
    (r"/[0-9a-f]{2}/HASH", "/SHARD/HASH"),
    (r"\b[0-9a-f]{12}  ", "SHORTENED     "),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "WHEN"),
    (r"\b\d{10}(\.\d+)?\b", "TIME"),
    (r'"(saved_seconds|free_bytes)": [\d.]+', r'"\1": N'),
    (r'"(by|user|lease|holder|evidence)": "[^"]*"', r'"\1": "WHO"'),
    (r"(fetched +WHEN by ).*", r"\1WHO"),
    (r"\b((a|an|\d+) \w+ ago|now)$", "SOME TIME ago"),
    (r"    \S+@.*", "    WHO"),
    (r"\b[0-9a-f]{16,}\b", "RANDOM"),
    (r', "fetching_by": null, "fetching_percent": null', ""),  # came with the list of transfers
)


def transcript(sc: Sc, tmp_path: Path) -> str:
    """What the commands print, as users see it, without what differs from run to run."""
    for number, name in enumerate(("a", "b", "c", "d")):
        source = tmp_path / "data" / name
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(bytes(1000 * (number + 1)))
        path = sc("use", source).path
        if name != "d":
            sc("unuse", source)
        copy = path.parents[1]
        copy.rename(copy.with_name(re.sub(r"-t\d+", "-t250", copy.name)))  # as if each had taken as long
    parts = []
    for command in COMMANDS:
        done = sc(*command.replace("PLAN", str(tmp_path / "plan.json")).split())
        lines = [_masked(line, tmp_path) for line in done.out.splitlines()]
        if command in ("ls -f json", "du -f json"):  # in the order of their hashes
            lines.sort()
        parts += [f"$ {command}", *lines, _masked(done.err, tmp_path), f"exit {done.code}", ""]
        if "-o PLAN" in command:
            parts.append(_masked((tmp_path / "plan.json").read_text(), tmp_path))
    return "\n".join(parts)


def _masked(text: str, tmp_path: Path) -> str:
    text = text.replace(str(tmp_path), "DIRECTORY")
    for pattern, mask in MASKS:
        text = re.sub(pattern, mask, text, flags=re.MULTILINE)
    return text


def test_without_lots_nothing_has_changed(sc: Sc, tmp_path: Path) -> None:
    """Whoever has no lots, and programs that read the output, would have to learn of them."""
    assert transcript(sc, tmp_path) == RECORDED.read_text()


@pytest.mark.parametrize("left", [False, True], ids=["never had any", "had some"])
def test_a_cache_whose_lots_are_gone_is_one_without(sc: Sc, root: Path, tmp_path: Path, left: bool) -> None:
    """After the last lot was removed, cleaning would go on by rules that nobody can see."""
    if left:
        assert sc("lot", "create", "ada").code == 0
        assert sc("lot", "rm", "ada").code == 0
        assert Cache(root).lots().number == 2
    text = re.sub(r"(all lots may be changed by|\{\"type\": \"lot_rights\").*\n", "", transcript(sc, tmp_path))
    assert text == RECORDED.read_text()
