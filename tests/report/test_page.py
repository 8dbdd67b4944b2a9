"""The page of a report, as a parser of HTML sees it. How it looks in a browser: `test_browser.py`."""

from __future__ import annotations

import itertools
import re
import sys
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import pytest

from faults import FakeClock
from report.year import HOSTILE, live, make_hostile, policy
from sccache_dtool import report
from sccache_dtool.cache import Cache
from sccache_dtool.disk.records import printable
from sccache_dtool.errors import UsageError

_VOID = {"meta", "br", "link", "img"}

#: Elements of SVG that are closed at once.
_SHAPES = {"rect", "line", "path", "circle"}


class Element:
    """An element of a page."""

    def __init__(self, name: str, attributes: dict[str, str | None], parent: Element | None) -> None:
        self.name = name
        self.attributes = attributes
        self.parent = parent
        self.children: list[Element] = []
        self.own_text = ""

    @property
    def text(self) -> str:
        """All text in it."""
        return self.own_text + "".join(child.text for child in self.children)

    def all(self, *names: str) -> list[Element]:
        """The elements of these names in it, in the order of the page."""
        found = [self] if self.name in names else []
        return [*found, *(one for child in self.children for one in child.all(*names))]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self._open = Element("", {}, None)
        self.every: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        one = Element(tag, dict(attrs), self._open)
        self._open.children.append(one)
        self.every.append(one)
        if tag not in _VOID:
            self._open = one

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _SHAPES
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.name == tag, f"</{tag}> ends <{self._open.name}>"
        assert self._open.parent is not None
        self._open = self._open.parent

    def handle_data(self, data: str) -> None:
        self._open.own_text += data


def parsed(page: str) -> _Reader:
    """The page; fails if elements are not closed in their order."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert [one.name for one in reader.root.children] == ["html"]
    return reader


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page on a cache in which everything is that a page can show, and texts of a hostile user everywhere."""
    directory, clock = tmp_path_factory.mktemp("page"), FakeClock()
    with closing(Cache(directory / "cache", clock=clock)) as cache:
        live(cache, clock, directory)
        make_hostile(cache, directory)
        policy(cache, {"retain_size": "1500", "exclude": ["<script>*"]})
        return report.render(Cache(cache.root, clock=clock))


def test_texts_of_others_stay_texts(page: str) -> None:
    """A user could run a script in the browser of whoever looks after the cache."""
    reader = parsed(page)
    names = {one.name for one in reader.every}
    assert names & {"script", "img", "iframe", "object", "embed", "form", "link", "base", "b", "image", "use"} == set()
    for one in reader.every:
        assert not [name for name in one.attributes if name.startswith("on")], one.attributes
    shown = reader.root.text
    for text in HOSTILE:
        assert printable(text) in shown
    assert "49" not in [one.text for one in reader.root.all("bdi")]


def test_no_text_turns_the_line_or_rings_a_bell(page: str) -> None:
    """A file `exe.png` would be shown as a picture, and control characters would come into mails."""
    assert {character for character in page if not character.isprintable()} == {"\n"}
    page.encode()


def test_nothing_is_loaded_or_run(page: str) -> None:
    """A page that is mailed would ask somebody's server when it is read, and show nothing without it."""
    reader = parsed(page)
    for one in reader.every:
        for name in ("src", "srcset", "action", "data", "background", "poster", "xlink:href", "style"):
            assert name not in one.attributes
        if one.name == "a":
            assert (one.attributes["href"] or "").startswith("#")
    (style,) = reader.root.all("style")
    assert "@import" not in style.text
    assert set(re.findall(r"url\(([^)]*)\)", style.text)) == {"#hatched"}
    (guard,) = [one for one in reader.every if one.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert re.match(r"default-src 'none'; style-src 'sha256-[^']+';", guard.attributes["content"] or "")


def test_a_screen_reader_can_read_it(page: str) -> None:
    """A blind member of the group would hear numbers, and not of what."""
    reader = parsed(page)
    root = reader.root
    assert root.all("html")[0].attributes["lang"] == "en"
    assert len(root.all("main")) == len(root.all("header")) == len(root.all("footer")) == len(root.all("h1")) == 1
    levels = [int(one.name[1]) for one in root.all("h1", "h2", "h3", "h4")]
    assert all(later <= before + 1 for before, later in itertools.pairwise(levels))
    assert len(root.all("table")) >= 10
    for table in root.all("table"):
        assert table.all("caption")[0].text.strip()
        assert table.all("th")
        assert all(one.attributes.get("scope") in ("col", "row") for one in table.all("th"))
        assert all(row.all("th") for row in table.all("tr"))
        width = len(table.all("thead")[0].all("th"))
        assert {len(row.all("th", "td")) for row in table.all("tr")} == {width}
    for svg in root.all("svg"):
        hidden = svg.attributes.get("aria-hidden") == "true" or (svg.parent is not None and svg.parent.name == "svg")
        assert hidden or (svg.attributes.get("role") == "img" and svg.attributes.get("aria-label"))
    ids = [one.attributes["id"] for one in reader.every if "id" in one.attributes]
    assert len(set(ids)) == len(ids)
    named = [one.attributes["aria-labelledby"] for one in reader.every if "aria-labelledby" in one.attributes]
    linked = [(one.attributes["href"] or "")[1:] for one in root.all("a")]
    assert {*named, *linked} <= set(ids)


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_there_is_enough_contrast(page: str) -> None:
    """Whoever sees badly, or looks at a projector, could not read it."""
    schemes = re.findall(r":root \{([^}]*)\}", parsed(page).root.all("style")[0].text)
    assert len(schemes) == 3  # light, dark, and print
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        for back in ("back", "raised"):
            for fore, least in [("text", 7), ("quiet", 4.5), ("bad", 4.5), ("first", 4.5), ("second", 4.5)]:
                lighter, darker = sorted((_luminance(colours[fore]), _luminance(colours[back])), reverse=True)
                assert (lighter + 0.05) / (darker + 0.05) >= least, (fore, back)


def test_long_tables_are_cut_and_say_so(cache: Cache, tmp_path: Path) -> None:
    """A page on a large cache would be as large, and could not be mailed."""
    make_hostile(cache, tmp_path, tuple(f"user{number}" for number in range(60)))
    text = report.render(cache)
    assert "10 more are not shown" in text
    assert len(parsed(text).root.all("tbody")[0].all("tr")) <= 50


def test_an_empty_cache_has_a_page(cache: Cache) -> None:
    """Whoever sets a cache up, and its report in cron, would get mails about a bug."""
    text = parsed(report.render(cache)).root.text
    assert "Nothing is in use" in text
    assert "No download has failed" in text


def test_without_jinja_it_says_how_to_install_it(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import error would leave it to the user to find out."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match="Jinja2, which is not installed") as error:
        report.render(cache)
    assert error.value.hint == "install it: pip install 'Jinja2>=3.1'"
