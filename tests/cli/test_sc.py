"""`bin/sc`: scripts that were written for pigay/shared-cache run as they stand."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import SCRIPTS, Disk, Done, finish, make_tar, shell, start
from httpserver import Server

BIN = Path(__file__).parents[2] / "bin"

#: The example in the README of pigay/shared-cache, but for the URL, its digest and the directories.
EXAMPLE = """
url={url}
md5={md5}

repo=test-repo
repo_args="--name=$repo --size=10MB http:$url md5:$md5 tar"

sc --use $repo_args
test -e {first}/test-repo && find {first}/test-repo -name ACGT
sc --unuse $repo_args
find {first}/test-repo -name ACGT
"""


@pytest.fixture
def bases(tmp_path: Path) -> list[Path]:
    """Two directories for data."""
    made = [tmp_path / "one", tmp_path / "two"]
    for base in made:
        base.mkdir()
    return made


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Done]:
    """Runs a shell script with our `sc` on its PATH."""
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{SCRIPTS}{os.pathsep}{os.environ['PATH']}")

    def run(text: str) -> Done:
        return shell(["bash", "-c", f"set -e\n{text}\ntrue"])

    return run


def test_the_example_of_its_readme_runs(
    script: Callable[[str], Done], server: Server, tmp_path: Path, bases: list[Path]
) -> None:
    """A group that changes over would have to rewrite its jobs."""
    make_tar(tmp_path / "x.tar.gz", {"ACGT": b"data"})
    body = (tmp_path / "x.tar.gz").read_bytes()
    text = EXAMPLE.format(url=server.page("/x.tar.gz", body), md5=hashlib.md5(body).hexdigest(), first=bases[0])
    done = script(text.replace("--name", f"-d {bases[0]}:{bases[1]} --name"))
    assert done.code == 0, done.err
    path, found = done.out.splitlines()  # and nothing is found at the end
    assert found == f"{path}/ACGT"
    assert path.startswith(f"{bases[0]}/test-repo/repofile/")


def test_use_and_unuse_in_one_call(script: Callable[[str], Done], source: str, bases: list[Path]) -> None:
    """`sc --use --unuse` is how a fetch was tried out; use runs first."""
    done = script(f"sc --use --unuse -d {bases[0]} -n x {source}")
    assert done.code == 0
    assert not Path(done.out.strip()).exists()


def test_a_use_is_registered_once_for_a_process(script: Callable[[str], Done], source: str, bases: list[Path]) -> None:
    """A script that calls `--use` twice would keep the data for ever."""
    arguments = f"-d {bases[0]} -n x {source}"
    done = script(f"sc --use {arguments}; sc --use {arguments}; sc --unuse {arguments}")
    (path,) = set(done.out.split())
    assert not Path(path).exists()


def test_another_process_keeps_the_data(script: Callable[[str], Done], source: str, bases: list[Path]) -> None:
    """The first of two jobs to end would delete the other's data."""
    arguments = f"-d {bases[0]} -n x {source}"
    done = script(f"sc --use {arguments}; bash -c 'sc --use {arguments}; sc --unuse {arguments}; true'")
    (path,) = set(done.out.split())
    assert Path(path).read_text() == "ACGT\n"


def test_location_is_printed(script: Callable[[str], Done], source: str, bases: list[Path]) -> None:
    """Scripts ask where their data is."""
    arguments = f"-d {bases[0]}:{bases[1]} {source}"
    done = script(f"sc --use {arguments}; sc --location {arguments}")
    first, second = done.out.splitlines()
    assert first == second
    assert script(f"sc --location -d {bases[1]} -n other {source}").code == 1


def test_an_empty_stack_is_a_reference_count(script: Callable[[str], Done], bases: list[Path]) -> None:
    """`sc --use` without a loader counts users of a directory."""
    done = script(f"sc --use -d {bases[0]} -f state")
    assert done.code == 0
    assert Path(done.out.strip()).is_dir()
    assert done.out.startswith(f"{bases[0]}/state/")


@pytest.mark.parametrize("size", ["10TB", "1.5GB", "10GiB"])
def test_sizes_that_meant_nothing_mean_what_they_say(
    script: Callable[[str], Done], source: str, bases: list[Path], size: str
) -> None:
    """`--size 10TB` meant no size at all, and the disk ran full."""
    done = script(f"sc --use -d {bases[0]} -s {size} -n x {source}")
    if size == "10TB":
        assert done.code == 13
        assert "missing" in done.err
    else:
        assert done.code in (0, 13)


@pytest.mark.parametrize("size", ["1k", "1M", "10", "10B", "1kB", "1MB"])
def test_its_sizes_are_understood(script: Callable[[str], Done], source: str, bases: list[Path], size: str) -> None:
    """Every size that it knew is one that we know."""
    assert script(f"sc --use -d {bases[0]} --size={size} -n x {source}").code == 0


def test_a_size_that_nobody_can_read_is_refused(script: Callable[[str], Done], source: str, bases: list[Path]) -> None:
    """A typing error would become "no size"."""
    done = script(f"sc --use -d {bases[0]} -s 1XB -n x {source}")
    assert done.code == 2
    assert "1XB" in done.err


def test_another_stack_under_a_name_is_seen(
    script: Callable[[str], Done], source: str, bases: list[Path], tmp_path: Path
) -> None:
    """Two groups that chose one name would read each other's data."""
    (tmp_path / "other").write_text("TGCA\n")
    done = script(f"sc --use -d {bases[0]} -n x {source}; sc --use -d {bases[0]} -n x {tmp_path}/other")
    assert done.code == 2
    assert f"in the cache: file:{source}" in done.err


def test_paths_are_printed_as_they_are_on_disk(
    script: Callable[[str], Done], bases: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another encoding set, the path that is printed would lead nowhere."""
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    (tmp_path / "f\u00e9").write_text("ACGT\n")
    done = script(f'cd {tmp_path}; p=$(sc --use -d {bases[0]} -n r f*); cat "$p"')
    assert (done.code, done.out) == (0, "ACGT\n")


@pytest.mark.parametrize("words", ["--help", "--use -d {} -n x {}", "--location -d {} -n x {}"])
def test_output_that_cannot_be_written_is_an_error_of_one_line(
    script: Callable[[str], Done], bases: list[Path], source: str, words: str
) -> None:
    """A list of paths on a full disk would be empty without a word, or end in a page of Python."""
    script(f"sc --use -d {bases[0]} -n x {source}")
    line = f"sc {words.format(bases[0], source)}"
    assert script(f"{line} >/dev/full || exit $?") == Done(
        1, "", "Error: cannot write the result: No space left on device\n"
    )
    assert script(f"{line} >&- 2>&-").code == 0


def test_a_signal_ends_it_tidily(bases: list[Path], server: Server) -> None:
    """A job that is cancelled would leave a download that looks as if it went on."""
    url = server.page("/ref.fa", b"ACGT\n" * 1000, stall_after=100)
    with start([sys.executable, str(BIN / "sc"), "--use", "-d", str(bases[0]), "-n", "x", url]) as running:
        server.wait_for_gets("/ref.fa")
        running.terminate()
        done = finish(running)
    assert (done.code, done.out) == (143, "")
    assert "Traceback" not in done.err
    assert Disk(bases[0] / "x" / "repofile").leases() == []


def test_only_the_directories_of_its_own_names_are_made(
    script: Callable[[str], Done], bases: list[Path], source: str, tmp_path: Path
) -> None:
    """With a mistyped directory, or one that is not mounted, data would fill another disk."""
    done = script(f"sc --use -d {tmp_path}/missing:{bases[0]} -n x {source}")
    assert done.out.startswith(f"{bases[0]}/x/repofile/")
    assert f"sc: passed over {tmp_path}/missing, which is not a directory" in done.err
    assert script(f"sc --use -d {tmp_path}/missing -n x {source}").code == 10
    assert not (tmp_path / "missing").exists()


def test_it_has_no_logic_of_its_own() -> None:
    """What is in `sc` is in none of our tests of leases: it may import the command line, and nothing beside."""
    text = (BIN / "sc").read_text()
    ours = {line.strip() for line in text.splitlines() if "import" in line and "sccache_dtool" in line}
    assert ours == {"from sccache_dtool.__main__ import main", "from sccache_dtool.cli.main import run"}
    assert len(text.splitlines()) < 80
    assert shell([sys.executable, str(BIN / "sc")]).code == 2
