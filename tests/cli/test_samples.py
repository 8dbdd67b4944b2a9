"""`sample`: what comes with the program for cron, systemd and Slurm."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from cli.tool import PYTHON, Done, one_line_error, shell
from sccache_dtool.cli.samples import SAMPLES

Sc = Callable[..., Done]

REPOSITORY = Path(__file__).parents[2]


def test_all_samples_are_listed(sc: Sc) -> None:
    """A sample that is not listed would be found by nobody."""
    there = {file.name for file in (files("sccache_dtool") / "samples").iterdir()}
    assert {row["name"] for row in sc("-f", "json", "sample").rows("sample")} == there == set(SAMPLES)
    assert all(name in sc("sample").out for name in there)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_printed_as_it_is(sc: Sc, name: str) -> None:
    """What is installed on every node would not be what was tested."""
    text = (files("sccache_dtool") / "samples" / name).read_text()
    assert sc("sample", name) == Done(0, text, "")
    assert sc("-f", "json", "sample", name).row("sample")["text"] == text


def test_endings_may_be_left_out(sc: Sc) -> None:
    """`sample slurm-epilog` would need an ending that nobody remembers."""
    assert sc("sample", "slurm-epilog") == sc("sample", "slurm-epilog.sh")
    assert "could mean sc-dtool-clean.service or sc-dtool-clean.timer" in one_line_error(sc("sample", "sc-dtool-clean"))
    for name in ("nothing", "../__init__.py", "", "slurm-epilog.sh/"):
        done = sc("sample", name)
        assert done.code == 2
        assert "slurm-epilog.sh" in done.err


def test_what_stands_in_bin_is_the_same() -> None:
    """Two copies of a script would come to differ."""
    for name in SAMPLES:
        (link,) = (REPOSITORY / "bin").rglob(name)
        assert link.read_text() == (REPOSITORY / "sccache_dtool" / "samples" / name).read_text()
        assert not link.is_symlink() or not os.path.isabs(os.readlink(link))


def test_they_are_in_the_wheel(tmp_path: Path) -> None:
    """Whoever installs from a package index would have no samples."""
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "sccache_dtool", "bin"):
        os.symlink(REPOSITORY / name, copy / name)
    done = shell([PYTHON, "-c", build, str(tmp_path)], cwd=copy)
    if "No module named 'setuptools'" in done.err:
        pytest.skip("setuptools is not installed")
    assert done.code == 0, done.err
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {Path(name).name for name in names if name.startswith("sccache_dtool/samples/")} == set(SAMPLES)
    assert any(name.endswith("/scripts/sc") for name in names)
