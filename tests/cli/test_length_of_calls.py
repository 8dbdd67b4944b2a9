"""How many functions a use passes. Whoever looks for a fault in it reads each of them."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any

import sccache_dtool
from httpserver import Server
from sccache_dtool.cli import main

PACKAGE = os.path.dirname(sccache_dtool.__file__)

#: Functions from the command to the call of the file system that takes the lease, and what a fetch adds to these.
HIT, MISS = 8, 12


def use(*words: str) -> None:
    """Use an item for this process, in this process."""
    assert main.run(["use", "--holder", f"pid:{os.getpid()}", *words]) == 0


def paths_to(function: str, *words: str) -> list[list[str]]:
    """The package's functions from that of the command on, each time that a use calls a `FileSystem.<function>`."""
    found = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_qualname == f"FileSystem.{function}":
            path: list[str] = []
            before: FrameType | None = frame.f_back
            while before is not None:
                if before.f_code.co_filename.startswith(PACKAGE):
                    path.insert(0, before.f_code.co_qualname)
                before = before.f_back
            if "use_command" in path:
                found.append(path[path.index("use_command") :])

    sys.setprofile(note)
    try:
        use(*words)
    finally:
        sys.setprofile(None)
    return found


def test_a_hit_passes_few_functions(source: str) -> None:
    """A developer would follow one lease through thirteen functions, and find what each of them decides."""
    use(source)
    (path,) = [path for path in paths_to("symlink", source) if "enter" in path and "take" in path]
    assert len(path) <= HIT, path


def test_a_fetch_adds_few_functions(source: str, server: Server) -> None:
    """A developer would follow one download through thirty functions."""
    for word in (source, server.page("/x", b"ACGT" * 1000, etag='"1"')):
        paths = [path for path in paths_to("write", word, f"md5:{_md5(word)}") if "Sink.write" in path]
        assert paths
        for path in paths:
            assert len(path) - path.index("Acquirer.acquire") <= MISS, " ".join(path)


def _md5(word: str) -> str:
    import hashlib
    from pathlib import Path

    content = b"ACGT" * 1000 if word.startswith("http") else Path(word).read_bytes()
    return hashlib.md5(content).hexdigest()
