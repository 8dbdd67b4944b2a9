"""Hints that say what to install."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sccache_dtool
from sccache_dtool.extras import to_install

ROOT = Path(sccache_dtool.__file__).parents[1]


@pytest.mark.parametrize(("extra", "package"), [("mpi", "mpi4py"), ("dask", "distributed"), ("dtool", "dtoolcore")])
def test_a_hint_names_the_packages_of_an_extra(extra: str, package: str) -> None:
    """A user would be told to install something that does not help."""
    assert to_install(extra).startswith("pip install ")
    assert f"'{package}>=" in to_install(extra)


def test_an_extra_of_an_installation_without_metadata() -> None:
    """The hint would be the command `pip install` with nothing to install."""
    assert to_install("nonsense") == "install this package again with the extra nonsense"


def test_no_text_tells_users_to_install_this_package_from_an_index() -> None:
    """No index has the package: whoever registers its name there could run code on our users' machines."""
    texts = [
        *ROOT.glob("sccache_dtool/**/*.py"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("docs/*.py"),
        ROOT / "README.md",
    ]
    assert len(texts) > 100
    naming = [
        str(path)
        for path in texts
        if re.search(r"(pip|conda|uv|pipx) install [^\n`]*\bsccache[-_]dtool", path.read_text(encoding="utf-8"))
    ]
    assert naming == []
