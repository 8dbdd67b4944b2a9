"""`use`, `unuse`, `renew`: taking and giving back, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import Disk, Done, config, make_tar, one_line_error
from httpserver import Server

Sc = Callable[..., Done]


def test_the_path_stands_alone(sc: Sc, source: str) -> None:
    """`p=$(sc-dtool use …)` would hold more than a path, or one that cannot be read."""
    done = sc("use", source)
    assert done.err == ""
    assert done.path.read_text() == "ACGT\n"
    assert done.path.name == "ref.fa"


def test_what_is_there_is_not_fetched_again(sc: Sc, server: Server, disk: Disk) -> None:
    """Every job would download the same reference."""
    url = server.page("/ref.fa", b"ACGT\n")
    first, second = sc("use", url), sc("use", url)
    assert first.path == second.path
    assert server.gets["/ref.fa"] == 1
    assert len(disk.leases()) == 2


def test_a_tar_with_its_digest_becomes_a_directory(sc: Sc, server: Server, tmp_path: Path) -> None:
    """The main job, a tar from a server with a digest, would not end in files that can be read."""
    digest = make_tar(tmp_path / "reads.tar.gz", {"reads/a.txt": b"a\n", "reads/deep/b.txt": b"b\n"})
    url = server.page("/reads.tar.gz", (tmp_path / "reads.tar.gz").read_bytes())
    path = sc("use", url, digest, "tar").path
    assert path.name == "reads"
    assert (path / "reads" / "deep" / "b.txt").read_text() == "b\n"


def test_a_local_directory_is_copied_whole(sc: Sc, tmp_path: Path) -> None:
    """A dataset that is a directory could not be cached."""
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "x").write_text("x")
    assert (sc("use", tmp_path / "data").path / "deep" / "x").read_text() == "x"


def test_what_is_cached_cannot_be_changed_by_accident(sc: Sc, source: str) -> None:
    """A job that opens its input for writing would change it for all others."""
    assert sc("use", source).path.stat().st_mode & 0o222 == 0


@pytest.mark.parametrize("spelling", ["ref.fa", "./ref.fa", "file:ref.fa", "../{here}/ref.fa"])
def test_spellings_of_a_path_are_one_item(
    sc: Sc, source: str, spelling: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file would be copied once for every way to write its name."""
    here = Path(source).parent
    monkeypatch.chdir(here)
    first = sc("use", source)
    assert sc("use", spelling.format(here=here.name)).path == first.path
    assert len(disk.copies()) == 1


def test_a_name_alone_is_a_reference_count(sc: Sc, disk: Disk) -> None:
    """`-n NAME` without a source, a pure reference count, would need something to fetch."""
    path = sc("use", "-n", "my set").path
    assert path.is_dir()
    assert list(path.iterdir()) == []
    assert sc("use", "-n", "my set").path == path
    assert len(disk.leases()) == 2


def test_one_name_means_one_source(sc: Sc, source: str, tmp_path: Path, disk: Disk) -> None:
    """A job would read somebody else's file because both called it `ref`."""
    (tmp_path / "other.fa").write_text("TTTT\n")
    sc("use", "-n", "ref", source)
    done = sc("use", "-n", "ref", tmp_path / "other.fa")
    assert done.code == 2
    assert done.out == ""
    assert "with another source or other steps" in one_line_error(done)
    assert source in done.err
    assert "other.fa" in done.err
    assert len(disk.leases()) == 1


def test_two_uses_need_two_unuses(sc: Sc, source: str, disk: Disk) -> None:
    """A script that uses an item in two places would lose it when the first gives it back."""
    sc("use", source)
    sc("use", source)
    assert sc("unuse", source) == Done(0, "", "")
    assert len(disk.leases()) == 1
    assert sc("unuse", source) == Done(0, "", "")
    assert disk.leases() == []


def test_unuse_all_gives_back_all(sc: Sc, source: str, disk: Disk) -> None:
    """A script that has lost count could not give back everything at once."""
    for _ in range(3):
        sc("use", source)
    assert sc("-f", "json", "unuse", "--all", source, "--holder", f"pid:{os.getpid()}").row("unuse")["released"] == 3
    assert disk.leases() == []


def test_unuse_once_too_often_says_so(sc: Sc, source: str) -> None:
    """A clean-up trap that runs twice would fail the job, or hide that nothing was held."""
    sc("use", source)
    sc("unuse", source)
    done = sc("unuse", source)
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("nothing to release: process ")
    assert source in done.err


@pytest.mark.parametrize("below", ["", "deep/x"])
def test_unuse_takes_the_path_that_use_printed(sc: Sc, tmp_path: Path, disk: Disk, below: str) -> None:
    """A script that kept only $p would have to remember the source as well."""
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "x").write_text("x")
    path = sc("use", tmp_path / "data").path
    assert sc("unuse", path / below) == Done(0, "", "")
    assert disk.leases() == []


def test_others_leases_are_not_given_back(sc: Sc, source: str, disk: Disk) -> None:
    """One job's `unuse` would take the data away under another's hands."""
    sc("use", "--holder", "colleague", "--ttl", "1h", source)
    done = sc("unuse", "--all", source)
    assert done.code == 0
    assert "nothing to release" in done.err
    assert len(disk.leases()) == 1
    assert sc("unuse", "--holder", "colleague", source).err == ""
    assert disk.leases() == []


def test_evict_if_last_removes_what_nobody_uses(sc: Sc, source: str, disk: Disk) -> None:
    """`unuse --evict-if-last` would leave the data of the last user behind."""
    sc("use", source)
    sc("unuse", "--evict-if-last", source)
    assert disk.copies() == []
    assert disk.names("trash") == []


def test_evict_if_last_leaves_what_somebody_uses(sc: Sc, source: str, disk: Disk) -> None:
    """`unuse --evict-if-last` would delete under another reader."""
    path = sc("use", "--holder", "colleague", "--ttl", "1h", source).path
    sc("use", source)
    assert sc("unuse", "--evict-if-last", source).code == 0
    assert path.read_text() == "ACGT\n"
    assert len(disk.leases()) == 1


def test_an_evicted_item_is_fetched_again(sc: Sc, source: str) -> None:
    """An item could be cached only once in its life."""
    before = sc("use", source).path
    sc("unuse", "--evict-if-last", source)
    after = sc("use", source).path
    assert after != before
    assert after.read_text() == "ACGT\n"


def test_an_item_is_found_in_whichever_directory_it_is(sc: Sc, source: str, tmp_path: Path) -> None:
    """When free space changes, `use -d` would fetch again, and `unuse -d` would look in the wrong directory."""
    first, second = tmp_path / "one", tmp_path / "two"
    there = sc("use", "-d", second, source).path
    both = f"{first}:{second}"
    assert sc("use", "-d", both, source).path == there
    assert sc("unuse", "-d", both, source).err == ""
    assert sc("unuse", "-d", both, source).err == ""
    assert "nothing to release" in sc("unuse", "-d", both, source).err


def test_the_first_directory_with_room_is_taken(sc: Sc, source: str, tmp_path: Path) -> None:
    """`--size` would be ignored, and the download would end in a full disk."""
    first, second = tmp_path / "one", tmp_path / "two"
    assert sc("use", "-d", f"{first}:{second}", "--size", "1kB", source).path.is_relative_to(first)
    done = sc("use", "-d", f"{tmp_path / 'three'}:{second}", "--size", "999PB", source)
    assert done.code == 13
    assert one_line_error(done) == "Error: no cache has enough space for 999.0 PB"
    assert f"{tmp_path / 'three'}: " in done.err
    assert f"{second}: " in done.err


def test_a_lifetime_is_in_the_holder_s_name(sc: Sc, source: str, disk: Disk) -> None:
    """`--ttl` would be accepted and forgotten, and the lease of a dead host would never end."""
    sc("use", "--ttl", "12h", source)
    (holder,) = disk.holders()
    assert int(holder.name.rpartition(".")[2]) > 0


def test_the_lifetime_of_the_cache_is_the_default(sc: Sc, source: str, disk: Disk) -> None:
    """The group's setting `[lease] ttl` would not be used."""
    sc("init")
    config(disk.root, '[lease]\nttl = "2d"\n')
    sc("use", source)
    (holder,) = disk.holders()
    assert int(holder.name.rpartition(".")[2]) > 0


def test_renew_begins_another_lifetime(sc: Sc, source: str, disk: Disk) -> None:
    """A script that runs longer than it thought could not keep its data."""
    sc("use", "--holder", "colleague", "--ttl", "1h", source)
    (before,) = disk.holders()
    assert sc("-f", "json", "renew", "--holder", "colleague").row("renew")["renewed"] == 1
    (after,) = disk.holders()
    assert after != before
    assert sc("renew", "--holder", "colleague").err == ""


def test_renew_says_that_there_is_nothing_to_renew(sc: Sc, source: str) -> None:
    """A mistyped holder would look like a renewal."""
    sc("use", "--holder", "colleague", "--ttl", "1h", source)
    done = sc("renew", "--holder", "coleague")
    assert (done.code, done.out) == (0, "")
    assert "nothing to renew" in done.err


@pytest.mark.no_cache
@pytest.mark.parametrize("already", [None, "", "data"])
def test_dtools_own_directory_is_set_up_on_first_use(sc: Sc, source: str, root: Path, already: str | None) -> None:
    """A user with a dtool cache would have to know of `init` first."""
    if already is not None:
        root.mkdir()
    if already:
        (root / already).write_text("kept")
    assert sc("use", source).code == 0
    assert (root / "CACHEDIR.TAG").is_file()
    if already:
        assert (root / already).read_text() == "kept"


def test_a_directory_with_files_is_not_taken_by_surprise(sc: Sc, source: str, tmp_path: Path) -> None:
    """A mistyped -C would turn somebody's data directory into a cache."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("kept")
    done = sc("-C", tmp_path / "mine", "use", source)
    assert done.code == 10
    assert "init" in done.err
    assert sorted(os.listdir(tmp_path / "mine")) == ["thesis.tex"]


def test_json_says_what_is_held_and_by_whom(sc: Sc, source: str, disk: Disk) -> None:
    """A program that calls us could not tell its leases apart."""
    row = sc("use", "-f", "json", source, "--holder", f"pid:{os.getpid()}").row("use")
    assert Path(row["path"]).read_text() == "ACGT\n"
    assert row["lease"] == disk.leases()[0].name
    assert str(os.getpid()) in row["holder"]


def test_what_a_purge_has_removed_is_fetched_again(sc: Sc, source: str, disk: Disk) -> None:
    """Every job would be given, with exit code 0, a path to nothing, until somebody removes the item by hand."""
    path = sc("use", source).path
    sc("unuse", source)
    path.unlink()
    assert sc("locate", source).code == 1
    again = sc("use", source)
    assert again.path.read_text() == "ACGT\n"
    assert "fetching it again" in again.err
    assert sc("locate", source).path == again.path
    assert len(disk.leases()) == 1


def test_a_use_that_fetched_is_given_back_without_a_listing_of_all_holders(
    sc: Sc, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy cluster each `unuse` would read the names of ten thousand holders."""
    sc("use", source)
    monkeypatch.setattr("sccache_dtool.protocol.holders.HolderList.glance", None)
    sc("unuse", source)
