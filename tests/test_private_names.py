"""No test replaces a private name of the package: each uses the file system, clock and processes that it is given."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_TESTS = Path(__file__).parent
_PACKAGE = "sccache_dtool"
_PRIVATE = re.compile(r"(?:\A|\.)_(?!_)\w")
_REPLACING = ("setattr", "delattr", "object", "patch")


def _modules(tree: ast.Module) -> dict[str, str]:
    """The names in a test module that stand for modules, classes and functions of the package."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE)
        for alias in node.names
    }


def _replaced(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """What is replaced, as far as it is of the package: the line, and the name with its module."""
    imported = _modules(tree)

    def resolved(target: ast.expr) -> str:
        first, dot, rest = ast.unparse(target).partition(".")
        return f"{imported.get(first, first)}{dot}{rest}"

    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _REPLACING:
            match node.args:
                case [ast.Constant(value=str(name)), *_]:
                    yield node.lineno, name
                case [target, ast.Constant(value=str(name)), *_]:
                    yield node.lineno, f"{resolved(target)}.{name}"
        elif isinstance(node, ast.Assign | ast.AugAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Attribute) and resolved(target).startswith(f"{_PACKAGE}."):
                    yield node.lineno, resolved(target)


def _private() -> Iterator[str]:
    yield from (
        f"{path.relative_to(_TESTS)}:{line}: {name}"
        for path in sorted(_TESTS.rglob("*.py"))
        if path != Path(__file__)
        for line, name in _replaced(ast.parse(path.read_text()))
        if name.startswith(f"{_PACKAGE}.") and _PRIVATE.search(name)
    )


def test_no_private_name_is_replaced() -> None:
    """A change inside a module would break tests of what it does for others, or make them test nothing."""
    assert list(_private()) == []
