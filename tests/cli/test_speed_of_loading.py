"""What a short command loads. Nothing is timed here: a module that is not loaded costs nothing on any machine."""

from __future__ import annotations

import json

import pytest

from cli.tool import PYTHON, call, shell

#: Loaded only where something is fetched, drawn, counted, elected or configured.
HEAVY = """
    asyncio charset_normalizer concurrent cryptography email flufl fsspec http humanize idna multiprocessing packaging
    pkg_resources pygments random requests rich setuptools shutil socket sqlite3 ssl subprocess tarfile
    tempfile tomllib urllib3 xml zipfile
    importlib.metadata urllib.request
    jinja2 sccache_dtool.report
    sccache_dtool.doctor sccache_dtool.protocol.election sccache_dtool.evict.single sccache_dtool.fetch.run
    globus_sdk jwt sccache_dtool.fetch.globus sccache_dtool.cli.globus
    sccache_dtool.fetch.populate sccache_dtool.cli.inspect sccache_dtool.cli.manage sccache_dtool.cli.child
""".split()

PROBE = """
import json, sys
from sccache_dtool.cli.main import run
code = run(sys.argv[1:])
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


def loaded(*words: str) -> set[str]:
    """The modules that a command has loaded at its end, and the packages that they are in."""
    done = shell([PYTHON, "-c", PROBE, *words])
    assert done.code == 0, done
    modules = json.loads(done.err.splitlines()[-1])
    return {part for module in modules for part in (module, module.partition(".")[0])}


@pytest.mark.parametrize(
    ("command", "more"),
    [
        *(("use", more) for more in ([], ["-n", "named"], ["--ttl", "1h"])),
        *(("unuse", more) for more in ([], ["-n", "named"])),
    ],
    ids=str,
)
def test_a_cached_item_costs_no_heavy_import(source: str, command: str, more: list[str]) -> None:
    """Each of ten thousand jobs would load a web client to be told a path."""
    assert call("use", source, *more).code == 0
    assert loaded(command, source, *more) & set(HEAVY) == set()


def test_a_command_that_is_not_named_is_not_loaded(source: str) -> None:
    """Every command would pay for all the others."""
    call("use", source)
    modules = loaded("ls", "-f", "json")
    assert "sccache_dtool.cli.inspect" in modules
    assert {"sccache_dtool.cli.use", "sccache_dtool.cli.manage", "requests", "rich", "flufl"} & modules == set()


def test_what_is_not_shown_on_a_terminal_is_not_drawn(source: str) -> None:
    """Every `du` of a script would load what folds and colours tables, and then use none of it."""
    call("use", source)
    assert {"rich", "flufl", "subprocess"} & loaded("du") == set()


@pytest.mark.parametrize("command", ["du", "summary", "metrics"])
def test_without_a_report_nothing_of_it_is_loaded(source: str, command: str) -> None:
    """Whoever never makes a report would wait for what draws it."""
    call("use", source)
    assert {"jinja2", "sccache_dtool.report", "sccache_dtool.cli.drawing"} & loaded(command) == set()


def test_help_and_version_load_no_command() -> None:
    """`sc-dtool --version` would load the whole program."""
    modules = loaded("--version")
    assert not [name for name in modules if name.startswith("sccache_dtool.cli.") and name.endswith("ing")]


def test_a_hit_makes_no_class_of_tuples_by_typing() -> None:
    """Each of ten thousand jobs would wait a tenth longer for a path: that class checks what mypy has checked."""
    program = """
import sys, typing, sccache_dtool.cli.main, sccache_dtool.cli.use
modules = [module for name, module in sys.modules.items() if name.startswith("sccache_dtool")]
print(*[module.__name__ for module in modules if getattr(module, "NamedTuple", None) is typing.NamedTuple])
"""
    done = shell([PYTHON, "-c", program])
    assert (done.code, done.out.split()) == (0, [])
