"""`init`, `reap`, `rm`, `restore`, `doctor`: what data managers call."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import SC_DTOOL, Disk, Done, call, finish, one_line_error, start
from httpserver import Server

Sc = Callable[..., Done]


@pytest.fixture
def dead(sc: Sc, source: str) -> int:
    """A process that holds `ref.fa`, and has ended; its number."""
    with start(["cat"]) as job:
        sc("use", "--holder", f"pid:{job.pid}", source)
        finish(job)
    return job.pid


# -- init --------------------------------------------------------------------------------------------------------------


@pytest.mark.no_cache
def test_init_prints_where_the_cache_is(sc: Sc, root: Path) -> None:
    """Whoever sets a cache up could not tell where it went."""
    assert sc("init") == Done(0, f"{root}\n", "")
    assert sc("init") == Done(0, f"{root}\n", f"{root} is already a cache\n")
    assert sc("-f", "json", "init").row("init")["made"] is False


@pytest.mark.no_cache
def test_init_takes_a_directory(sc: Sc, tmp_path: Path) -> None:
    """`init DIR` would set up another directory than DIR."""
    assert sc("init", tmp_path / "deep" / "cache").out == f"{tmp_path / 'deep' / 'cache'}\n"
    assert sc("-C", tmp_path / "deep" / "cache", "du").code == 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.no_cache
def test_init_of_nothing_is_not_the_default(sc: Sc, root: Path) -> None:
    """`init "$UNSET"` would set up another cache than the one that was meant."""
    assert sc("init", "").code == 2
    assert sc("-C", "", "init").code == 2
    assert not root.exists()


@pytest.mark.no_cache
def test_init_leaves_what_is_there(sc: Sc, root: Path) -> None:
    """Setting up dtool's own cache directory would cost what dtool has cached."""
    root.mkdir()
    (root / "3f2a").write_text("kept")
    assert sc("init").code == 0
    assert (root / "3f2a").read_text() == "kept"


@pytest.mark.no_cache
def test_init_by_many_at_once_makes_one_cache(root: Path) -> None:
    """An array job whose tasks all begin with `init` would tear the cache apart."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        tasks = [stack.enter_context(start([SC_DTOOL, "-f", "json", "init"])) for _ in range(8)]
        done = [finish(task) for task in tasks]
    assert [one.code for one in done] == [0] * 8
    assert sum(one.row("init")["made"] for one in done) == 1
    assert [name for name in os.listdir(root) if name.startswith(".sc-dtool.")] == []


# -- reap --------------------------------------------------------------------------------------------------------------


def test_reap_ends_what_the_dead_held(sc: Sc, dead: int, disk: Disk) -> None:
    """The data of jobs that were killed would be kept for ever, or nobody would learn why it was not."""
    dry = sc("reap", "-n")
    assert dry.out.splitlines()[-1] == "would end 1 lease"
    assert len(disk.leases()) == 1
    done = sc("reap")
    first, last = done.out.splitlines()
    assert first.startswith("ended the lease of ")
    assert first.endswith(f"on ref.fa: process {dead} of this boot is gone")
    assert last == "ended 1 lease"
    assert disk.leases() == disk.holders() == []
    assert sc("-f", "json", "log").row("use")["how"] == "reaped"


def test_reap_leaves_the_living(sc: Sc, source: str, disk: Disk) -> None:
    """A reaper would end the lease of a running job."""
    sc("use", source)
    sc("use", "--holder", "workflow 7", "--ttl", "1h", source)
    assert sc("reap", "-n").out == "no lease to end\n"
    assert sc("reap").out == "ended 0 leases\n"
    assert len(disk.leases()) == 2


def test_reap_in_json(sc: Sc, dead: int) -> None:
    """A monitor could not tell what was reaped on what evidence."""
    done = sc("-f", "json", "reap")
    assert str(dead) in done.row("reaped")["evidence"]
    assert done.row("total")["leases"] == 1


# -- rm and restore ----------------------------------------------------------------------------------------------------


def test_rm_removes_one_item(sc: Sc, source: str, disk: Disk) -> None:
    """A single item could not be removed, or would leave something behind."""
    sc("use", source)
    sc("unuse", source)
    dry = sc("rm", "-n", "ref.fa")
    assert dry.out == "would remove ref.fa, 5 Bytes\n"
    assert len(disk.copies()) == 1
    assert sc("rm", "ref.fa").out == "removed ref.fa, 5 Bytes\n"
    assert disk.copies() == []
    assert disk.names("trash") == []


def test_rm_names_who_holds_it(sc: Sc, source: str) -> None:
    """Whoever cannot remove an item could not find out whom to ask."""
    path = sc("use", source).path
    done = sc("rm", "ref.fa")
    assert done.code == 14
    assert one_line_error(done) == "Error: cannot remove ref.fa: 1 lease held"
    assert f"process {os.getpid()} " in done.err
    assert "hint: " in done.err
    assert path.read_text() == "ACGT\n"


@pytest.mark.usefixtures("dead")
def test_rm_reaps_the_dead_first(sc: Sc, disk: Disk) -> None:
    """An item whose user was killed could not be removed."""
    assert sc("rm", "ref.fa").code == 0
    assert disk.copies() == disk.leases() == []


def test_rm_of_several_is_done_in_part(sc: Sc, source: str, disk: Disk) -> None:
    """One item in use would keep all others, or hide that it was kept."""
    sc("use", source)
    sc("use", "-n", "idle")
    sc("unuse", "-n", "idle")
    done = sc("rm", "ref.fa", "idle")
    assert done.code == 3
    assert done.out == "removed idle, 0 Bytes\n"
    assert "cannot remove ref.fa" in one_line_error(done)
    assert len(disk.copies()) == 1
    assert sc("rm", "ref.fa").code == 14


def test_rm_of_a_mistyped_item_removes_none(sc: Sc, source: str, disk: Disk) -> None:
    """A mistyped list would be half done."""
    sc("use", source)
    sc("unuse", source)
    assert sc("rm", "ref.fa", "nothing").code == 2
    assert len(disk.copies()) == 1


def test_restore_brings_back_what_was_trashed(sc: Sc, source: str, server: Server, disk: Disk) -> None:
    """What was kept for a week could not be had back, or would be fetched again."""
    url = server.page("/big.bin", bytes(1000))
    sc("use", url)
    sc("unuse", url)
    sc("rm", "--trash", "7d", "big.bin")
    assert disk.copies() == []
    assert sc("restore", "big.bin").out == "restored big.bin\n"
    assert sc("use", url).path.stat().st_size == 1000
    assert server.gets["/big.bin"] == 1
    assert disk.names("trash") == []


@pytest.mark.parametrize("word", ["nothing", "", "r", "0"])
def test_restore_of_what_is_not_in_the_trash(sc: Sc, source: str, word: str) -> None:
    """A mistyped name would restore something else."""
    sc("use", source)
    sc("unuse", source)
    sc("rm", "--trash", "7d", "ref.fa")
    done = sc("restore", word)
    assert done.code == 2
    assert one_line_error(done) == f"Error: there is no {word!r} in the trash"


def test_restore_of_what_was_fetched_again(sc: Sc, source: str, disk: Disk) -> None:
    """A second copy would be published, or the one in the trash lost without a word."""
    sc("use", source)
    sc("unuse", source)
    sc("rm", "--trash", "7d", "ref.fa")
    sc("use", source)
    done = sc("restore", "ref.fa")
    assert done.code == 14
    assert "is already in the cache" in one_line_error(done)
    assert len(disk.copies()) == len(disk.names("trash")) == 1


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_a_healthy_cache_has_no_findings(sc: Sc, source: str) -> None:
    """A monitor would cry wolf."""
    sc("init")
    assert sc("doctor") == Done(0, "0 findings\n", "")
    sc("use", source)
    assert sc("doctor") == Done(0, "0 findings\n", "")
    assert sc("doctor", "--fix") == Done(0, "0 findings, 0 repaired\n", "")


@pytest.mark.parametrize("directory", ["items", "holders", "holders/gone", "tmp", "trash", "locks"])
def test_a_missing_directory_is_made_again(sc: Sc, disk: Disk, directory: str) -> None:
    """A cache whose empty directories a backup has left out could not be used again."""
    sc("init")
    shutil.rmtree(disk.control / directory)
    done = sc("doctor")
    assert done.code == 20
    assert f"{disk.control / directory}: missing (--fix creates it)" in done.out
    assert not (disk.control / directory).exists()
    assert sc("doctor", "--fix").code == 0
    assert (disk.control / directory).is_dir()
    assert sc("doctor").code == 0


def _interrupted_eviction(disk: Disk) -> None:
    (copy,) = disk.copies()
    (copy / "use").rmdir()


def _interrupted_removal(disk: Disk) -> None:
    (copy,) = disk.copies()
    copy.rename(disk.control / "trash" / f"{copy.name}~0~going")


def _killed_fetch(disk: Disk) -> None:
    (disk.control / "tmp" / "p000000000000-000000000000.0~fetch" / "payload").mkdir(parents=True)


def _no_tag(disk: Disk) -> None:
    (disk.root / "CACHEDIR.TAG").unlink()


@pytest.mark.parametrize("damage", [_interrupted_eviction, _interrupted_removal, _killed_fetch, _no_tag])
def test_what_a_crash_left_is_found_and_mended(sc: Sc, source: str, disk: Disk, damage: Callable[[Disk], None]) -> None:
    """A crash would leave something that nobody ever tidies."""
    sc("use", source)
    sc("unuse", source)
    damage(disk)
    found = sc("-f", "json", "doctor")
    assert found.code == 20
    assert found.row("finding")["repairable"] is True
    assert Path(found.row("finding")["path"]).is_relative_to(disk.root)
    assert sc("doctor", "--fix").code == 0
    assert sc("doctor") == Done(0, "0 findings\n", "")
    sc("clean", "--older-than", "1d")
    assert disk.names("tmp") == disk.names("trash") == []


@pytest.mark.usefixtures("dead")
def test_leases_of_the_dead_are_a_finding(sc: Sc, disk: Disk) -> None:
    """`doctor` would call a cache healthy that keeps data for the dead."""
    done = sc("doctor")
    assert done.code == 20
    assert "a lease of a dead holder" in done.out
    assert sc("doctor", "--fix").code == 0
    assert disk.leases() == disk.holders() == []


def test_damage_to_a_copy_needs_a_person(sc: Sc, source: str, disk: Disk) -> None:
    """`--fix` would remove data on a guess."""
    sc("use", source)
    (copy,) = disk.copies()
    (copy / "item.json").unlink()
    (copy / "item.json").mkdir()
    done = sc("doctor", "--fix")
    assert done.code == 20
    assert f"{copy / 'item.json'}: cannot be read" in done.out
    assert len(disk.leases()) == 1


def test_a_cache_without_its_format_is_repaired(sc: Sc, source: str, disk: Disk) -> None:
    """After a purge of old files nothing of the cache could be used, cleaned or repaired."""
    sc("use", source)
    (disk.control / "FORMAT").unlink()
    done = sc("use", source)
    assert done.code == 10
    assert "doctor --fix" in done.err
    assert sc("doctor").code == 20
    assert sc("doctor", "--fix").code == 0
    assert sc("locate", source).code == 0
    assert len(disk.leases()) == 1


def test_doctor_says_who_holds_what_it_cannot_repair(sc: Sc, source: str, disk: Disk) -> None:
    """Whoever repairs a cache would not learn whom to ask about the copy that is bad."""
    digest = f"sha256:{hashlib.sha256(Path(source).read_bytes()).hexdigest()}"
    path = Path(sc("use", source, digest).out.strip())
    assert sc("doctor", "--verify-content").code == 0
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[::-1])
    assert sc("doctor").code == 0
    assert "unless it is in use" in sc("doctor", "--verify-content").out
    done = sc("doctor", "--verify-content", "--fix")
    assert done.code == 20
    (line,) = (line for line in done.out.splitlines() if line.startswith(f"{path}: "))
    assert "; not repaired: cannot remove ref.fa: 1 lease held" in line
    assert f"process {os.getpid()}" in line
    assert done.err == ""
    assert path.exists()
    sc("unuse", source, digest)
    said = sc("-f", "json", "doctor", "--verify-content", "--fix")
    assert said.code == 0
    assert (said.row("content")["read"], said.row("content")["bad"]) == (1, 1)
    assert said.row("repaired")["path"] == str(path)
    assert not path.exists()


def test_the_doctor_tells_each_thing_once(sc: Sc, source: str, disk: Disk) -> None:
    """Findings would be hidden among warnings that say the same, and a person count more damage than there is."""
    digest = f"sha256:{hashlib.sha256(Path(source).read_bytes()).hexdigest()}"
    path = Path(sc("use", source, digest).out.strip())
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[::-1])
    item = path.parents[2]
    strangers = [item.parents[1] / "README", item.parent / "README", item / "README", item / "history" / "README"]
    strangers += [disk.control / name / "README" for name in ("", "holders", "holders/gone", "tmp", "trash", "locks")]
    for stranger in strangers:
        stranger.touch()
    disk.root.chmod(0o777)
    (disk.control / "config.toml").write_text("[clean]\nrubbish = 1\n")
    for words in ([], ["--fix"], ["--verify-content"], ["--fix", "--verify-content"]):
        done = sc("doctor", *words)
        assert done.code == 20
        assert done.err == ""
        told = [line.partition(": ")[0] for line in done.out.splitlines() if line.startswith(str(disk.root))]
        expected = [
            disk.root,
            disk.control / "config.toml",
            *strangers,
            *([path] if "--verify-content" in words else []),
        ]
        assert sorted(told) == sorted(map(str, expected)), words


@pytest.mark.no_cache
def test_doctor_verifies_file_systems_where_there_is_no_cache(sc: Sc, root: Path, tmp_path: Path) -> None:
    """A file system could be verified only after it had been trusted with a cache."""
    place = tmp_path / "mount"
    place.mkdir()
    done = sc("-f", "json", "doctor", "--verify-filesystem", place)
    assert done.code == 3
    verdict = done.row("verdict")
    assert (verdict["path"], verdict["fitness"]) == (str(place), "fit for one host")
    assert os.listdir(place) == []
    assert not root.exists()
    first, *rest = sc("doctor", "--verify-filesystem", place).out.splitlines()
    assert first.startswith(f"{place}: fit for one host: ")
    assert any("rmdir" in line for line in rest)


def test_two_commands_verify_together(tmp_path: Path) -> None:
    """`srun -N2 sc-dtool doctor --verify-filesystem DIR` would try out one host only, or hang."""
    from contextlib import ExitStack

    place = tmp_path / "mount"
    place.mkdir()
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3"}
    words = ["env", *(f"{name}={value}" for name, value in step.items())]
    with ExitStack() as stack:
        command = [SC_DTOOL, "-f", "json", "doctor", "--verify-filesystem", str(place)]
        tasks = [stack.enter_context(start([*words, f"SLURM_PROCID={rank}", *command])) for rank in range(3)]
        done = [finish(task) for task in tasks]
    assert [one.code for one in done] == [3, 3, 0], done
    assert done[0].row("verdict") == done[1].row("verdict")
    assert "on one host" in done[0].row("verdict")["verdict"]
    assert os.listdir(place) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--peer"],
        ["--wait", "1s"],
        ["--fix", "--verify-filesystem", "."],
        ["--verify-filesystem", "missing"],
        ["--verify-filesystem", ""],
        ["--verify-filesystem", " "],
        ["--verify-filesystem", "", "--peer", "--wait", "0s"],
    ],
    ids=" ".join,
)
def test_options_of_doctor_that_make_no_sense_are_refused(sc: Sc, words: list[str]) -> None:
    """A forgotten --verify-filesystem, or a variable that is not set, would make something else of a command."""
    assert sc("doctor", *words).code == 2


def test_a_peer_that_nobody_joins_says_so(sc: Sc, tmp_path: Path) -> None:
    """A peer on the wrong host would wait for ever."""
    done = sc("doctor", "--verify-filesystem", tmp_path, "--peer", "--wait", "0s")
    assert done.code == 11
    assert "leader" in done.err
    assert "hint: " in done.err


def test_doctor_leaves_a_running_fetch_alone(server: Server, sc: Sc) -> None:
    """`doctor --fix` would sweep away a download under way."""
    url = server.page("/slow.bin", bytes(1000), stall_after=10)
    sc("init")
    with start([SC_DTOOL, "use", url]) as fetching:
        server.wait_for_gets("/slow.bin")
        assert call("doctor", "--fix").out == "0 findings, 0 repaired\n"
        server.release()
        assert finish(fetching).code == 0


def test_a_cache_in_which_everybody_may_write_is_warned_of(sc: Sc, source: str, root: Path) -> None:
    """Whoever reads from a cache that is open to all would not learn that anybody may have put that there."""
    sc("use", source)
    root.chmod(0o777)
    assert sc("use", source).err.count(f"warning: {root}: every user can create and delete files here") == 1
    root.chmod(0o755)
    assert "every user" not in sc("use", source).err


@pytest.mark.parametrize("words", [["clean", "--all", "-y"], ["rm", "ref.fa"], ["reap"], ["restore", "ref.fa"]])
def test_a_cache_in_which_everybody_may_delete_is_warned_of(sc: Sc, source: str, root: Path, words: list[str]) -> None:
    """Whoever cleans a cache that is open to all would not learn that others can delete what is in use."""
    sc("use", source)
    sc("unuse", source)
    root.chmod(0o777)
    assert sc(*words).err.count(f"warning: {root}: every user can create and delete files here") == 1
    root.chmod(0o755)
    assert "every user" not in sc(*words).err
