"""What environments without the plugin left in the cache: adopted when it is right, and never trusted before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dtool import stores

FIRST = stores.identifier("a/first.txt")


def place(cache_dir: Path, path: str, content: bytes) -> Path:
    file = cache_dir / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def read(path: str) -> bytes:
    return Path(path).read_bytes()


@pytest.mark.parametrize("where", ["{uuid}/{id}", "{uuid}/{id}.txt", "study/{id}.txt", "{uuid}/{id}.tmp"])
def test_a_right_loose_file_is_adopted_without_a_download(dataset, web, cache_dir, where):
    """A group that installs the plugin must not fetch its terabytes again."""
    loose = place(cache_dir, where.format(uuid=dataset.uuid, id=FIRST), b"one\n")
    path = dataset.item_content_abspath(FIRST)
    assert path.startswith(f"{cache_dir}/.sc-dtool/")
    assert read(path) == b"one\n"
    assert web.data_requests == 0
    assert loose.exists()  # somebody without the plugin may be reading it


@pytest.mark.parametrize("content", [b"ONE\n", b"on", b""])
def test_a_wrong_loose_file_is_not(dataset, web, cache_dir, content):
    """The brokers of dtool leave torn and mixed files of the right size behind."""
    loose = place(cache_dir, f"{dataset.uuid}/{FIRST}.txt", content)
    assert read(dataset.item_content_abspath(FIRST)) == b"one\n"
    assert web.data_requests == 1
    assert loose.read_bytes() == content


def test_a_file_that_is_changed_after_its_adoption_changes_nothing(dataset, cache_dir):
    """A broker in another environment may hold it open still."""
    loose = place(cache_dir, f"{dataset.uuid}/{FIRST}.txt", b"one\n")
    with loose.open("r+b") as writer:
        path = dataset.item_content_abspath(FIRST)
        writer.write(b"XXX\n")
    assert read(path) == b"one\n"


def test_links_are_not_followed(dataset, web, cache_dir, tmp_path):
    """Nobody may have us publish, by a link in the shared root, a file of their choice."""
    target = place(tmp_path, "elsewhere/one", b"one\n")
    (cache_dir / dataset.uuid).mkdir(parents=True)
    (cache_dir / dataset.uuid / FIRST).symlink_to(target)
    assert read(dataset.item_content_abspath(FIRST)) == b"one\n"
    assert web.data_requests == 1


def test_a_fifo_does_not_hang_us(dataset, web, cache_dir):
    """A shared directory may hold anything."""
    (cache_dir / dataset.uuid).mkdir(parents=True)
    os.mkfifo(cache_dir / dataset.uuid / FIRST)
    assert read(dataset.item_content_abspath(FIRST)) == b"one\n"
    assert web.data_requests == 1


def test_what_the_real_broker_leaves_is_what_we_know(on_s3, cache_dir, run_python):
    """The names and places of loose files are those of released brokers, and no invention of ours."""
    from sccache_dtool.cache import Cache

    program = """
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
for identifier in dataset.identifiers:
    dataset.item_content_abspath(identifier)
"""
    run_python(program, on_s3.uri, SC_DTOOL_PLUGIN="off").end()
    cache = Cache(cache_dir)
    cache.init()
    assert {one.name.partition(".")[0] for one in cache.loose()} == set(on_s3.identifiers)
    assert {pile.dataset for pile in cache.loose_directories()} == {on_s3.uuid}
