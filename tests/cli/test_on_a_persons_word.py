"""What nobody can prove a person may say: `reap --holder`. And what is shown of the trash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import Disk, Done

Sc = Callable[..., Done]


@pytest.fixture
def item(tmp_path: Path, sc: Sc) -> str:
    """An item held by a mere name, of which nothing can be proved."""
    source = tmp_path / "ref.fa"
    source.write_text("ACGT")
    assert sc("use", "--holder", "old-host", source).code == 0
    return "ref.fa"


def _holder(sc: Sc, item: str) -> str:
    return str(sc("why", item, "-f", "json").row("lease")["holder"])


def test_why_says_how_to_end_what_cannot_be_proved(sc: Sc, item: str) -> None:
    """A data manager would see "unknown" for ever, and delete directories by hand."""
    shown = sc("why", item)
    assert "unknown" in shown.out
    assert f"sc-dtool reap --holder {_holder(sc, item)}" in shown.err


def test_a_persons_word_ends_the_lease(sc: Sc, item: str, disk: Disk) -> None:
    """The lease of a host that was scrapped could never be ended, and its item never removed."""
    assert sc("reap").out == "ended 0 leases\n"
    done = sc("reap", "--holder", _holder(sc, item), "-y")
    assert done.code == 0
    assert "says that it is gone" in done.out
    assert disk.leases() == disk.holders() == []
    assert sc("rm", item).code == 0


def test_a_persons_word_is_asked_for(sc: Sc, item: str, disk: Disk) -> None:
    """A slip of the hand would delete data under a reader."""
    done = sc("reap", "--holder", _holder(sc, item), "--no-input")
    assert done.code == 2
    assert len(disk.leases()) == 1


def test_a_dry_run_takes_no_word(sc: Sc, item: str, disk: Disk) -> None:
    """`-n` would end what it only ought to show."""
    assert "would end 1 lease" in sc("reap", "-n", "--holder", _holder(sc, item)).out
    assert len(disk.leases()) == 1


def test_one_holders_end_is_nobody_elses(sc: Sc, item: str, tmp_path: Path, disk: Disk) -> None:
    """To say that one host is gone would end the leases of others."""
    assert sc("use", "--holder", "other-host", tmp_path / "ref.fa").code == 0
    first, second = (row["holder"] for row in sc("why", item, "-f", "json").rows("lease"))
    assert sc("reap", "--holder", first, "-y").code == 0
    assert [lease.name.rpartition(".")[0] for lease in disk.leases()] == [second]


def test_no_such_holder(sc: Sc, item: str, disk: Disk) -> None:
    """A mistyped id would be answered with "ended 0 leases", and taken for done."""
    done = sc("reap", "--holder", "s000000000000-000000000000", "-y")
    assert (done.code, len(disk.leases())) == (2, 1)
    assert "there is no holder" in done.err


def test_the_trash_can_be_looked_into(sc: Sc, item: str) -> None:
    """Nobody would know what `restore` can bring back, and until when."""
    assert "the trash is empty" in sc("restore").err
    assert sc("unuse", "--holder", "old-host", "-n", "other").code == 0
    sc("reap", "--holder", _holder(sc, item), "-y")
    assert sc("rm", "--trash", "7d", item).code == 0
    assert "ref.fa" in sc("restore").out
    assert sc("restore", "-f", "json").row("trashed")["bytes"] == 4
    assert sc("restore", item).code == 0
    assert "the trash is empty" in sc("restore").err
