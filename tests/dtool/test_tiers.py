"""Items of datasets on a node whose cache has an upstream."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dtool import stores
from sccache_dtool.cache import Cache
from sccache_dtool.cli import main
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.dtool import plugin
from sccache_dtool.fetch.dtool_source import item_key

FILES = stores.FILES
FIRST = stores.identifier("a/first.txt")


@pytest.fixture
def shared(cache_dir, tmp_path, monkeypatch):
    """The upstream of dtool's cache directory."""
    cache = Cache(tmp_path / "shared")
    cache.init()
    monkeypatch.setenv("SC_DTOOL_UPSTREAM", str(cache.root))
    yield cache
    cache.close()


@pytest.fixture
def sc(shared, capsys):
    """Runs a command that succeeds; what it prints."""

    def run(*words: object) -> str:
        given = [str(word) for word in words]
        given[1:1] = ["--holder", f"pid:{os.getpid()}"]
        capsys.readouterr()
        found = main.run(given)
        said = capsys.readouterr()
        assert found == 0, said.err
        return said.out.strip()

    return run


def content(view: str) -> dict[str, bytes]:
    return {str(path.relative_to(view)): path.read_bytes() for path in Path(view).rglob("*") if path.is_file()}


@pytest.mark.parametrize("storage", ["on_s3", "dataset"])
def test_dtool_reads_from_the_nodes_copy(storage, cache_dir, shared, request):
    """Programs that know nothing of tiers would read from the shared file system, or download for each node."""
    dataset = request.getfixturevalue(storage)
    for relpath, expected in FILES.items():
        path = dataset.item_content_abspath(stores.identifier(relpath))
        assert path.startswith(f"{cache_dir}/.sc-dtool/items/")
        assert path.endswith(f"/{relpath.rpartition('/')[2]}")
        assert Path(path).read_bytes() == expected
    (copy,) = shared.item(item_key(dataset.uuid, FIRST)).copies
    (here,) = Cache(cache_dir).item(item_key(dataset.uuid, FIRST)).copies
    assert copy.held == ()
    theirs, ours = shared.facts(copy), Cache(cache_dir).facts(here)
    for field in ("source", "digests", "dataset", "relpath", "name"):
        assert getattr(ours, field) == getattr(theirs, field)


def test_the_second_node_asks_no_server(dataset, cache_dir, shared, tmp_path, monkeypatch, web):
    """Each node would need access to the server, and credentials for it."""
    dataset.item_content_abspath(FIRST)
    plugin._forget()
    there = tmp_path / "second"
    Cache(there).init()
    twin = stores.at_home_in(dataset, there)
    asked = web.data_requests
    monkeypatch.setattr(type(twin._storage_broker), "get_item_abspath", None)
    assert Path(twin.item_content_abspath(FIRST)).read_bytes() == b"one\n"
    assert web.data_requests == asked == 1


def test_without_room_dtool_reads_the_shared_copy(dataset, cache_dir, shared, monkeypatch):
    """On a node with a full disk, dtool would go on without a lease."""
    monkeypatch.setattr(FileSystem, "free_space", lambda self, path: 0 if str(cache_dir) in path else 1 << 40)
    path = dataset.item_content_abspath(FIRST)
    assert path.startswith(f"{shared.root}/")
    assert dataset.item_content_abspath(FIRST) == path
    assert shared.item(item_key(dataset.uuid, FIRST)).leases == 1


def test_a_whole_dataset_is_shown_on_the_node(sc, dataset, cache_dir, shared):
    """The links would lead into the shared cache, or a directory of links be copied that lead nowhere."""
    view = sc("use", f"dtool:{dataset.uri}")
    assert view.startswith(f"{cache_dir}/")
    assert content(view) == FILES
    assert all(os.path.realpath(path).startswith(f"{cache_dir}/") for path in Path(view).rglob("*"))
    assert sum(item.leases for item in shared.items()) == 0
    sc("unuse", view)
    assert sum(item.leases for item in Cache(cache_dir).items()) == 0


def test_a_whole_dataset_is_shown_upstream_if_the_node_has_no_room(sc, dataset, cache_dir, shared, monkeypatch):
    """Half of a dataset would be held on the node, and what is shown could not be given back."""
    monkeypatch.setattr(FileSystem, "free_space", lambda self, path: 10 if str(cache_dir) in path else 1 << 40)
    view = sc("use", f"dtool:{dataset.uri}")
    assert view.startswith(f"{shared.root}/")
    assert content(view) == FILES
    assert sum(item.leases for item in Cache(cache_dir).items()) == 0
    assert sum(item.leases for item in shared.items()) == len(FILES)
    sc("unuse", view)
    assert sum(item.leases for item in shared.items()) == 0
