"""The commands in the documentation work as written: the tutorial is run, and every other command is checked."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from cli.tool import SCRIPTS
from fetch.servers import free_port
from sccache_dtool.cache import Cache
from sccache_dtool.cli import main
from sccache_dtool.errors import Exit
from sccache_dtool.liveness.batch import sbatch

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"])
PACKAGE = ROOT / "sccache_dtool"
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)#]*)(?:#([^)]*))?\)")


class Block(NamedTuple):
    """A block of code in a page, and the text before it."""

    language: str
    text: str
    before: str


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2], text[: found.start()].rstrip().rpartition("\n\n")[2])
        for found in _FENCE.finditer(text)
    ]


def anchors(page: Path) -> set[str]:
    """Return the anchors that a renderer makes of the headings of a page."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    """A reader would follow a link to a page or a heading that was renamed."""
    page = ROOT / name
    for target, anchor in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith("http"):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{target}#{anchor}"


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each call of sc-dtool in a text of shell commands, without what is behind a `--`."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        for call in re.split(r"(?:^|[\s\"'(;|&/])sc-dtool (?=[-a-z])", line)[1:]:
            words = re.split(r"[|;)>&]|\s#|\s--\s", call.replace('"$(', '"'))[0]
            try:
                yield shlex.split(words)
            except ValueError:  # half of a quoted text: the other half is not needed
                yield words.replace('"', " ").replace("'", " ").split()


def test_the_architecture_names_what_is_there() -> None:
    """Whoever follows "Where to make a change" would search for tables that were renamed long ago."""
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`@?(\w+)` (?:in|of) `([\w/]+\.py)`", page)
    assert len(named) > 5
    package = ROOT / "sccache_dtool"
    assert [(name, file) for name, file in named if not re.search(rf"\b{name}\b", (package / file).read_text())] == []
    files = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", page)
    assert [file for file in files if not (package / file).exists()] == []


def test_the_architecture_names_every_module() -> None:
    """A reader who looks for a module would find a page of an earlier state."""
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    named = set[str]()
    for row in re.findall(
        r"^\| (`[^|]*) \|", page.partition("## Modules")[2].partition("## The path")[0], re.MULTILINE
    ):
        package = ""
        for name in re.findall(r"`([^`]+)`", row):  # as in `cli/use`, `manage`
            package, name = name.rsplit("/", 1) if "/" in name else (package, name)
            named.add(f"{package}/{name}" if package and (PACKAGE / package / f"{name}.py").exists() else name)
    files = [file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py") if not file.name.startswith("__")]
    assert sorted(named ^ {str(file.with_suffix("")) for file in files}) == []


def with_actions(command: click.Command | None) -> list[click.Command]:
    """The command, and its actions if it has any."""
    actions = command.commands.values() if isinstance(command, click.Group) else ()
    return [] if command is None else [command, *actions]


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_options_exist(name: str) -> None:
    """A reader would paste a command with an option that was renamed."""
    general = {option for param in main.sc_dtool.params for option in (*param.opts, *param.secondary_opts)}
    takes = {
        option
        for param in main.sc_dtool.params
        if isinstance(param, click.Option) and not param.is_flag
        for option in param.opts
    }
    for block in blocks(ROOT / name):
        shown = block.text
        if block.language == "console":
            shown = "\n".join(line[2:] for line in block.text.splitlines() if line.startswith("$ "))
        elif block.language not in ("bash", ""):
            continue
        for words in commands(shown):
            rest = iter(words)
            called = next((word for word in rest if not word.startswith("-") and not _skip(word, words, takes)), None)
            options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z-]", word)}
            command = main.sc_dtool.get_command(click.Context(main.sc_dtool), called) if called else None
            assert called is None or command is not None or "…" in called, words
            own = {option for one in with_actions(command) for param in one.params for option in param.opts}
            if called == "sbatch":  # all other options are passed on to Slurm's
                theirs = sbatch.parse(words[words.index(called) + 1 :], dict.fromkeys(own, False)).others
                options -= {word.partition("=")[0] for word in theirs}
            assert options <= general | own | {"--help", "-h"}, (words, options - general - own)


def _skip(word: str, words: list[str], takes: set[str]) -> bool:
    """Whether a word is the value of an option of the whole program."""
    place = words.index(word)
    return place > 0 and words[place - 1] in takes


@pytest.mark.parametrize("name", NAMES)
def test_code_can_be_parsed(name: str) -> None:
    """A reader would paste a script with a quote or a bracket missing."""
    for block in blocks(ROOT / name):
        if block.language == "python":
            ast.parse(block.text.replace("…", "..."))
        elif block.language == "bash":
            text = re.sub(r"^node\d\$ ", "", block.text, flags=re.MULTILINE)
            done = subprocess.run(["bash", "-n"], input=text, stderr=subprocess.PIPE, text=True, check=False)
            assert not done.stderr, block.text


#: What the tutorial waits for by the clock, and what the test waits for instead.
_WAITS = {
    "bash job.sh > 1.log & bash job.sh > 2.log & sleep 2": "bash job.sh > 1.log & bash job.sh > 2.log & until_held 2",
    "wait %2 %3": "touch done; wait %2 %3; rm done",
    "bash job.sh > 3.log & sleep 2": "bash job.sh > 3.log & until_held 1",
}

_PREPARATION = """
set -m
until_held() {
    until [ "$(ls cache/.sc-dtool/items/*/*/g*/use 2>/dev/null | wc -l)" = "$1" ]
    do sleep 0.1; done
}
exec 2>&1
"""

#: What differs from run to run, and what stands for it.
_VARIES = (
    (r"/\S*/tutorial\b", "/tutorial"),
    (r"\b(now|a second ago|\d+ \w+ ago)\b", "AGO"),
    (r"[\w-]+@[\w.-]+", "USER@HOST"),
    (r"\d{4}-\d\d-\d\dT[\d:]*Z", "TIME"),
    (r"\b[gs]?[0-9a-f]{12,}\b|items/[0-9a-f]{2}/", "HEX"),
    (r"-\d+-\d+-\d+(-t\d+)?/", "-FACTS/"),
    (r"\[\d+\]|process \d+", "PROCESS"),
    (r"\d+ s\b", "SECONDS"),
    (r" +", " "),
)


def same(line: str) -> str:
    """Replace what differs from run to run in a line of output."""
    for pattern, word in _VARIES:
        line = re.sub(pattern, word, line)
    return line.strip()


def test_the_tutorial(tmp_path: Path) -> None:
    """A newcomer would see an error, or another output than the page shows, within the first 15 minutes."""
    page = ROOT / "docs" / "tutorial.md"
    script, shown = [_PREPARATION], list[tuple[str, list[str]]]()
    waits = dict(_WAITS)
    for block in blocks(page):
        if block.language == "console":
            for line in block.text.splitlines():
                if line.startswith("$ "):
                    script += [f"echo '$ {len(shown)}'", waits.pop(line[2:], line[2:])]
                    shown.append((line[2:], []))
                else:
                    shown[-1][1].append(line)
        elif named := re.search(r"into the file `([^`]*)`", block.before):
            text = block.text.replace("sleep 20 ", "until [ -e done ]; do sleep 0.1; done")
            script.append(f"cat > {named[1]} <<'END OF FILE'\n{text}END OF FILE")
    assert not waits
    begin = next(number for number, (command, _) in enumerate(shown) if command.startswith("mkdir tutorial"))
    script[1:] = script[script.index(f"echo '$ {begin}'") :]
    text = "\n".join(script).replace("8000", str(free_port()))
    environment = os.environ | {"HOME": str(tmp_path), "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash"], input=text, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    printed = dict(re.findall(r"^\$ (\d+)\n(.*?)(?=^\$ \d|\Z)", done.stdout, re.DOTALL | re.MULTILINE))
    for number, (command, expected) in enumerate(shown[begin:], begin):
        lines = [same(line) for line in printed[str(number)].splitlines() if not line.startswith("bash: line")]
        assert not expected or lines == [same(line) for line in expected], command
        assert expected or not re.search("Error|not found|Traceback", printed[str(number)]), command
    assert list(tmp_path.iterdir()) in ([], [tmp_path / ".local"])


def test_the_reference_has_every_command_and_option() -> None:
    """A reader would not find a new command or option."""
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    headings = {name for line in re.findall(r"^## (.*)$", page, re.MULTILINE) for name in line.split(", ")}
    context = click.Context(main.sc_dtool)
    for name in main.sc_dtool.list_commands(context):
        command = main.sc_dtool.get_command(context, name)
        assert command is not None
        assert name in headings
        given = (param for one in with_actions(command) for param in one.params if isinstance(param, click.Option))
        options = {option for param in given for option in param.opts}
        lacking = {option for option in options if option.startswith("--") and option not in page}
        assert not lacking, (name, lacking)


def test_the_reference_has_every_exit_code() -> None:
    """A script would meet an exit code of which nothing is said."""
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    rows = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE) for code in row.split(",")}
    assert {int(code) for code in Exit} <= rows


def test_the_reference_has_every_setting(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A data manager would not find a new setting."""
    page = (ROOT / "docs" / "reference" / "config.md").read_text(encoding="utf-8")
    Cache(tmp_path / "cache").init()
    assert main.run(["-C", str(tmp_path / "cache"), "-f", "json", "config", "show"]) == 0
    settings = [name for name in json.loads(capsys.readouterr().out) if "." in name]
    assert settings
    assert not [name for name in settings if f"`{name.partition('.')[2]}`" not in page]
