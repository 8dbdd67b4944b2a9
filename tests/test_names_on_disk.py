"""All names of the format are in one module, `disk/names.py`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import sccache_dtool
from sccache_dtool.disk.names import CONTROL

_PACKAGE = Path(sccache_dtool.__file__).parent

#: Modules with paths outside of any cache, such as those of an archive, and the files of a check of a file system.
_OTHER_PATHS = ("disk/names.py", "verify/checks.py", "liveness/", "executors.py", "fetch/slots.py", "markers/")

#: A name in a directory, such as `/work` after `{area}`; a rate ends with `/s`, and `/.` is the directory itself.
_COMPONENT = re.compile(r"/(?!s\b|\.(?:\Z|/))[A-Za-z_.-]")


def _literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Literals of names in paths: after a value in an f-string, and purposes of work areas."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            for before, part in zip(node.values, node.values[1:], strict=False):
                is_part = isinstance(before, ast.FormattedValue) and isinstance(part, ast.Constant)
                if is_part and _COMPONENT.match(part.value):
                    yield part.lineno, part.value
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("WorkName", "make_election"):
            yield from ((one.lineno, one.value) for one in node.args if isinstance(one, ast.Constant))
        elif isinstance(node, ast.keyword) and node.arg == "purpose" and isinstance(node.value, ast.Constant):
            yield node.value.lineno, node.value.value


def test_names_on_disk_are_in_one_module() -> None:
    """A name written in two modules could be changed in one of them, and old files would never be found again."""
    found = []
    for path in sorted(_PACKAGE.rglob("*.py")):
        inner = str(path.relative_to(_PACKAGE))
        if inner.startswith(_OTHER_PATHS):
            continue
        tree = ast.parse(path.read_text())
        found += [f"{inner}:{line}: {text}" for line, text in _literals(tree)]
        values = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
        found += [f"{inner}:{node.lineno}: {node.value}" for node in values if node.value == CONTROL]
    assert not found
