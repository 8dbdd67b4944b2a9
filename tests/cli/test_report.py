"""`report` writes a file, and `summary` draws on a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import SC_DTOOL, Done, call, on_terminal

Sc = Callable[..., Done]


def test_the_page_is_written_whole(sc: Sc, source: str, tmp_path: Path) -> None:
    """A web server would serve half a page, or none after a failure."""
    sc("use", source)
    file = tmp_path / "report.html"
    file.write_text("the one of last week")
    assert sc("-C", tmp_path / "missing", "report", "-o", file).code == 10
    assert file.read_text() == "the one of last week"
    assert sc("report", "-o", file) == Done(0, "", "")
    assert file.read_text().startswith("<!DOCTYPE html>")
    assert file.read_text().endswith("</html>\n")
    assert [one.name for one in tmp_path.glob("report.html*")] == ["report.html"]


def test_it_goes_to_standard_output(sc: Sc, source: str) -> None:
    """A script that mails the page would need a file for it."""
    sc("use", source)
    page = sc("report", "-o", "-")
    assert (page.code, page.err) == (0, "")
    assert page.out.startswith("<!DOCTYPE html>")
    assert "ref.fa" in page.out


def test_without_jinja_nothing_is_written(sc: Sc, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user would get a traceback, and an empty page."""
    sc("use", source)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = sc("report", "-o", tmp_path / "report.html")
    assert done.code == 2
    assert "pip install 'Jinja2" in done.err
    assert not (tmp_path / "report.html").exists()


def test_a_file_is_asked_for(sc: Sc) -> None:
    """A page of HTML would fill the terminal."""
    done = sc("report")
    assert (done.code, done.out) == (2, "")
    assert "Missing option '-o'" in done.err


def test_summary_draws_on_a_terminal(source: str, root: Path) -> None:
    """Whoever looks at a terminal would have to read how full the cache is out of numbers."""
    call("use", source)
    (root / ".sc-dtool" / "config.toml").write_text('[clean]\ncapacity = "10kB"\nhigh_watermark = "90%"\n')
    with on_terminal([SC_DTOOL, "summary"]) as terminal:
        assert terminal.finish() == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.text)
    assert re.search(r"(?m)^full .* 0 % of 10\.0 kB \(capacity\)", text)
    assert re.search(r"▲ +high mark \(90%\): 9\.0 kB", text)
    assert re.search(r"(?m)^size .*█ +over 28 days, 5 Bytes at most", text)


def test_summary_through_a_pipe_is_text_alone(source: str) -> None:
    """A script that reads the summary would find bars in it."""
    call("use", source)
    assert not re.search("[█▲▁]", call("summary", "--color", "always").out)
