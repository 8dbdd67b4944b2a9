"""The page of a report in a real browser: nothing runs, nothing is loaded, it fits a telephone, and axe finds nothing.

The browser is Debian's chromium, driven by the playwright-core in the Python package playwright.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from faults import FakeClock
from report.year import live, make_hostile, policy
from sccache_dtool import report
from sccache_dtool.cache import Cache

pytestmark = pytest.mark.lab

_CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if _CHROMIUM is None:
        pytest.skip("no chromium here (on Debian: see .ci/packages)")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        # Its own sandbox needs name spaces that a container does not give; the page is this program's.
        started = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything that a page can show, and texts of a hostile user everywhere."""
    directory, clock = tmp_path_factory.mktemp("page"), FakeClock()
    with closing(Cache(directory / "cache", clock=clock)) as cache:
        live(cache, clock, directory)
        make_hostile(cache, directory)
        policy(cache, {"retain_size": "1500", "exclude": ["<script>*"]})
        file = directory / "report.html"
        file.write_text(report.render(Cache(cache.root, clock=clock)))
    return file


class Seen:
    """A page that was opened, and what came of it."""

    def __init__(self, browser: Any, file: Path, **how: Any) -> None:
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.page = browser.new_context(**how).new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.messages.append(dialog.message), dialog.dismiss()))
        self.page.goto(file.as_uri())


def test_no_script_runs_and_nothing_is_requested(browser: Any, page_file: Path) -> None:
    """A user who names a file `<script>` would act in the browser of whoever looks after the cache."""
    seen = Seen(browser, page_file)
    seen.page.mouse.move(200, 200)
    assert seen.requests == [page_file.as_uri()]
    assert seen.messages == []
    assert seen.page.evaluate("document.scripts.length + document.images.length") == 0
    assert seen.page.title() == f"Cache {page_file.parent / 'cache'}"


def test_its_own_style_is_applied(browser: Any, page_file: Path) -> None:
    """The page guards itself against styles of others by the digest of its own; a wrong digest would leave none."""
    seen = Seen(browser, page_file, color_scheme="light")
    assert seen.page.evaluate("getComputedStyle(document.body).maxWidth") != "none"
    assert seen.page.evaluate("getComputedStyle(document.querySelector('rect.first')).fill") == "rgb(11, 92, 173)"


@pytest.mark.parametrize("width", [320, 375, 1200])
def test_the_page_is_not_wider_than_the_screen(browser: Any, page_file: Path, width: int) -> None:
    """On a telephone, every line would have to be pushed to and fro."""
    seen = Seen(browser, page_file, viewport={"width": width, "height": 800})
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    narrow = "[...document.querySelectorAll('svg[role=img]')].map(one => one.getBoundingClientRect().width)"
    assert all(0.7 * width < one <= width for one in seen.page.evaluate(narrow))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_axe_finds_nothing(browser: Any, page_file: Path, scheme: str, width: int) -> None:
    """What a tool finds at once would keep people who see badly, or use a keyboard, from reading it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    seen = Seen(browser, page_file, color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
    seen.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    found = axe.Axe().run(seen.page)
    assert found.violations_count == 0, found.generate_report()


def test_dark_and_light_differ_and_paper_is_white(browser: Any, page_file: Path) -> None:
    """A page that is read at night would be white, or its print be black."""
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = Seen(browser, page_file, color_scheme="dark")
    assert dark.page.evaluate(colour) == "rgb(16, 21, 27)"
    dark.page.emulate_media(media="print", color_scheme="dark")
    assert dark.page.evaluate(colour) == "rgb(255, 255, 255)"
    assert Seen(browser, page_file, color_scheme="light").page.evaluate(colour) == "rgb(255, 255, 255)"


def test_it_can_be_printed(browser: Any, page_file: Path) -> None:
    """What is folded on the screen would be missing on paper, and wide tables be cut at its edge."""
    seen = Seen(browser, page_file, viewport={"width": 680, "height": 1000})
    seen.page.emulate_media(media="print")
    assert seen.page.evaluate("document.querySelector('details table').getBoundingClientRect().height") > 100
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 680
    assert seen.page.pdf(format="A4").startswith(b"%PDF-")
