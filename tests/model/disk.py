"""The file server of the model: directories, names, and calls of which each has one winner.

A state is a frozen tree, so that states can be compared. Directories and files have an identity of their own (the path
at which they were made), and names lead to them: whoever has an old way in memory still reaches the same directory
after it was renamed. `Tree.ways` remembers where names once led, for listings and look-ups that are out of date.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

#: An act on the server: its kind, and what it is given.
Call = tuple[str, ...]

ENOENT, ESTALE, EEXIST, ENOTEMPTY, EIO = "ENOENT", "ESTALE", "EEXIST", "ENOTEMPTY", "EIO"
GONE = (ENOENT, ESTALE)

#: What a server says to the repetition of a request that it has carried out, and whose reply was lost.
REPEATED = {
    "symlink": EEXIST,
    "mkdir": EEXIST,
    "create": EEXIST,
    "rename": ENOENT,
    "rmdir": ENOENT,
    "unlink": ENOENT,
}

#: How the calls are called by which a whole tree is removed; the program under test makes them in one go.
IN_TREE = "tree-"

#: Directories are told from other things by how their identity begins.
_DIRECTORY = "/"
_FILE = "#"

Names = Mapping[tuple[str, str], str]


class Refused(Exception):
    """The server's, or the client's, refusal."""

    def __init__(self, why: str, where: tuple[str, str] | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.where = where  # the directory and the name that is missing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refused) and self.why == other.why

    def __hash__(self) -> int:
        return hash(self.why)


class Tree:
    """Everything on the server: (directory, name) → what is there. Never changed; calls make new ones."""

    __slots__ = ("_hash", "frozen", "names", "ways")

    def __init__(self, names: Names, ways: frozenset[tuple[str, str, str]] = frozenset()) -> None:
        self.names = names
        self.ways = ways
        self.frozen = (frozenset(names.items()), ways)
        self._hash = hash(self.frozen)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self.frozen == other.frozen

    def __hash__(self) -> int:
        return self._hash

    def listing(self, directory: str) -> Iterator[str]:
        """The names in a directory, given by its identity."""
        return (name for (where, name) in self.names if where == directory)

    def at(self, path: str) -> str | None:
        """What is at a path; None if nothing is."""
        here: str | None = ""
        for name in split(path):
            here = self.names.get((here or "", name))
            if here is None:
                return None
        return here

    def inside(self, path: str) -> list[str]:
        """The names in the directory at a path, sorted; none if there is no such directory."""
        directory = self.at(path)
        return sorted(self.listing(directory)) if directory and is_directory(directory) else []


def tree_of(*paths: str, **texts: str) -> Tree:
    """A tree: directories by their paths (a name that ends in # is a file that is whole), links by path=text."""
    names: dict[tuple[str, str], str] = {}
    for path in paths:
        _make(names, path.rstrip("#"), _FILE if path.endswith("#") else _DIRECTORY)
    for path, text in texts.items():
        parent, name = _parent(names, path)
        names[parent, name] = text
    return Tree(names)


def _make(names: dict[tuple[str, str], str], path: str, kind: str) -> None:
    parent, name = _parent(names, path)
    names[parent, name] = f"{kind}{path}"
    if kind == _FILE:
        names[f"{kind}{path}", "data"] = WHOLE


def _parent(names: Names, path: str) -> tuple[str, str]:
    *above, name = split(path)
    here = ""
    for part in above:
        here = names[here, part]
    return here, name


#: What a complete payload contains. A download writes it in two halves.
WHOLE = "first second"


class Step(NamedTuple):
    """What a call did."""

    result: object
    names: dict[tuple[str, str], str] | None  # None: nothing has changed
    ways: tuple[tuple[str, str, str], ...] = ()  # where names led until now


@cache
def split(path: str) -> tuple[str, ...]:
    """The names that a path is made of."""
    return tuple(path.split("/")) if path else ()


def is_directory(what: str) -> bool:
    """Whether an identity is a directory's."""
    return what.startswith(_DIRECTORY)


def perform(tree: Tree, call: Call, stale: tuple[str, str, str] | None = None) -> Step:
    """Do a call. Raises Refused. `stale`: a way that the client still remembers, (directory, name, where it led)."""
    kind, *words = call
    kind = kind.removeprefix(IN_TREE)
    if kind == "write":
        return _write(tree, *words)
    path = words[-1] if kind == "symlink" else words[0]
    where, name = _resolve(tree, path, stale)
    if kind in ("names", "names-on", "names-still", "lstat"):
        return _look(tree, kind, where, name, path)
    there = tree.names.get((where, name))
    if kind in ("symlink", "mkdir", "create"):
        return _add(tree, kind, where, name, path, words[0], there)
    if there is None:
        raise Refused(ENOENT, (where, name))
    if kind == "readlink":
        return Step(there, None)
    if kind == "read_text":
        return Step(tree.names.get((there, "data"), ""), None)
    if kind == "open":
        return Step(there, None)
    names = dict(tree.names)
    if kind == "rename":
        return _rename(tree, names, (where, name, there), _resolve(tree, words[1], stale))
    if kind == "rmdir":
        if any(tree.listing(there)):
            raise Refused(ENOTEMPTY)
    elif kind == "unlink":
        names.pop((there, "data"), None)
    else:
        raise ValueError(call)
    del names[where, name]
    return Step(None, names, ((where, name, there),))


def _resolve(tree: Tree, path: str, stale: tuple[str, str, str] | None) -> tuple[str, str]:
    *above, name = split(path)
    here = ""
    for part in above:
        if stale is not None and stale[:2] == (here, part):
            here = stale[2]
            if here not in tree.names.values():
                raise Refused(ESTALE)
            continue
        below = tree.names.get((here, part))
        if below is None:
            raise Refused(ENOENT, (here, part))
        here = below
    return here, name


def _look(tree: Tree, kind: str, where: str, name: str, path: str) -> Step:
    there = tree.names.get((where, name)) if path else ""
    if there is None:
        raise Refused(ENOENT, (where, name))
    return Step(None if kind == "lstat" else tuple(sorted(tree.listing(there))), None)


def _add(tree: Tree, kind: str, where: str, name: str, path: str, text: str, there: str | None) -> Step:
    if there is not None:
        raise Refused(EEXIST)
    identity = text if kind == "symlink" else f"{_DIRECTORY if kind == 'mkdir' else _FILE}{path}"
    names = {**tree.names, (where, name): identity}
    if kind == "create":
        names[identity, "data"] = ""
        return Step(identity, names)
    return Step(None, names)


def _rename(
    tree: Tree, names: dict[tuple[str, str], str], source: tuple[str, str, str], target: tuple[str, str]
) -> Step:
    where, name, there = source
    replaced = tree.names.get(target)
    if replaced is not None and is_directory(replaced) and any(tree.listing(replaced)):
        raise Refused(ENOTEMPTY)
    del names[where, name]
    names[target] = there
    return Step(None, names, (source,))


def _write(tree: Tree, file: str, text: str) -> Step:
    """Through an open descriptor: it works whatever became of the name, and does nothing to a file that is gone."""
    if file not in tree.names.values():
        return Step(None, None)
    return Step(None, {**tree.names, (file, "data"): text})
