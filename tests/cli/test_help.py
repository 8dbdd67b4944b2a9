"""Help: every command has it, and what it promises is so."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest

from cli.tool import COMMANDS, Done, call
from sccache_dtool import __version__
from sccache_dtool.cli.main import sc_dtool
from sccache_dtool.errors import Exit

Sc = Callable[..., Done]


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
    shown = sc("--help").out.partition("Commands:\n")[2].partition("\n\n")[0]
    listed = [line.split()[0] for line in shown.splitlines() if re.match(r"  [a-z]", line)]
    assert listed == list(sc_dtool.commands) or set(COMMANDS) <= set(listed)
    for command in listed:
        assert sc(command, "--help").code == 0


def test_the_list_of_commands_says_what_each_does(sc: Sc) -> None:
    """A description in the list would be cut off, and its reader would have to guess its end."""
    shown = sc("--help").out.partition("Commands:\n")[2].partition("\n\n")[0]
    for line in shown.splitlines():
        name, about = line.split(maxsplit=1)
        assert re.fullmatch(r"[A-Z].*[^.]\.", about), line
        assert len(about) <= 61, f"{name}: longer than 60 characters and its full stop"


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
    assert "Commands:" in done.out + done.err


@pytest.mark.no_cache
@pytest.mark.parametrize("command", COMMANDS)
def test_help_touches_no_cache(command: str, sc: Sc, root: os.PathLike[str]) -> None:
    """A look at the help would set up a cache."""
    sc(command, "--help")
    assert not os.path.exists(root)
