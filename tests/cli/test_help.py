"""Help: every command has it, and what it promises is so."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from cli.tool import COMMANDS, Done, call
from sccache_dtool import __version__
from sccache_dtool.cli.main import sc_dtool
from sccache_dtool.errors import Exit

Sc = Callable[..., Done]

README = Path(__file__).parents[2] / "README.md"


def listed(help: str) -> dict[str, str]:
    """The commands of the list in the help, of all groups, with their summaries."""
    sections = help.partition("Use the cache:\n")[2].rpartition("\n\n")[0]
    return dict(re.findall(r"(?m)^  ([a-z]+) +(.+)$", sections))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(sc: Sc, command: str, option: str) -> None:
    """A command could be found, and nothing be learnt of it."""
    done = sc(command, option)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: sc-dtool {command} [OPTIONS]")
    about = done.out.split("\n\n")[1].strip()
    assert re.match(r"[A-Z].*\.$", about, re.DOTALL)
    for line in done.out.splitlines():
        assert len(line) <= 110


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_does(sc: Sc, command: str) -> None:
    """An option would be a riddle."""
    options = sc(command, "--help").out.partition("Options:\n")[2]
    for option in re.split(r"\n(?=  -)", options.rstrip()):
        words = re.split(r"\s{2,}", option.strip(), maxsplit=1)
        assert len(words) == 2, option
        assert re.match(r"[A-Z].*[.\])]$", words[1], re.DOTALL), option


def test_the_list_of_commands_is_whole(sc: Sc) -> None:
    """A command would exist, and nobody hear of it; or be listed, and not exist."""
    names = list(listed(sc("--help").out))
    assert names == sc_dtool.list_commands(click.Context(sc_dtool))
    assert set(COMMANDS) <= set(names)
    for command in names:
        assert sc(command, "--help").code == 0


def test_the_list_of_commands_says_what_each_does(sc: Sc) -> None:
    """A description in the list would be cut off, and its reader would have to guess its end."""
    for name, about in listed(sc("--help").out).items():
        assert re.fullmatch(r"[A-Z].*[^.]\.", about), name
        assert len(about) <= 61, f"{name}: longer than 60 characters and its full stop"


def test_the_lists_of_actions_say_what_each_does() -> None:
    """A description in the list of the actions of a command would be cut off, or be half of what it says."""
    context = click.Context(sc_dtool)
    groups = [sc_dtool.get_command(context, name) for name in sc_dtool.list_commands(context)]
    actions = [action for group in groups if isinstance(group, click.Group) for action in group.commands.values()]
    assert len(actions) > 30
    for action in actions:
        first = " ".join((action.help or "").partition("\n\n")[0].split())
        assert re.fullmatch(r"[A-Z](?!.*\. ).*\.", first), (action.name, first)
        assert len(first) <= 61, f"{first}: longer than 60 characters and its full stop"


def test_the_list_of_commands_is_in_groups(sc: Sc) -> None:
    """Whoever looks for a command would have to read all of them."""
    titles = re.findall(r"(?m)^([A-Z][a-z ]+):$", sc("--help").out)
    assert titles == ["Options", "Use the cache", "Look at the cache", "Clean the cache", "Administer the cache"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(sc: Sc, command: str) -> None:
    """A reader would know the options of a command, and still not how to write it."""
    examples = re.search(r"(?m)^  Examples?:\n((?:    .+\n)+)", sc(command, "--help").out)
    assert examples
    assert f"sc-dtool {command}" in examples[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_units_of_a_command_are_explained(sc: Sc, command: str) -> None:
    """A reader would try which units a duration or a size may have."""
    text = sc(command, "--help").out
    for metavar in ("TIME", "SIZE"):
        assert (f"{metavar} is a number" in text) == bool(re.search(rf"--[a-z-]+ {metavar}", text))


def test_the_example_is_the_one_of_the_readme(sc: Sc) -> None:
    """The first example that a user copies would be another one than the one that is tested and explained."""
    script = re.sub(r" +# .*", "", README.read_text().partition("```bash\n")[2].partition("```")[0])
    example = sc("--help").out.partition("In a batch job:\n")[2].partition("\n\n")[0]
    lines = [line.strip() for line in example.splitlines()]
    assert len(lines) >= 4
    assert lines == [line for line in script.splitlines() if line and not line.startswith(("#!", "export "))]


def test_every_exit_code_is_listed(sc: Sc) -> None:
    """A script could not tell what an exit code means."""
    text = " ".join(sc("--help").out.split())
    codes = text.partition("Exit codes: ")[2]
    of_the_command = {Exit.NOT_EXECUTABLE, Exit.NOT_FOUND}  # `run` returns its command's, as a shell does
    for code in set(Exit) - of_the_command:
        assert re.search(rf"(^| ){int(code)} [a-z]", codes), code


def test_common_options_are_told_once(sc: Sc) -> None:
    """Help of a command would drown in options that all commands have."""
    assert "--cache-dir" in sc("--help").out
    assert "may also follow the command" in " ".join(sc("--help").out.split())
    assert "--cache-dir" not in sc("du", "--help").out


def test_the_version(sc: Sc) -> None:
    """A bug report could not say which release it is about."""
    assert sc("--version") == Done(0, f"sc-dtool {__version__}\n", "")


def test_no_words_at_all_are_the_help(sc: Sc) -> None:
    """Whoever tries the bare command would see nothing, or an error."""
    done = sc("--no-input")
    assert done.code == 2
    done = call()
    assert "Use the cache:" in done.out + done.err


@pytest.mark.no_cache
@pytest.mark.parametrize("command", COMMANDS)
def test_help_touches_no_cache(command: str, sc: Sc, root: os.PathLike[str]) -> None:
    """A look at the help would set up a cache."""
    sc(command, "--help")
    assert not os.path.exists(root)
