"""Names and paths: what is written is read as the same, and what is not ours is not taken for ours."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import pytest

from sccache_dtool import layout
from sccache_dtool.layout import (
    CleaningName,
    EndedName,
    Generation,
    HolderName,
    KeptName,
    Layout,
    LeaseName,
    SegmentName,
    TrashName,
    WorkName,
)

HOLDER = "s0123456789ab-0123456789ab"
GENERATION = Generation("0123456789abcdef", 1_800_000_000, 5, 1)
KEY = f"{'0123456789abcdef' * 2}-ref.fa"

NAMES: list[Any] = [
    GENERATION,
    Generation("f" * 16, 0, 10**18 - 1, 10**12 - 1),
    HolderName(HOLDER, 0, 0),
    HolderName("p" + HOLDER[1:], 10**12 - 1, 10**12 - 1),
    LeaseName(HOLDER, 0),
    LeaseName(HOLDER, 123),
    EndedName(f"{HOLDER}.7", 1_800_000_000_123, "released"),
    EndedName(f"{HOLDER}.7", 0, "reaped"),
    SegmentName(100, 1_800_000_000_123, "0123456789abcdef"),
    TrashName(GENERATION, 0),
    TrashName(GENERATION, 1_800_000_000),
    TrashName(GENERATION, 0, True),
    WorkName(f"{HOLDER}.7", "fetch"),
    WorkName(f"{HOLDER}.7", "going"),
    WorkName(f"{HOLDER}.7", "restore", "g0123456789abcdef-1-2-3~4"),
    WorkName(f"{HOLDER}.7", "fetch", "0" * 32),
    KeptName(1_800_000_000),
]
KINDS = list(dict.fromkeys(type(name) for name in NAMES))


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_names_are_read_as_written(name: Any) -> None:
    """What one process writes another would not find, or take for something else."""
    assert type(name).parse(str(name)) == name


@pytest.mark.parametrize("more", [{}, {"loose": 3}, {"restored": 1}, {"loose": 3, "restored": 1}])
def test_names_of_records_are_read_as_written(more: dict[str, int]) -> None:
    """Loose files that were cleaned away, and what was restored, would be told of as misses."""
    name = CleaningName(1_800_000_000_123, 5, 10**18 - 1, 2, "0123456789abcdef", **more)
    assert CleaningName.parse(str(name)) == name
    assert [bad for bad in hostile(str(name))[:-2] if bad != str(name) and CleaningName.parse(bad)] == []


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_no_name_is_taken_for_another_kind(name: Any) -> None:
    """A segment could be taken for a use, or a work area for a copy, and be deleted as such."""
    readers = [kind for kind in KINDS if kind.parse(str(name)) is not None]
    # A lease and a holder differ by one number; they are in directories of their own.
    assert readers == [type(name)]


def hostile(name: str) -> list[str]:
    """Names that look like `name` to a careless reader."""
    return [
        f"{name}\n",
        f"\n{name}",
        f"{name}\0",
        f" {name}",
        f"{name} ",
        f"../{name}",
        f"{name}/..",
        f"./{name}",
        f"{name}/x",
        f"{name}~",
        f"{name}.bak",
        f".{name}",
        f".nfs{name}",
        name.upper() if name.upper() != name else f"{name}X",
        re.sub(r"\d(?=\D*$)", "٣", name),  # a digit to Unicode, and to a careless \d
        re.sub(r"\d(?=\D*$)", "\uff13", name),
        re.sub(r"\d(?=\D*$)", "-1", name),
        re.sub(r"\d(?=\D*$)", "1" * 30, name),
        "",
        ".",
        "..",
        name[1:],
        name[:-1] + "\udcff",
    ]


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_hostile_names_are_no_names_of_ours(name: Any) -> None:
    """A name made by hand could lead a deletion out of the cache, or end a lease that is held."""
    text = str(name)
    for bad in hostile(text):
        assert bad == text or type(name).parse(bad) is None, repr(bad)


@pytest.mark.parametrize(
    "word", [KEY + "\n", f"../{KEY}", KEY.upper(), KEY[:32], KEY[:33], KEY[1:], KEY + "ü", KEY + "x" * 60]
)
def test_hostile_keys_are_no_keys(word: str) -> None:
    """An `item.json` in the trash could name a directory outside the cache to be restored to."""
    assert layout.is_key(KEY)
    assert not layout.is_key(word)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ref.fa", "ref.fa"),
        ("a b\tc", "a_b_c"),
        ("Grüße", "Gr_e"),
        ("..", "item"),
        ("", "item"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("../../etc/passwd", "etc_passwd"),
        ("a\nb", "a_b"),
        ("日本語", "item"),
        ("x" * 100 + ".tar.gz", "x" * 53 + ".tar.gz"),
        ("a" * 30 + "-" + "b" * 59, "b" * 59),
    ],
)
def test_labels_are_fit_for_any_shell(text: str, expected: str) -> None:
    """A source with an odd name could not be cached, or its item could not be named on a command line."""
    assert layout.slug(text) == expected
    assert layout.is_key(layout.item_key((text,), text))


def test_keys_tell_sources_apart_and_labels_do_not() -> None:
    """Two sources of one name would be one item, and a user would read another's data."""
    one, other = layout.item_key(("file:/a/ref.fa",), "ref.fa"), layout.item_key(("file:/b/ref.fa",), "ref.fa")
    assert one != other
    assert layout.key_label(one) == layout.key_label(other) == "ref.fa"
    assert one == layout.item_key(("file:/a/ref.fa",), "ref.fa")
    assert layout.item_key(("a", "b"), "x") != layout.item_key(("a",), "x")


def test_random_parts_differ() -> None:
    """A closed name would be used again, and a paused evictor would delete what is new."""
    assert len({layout.unique() for _ in range(1000)}) == 1000
    assert len(layout.unique()) == 16
    assert len(layout.unique(12)) == 12


def test_the_root_is_kept_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """After a change of the working directory a program would work on another cache."""
    monkeypatch.chdir(tmp_path)
    place = Layout("cache")
    monkeypatch.chdir("/")
    assert place.root == f"{tmp_path}/cache"


def test_every_path_is_in_the_control_directory() -> None:
    """Something of the user's own, beside the control directory, could be deleted."""
    place = Layout("/data")
    own = [value for key, value in vars(place).items() if isinstance(value, str) and key not in ("root", "tag_file")]
    paths = [*own, place.item(KEY), place.history(KEY), place.generation(KEY, str(GENERATION))]
    assert all(path == place.control or path.startswith("/data/.sc-dtool/") for path in paths)
    assert place.generation(KEY, str(GENERATION)) == f"/data/.sc-dtool/items/01/{KEY}/{GENERATION}"


def inside(place: Layout) -> str:
    return f"{place.generation(KEY, str(GENERATION))}/payload/ref.fa"


@pytest.mark.parametrize(
    "path",
    [
        inside,
        lambda place: place.item(KEY),
        lambda place: f"{inside(place)}/deep/../er",
        lambda place: f"{place.root}/./x/../.sc-dtool/items/01/{KEY}",
    ],
)
def test_a_path_in_the_cache_names_its_item(path: Callable[[Layout], str]) -> None:
    """`unuse` could not be given the path that `use` printed."""
    place = Layout("/data")
    assert place.key_of(path(place)) == KEY


@pytest.mark.parametrize(
    "path",
    [
        "/elsewhere",
        "/data/.sc-dtool/items",
        "/data/.sc-dtool/items/01",
        f"/data/.sc-dtool/items/02/{KEY}",
        f"/data/items/01/{KEY}",
        f"/data/.sc-dtool/items/01/{KEY}/../../../..",
        "/data/.sc-dtool/items/01/README",
    ],
)
def test_other_paths_name_no_item(path: str) -> None:
    """A command given some path would act on an item that was not meant."""
    assert Layout("/data").key_of(path) is None


@pytest.mark.parametrize("word", ["hg38", "ref.fa", "https://example.org/ref.fa", "file:x", "..", "."])
def test_words_do_not_mean_the_item_that_the_user_stands_in(
    word: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has changed into one item and gives back, or removes, another, would lose the one that it reads."""
    place = Layout(str(tmp_path))
    directory = f"{place.generation(KEY, str(GENERATION))}/payload/ref"
    os.makedirs(directory)
    monkeypatch.chdir(directory)
    assert place.key_of(word) is None
