"""Names and paths: what is written is read as the same, and what is not ours is not taken for ours."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from typing import Any

import pytest

from sccache_dtool.disk import names
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import (
    CheckedName,
    CleaningName,
    EndedName,
    Generation,
    HolderName,
    KeptName,
    Layout,
    LeaseName,
    OutcomeName,
    PartName,
    PinName,
    SegmentName,
    StateName,
    TrashName,
    WorkName,
)

HOLDER = "s0123456789ab-0123456789ab"
GENERATION = Generation("0123456789abcdef", 1_800_000_000, 5, 1)
KEY = f"{'0123456789abcdef' * 2}-ref.fa"

NAMES: list[Any] = [
    GENERATION,
    Generation("f" * 16, 0, 10**18 - 1, 10**12 - 1),
    Generation("f" * 16, 0, 1, 1, took=0),
    Generation("f" * 16, 0, 1, 1, version="0123456789abcdef"),
    Generation("f" * 16, 0, 1, 1, 10**12 - 1, "0123456789abcdef"),
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
    PinName(KEY, 0),
    PinName(names.item_key(("x",), "é" * 200), 1_800_000_000),
    WorkName(f"{HOLDER}.7", "fetch"),
    WorkName(f"{HOLDER}.7", "going"),
    WorkName(f"{HOLDER}.7", "restore", "g0123456789abcdef-1-2-3~4"),
    WorkName(f"{HOLDER}.7", "fetch", "0" * 32),
    KeptName(1_800_000_000),
    StateName("receiving", 5, None, 0),
    StateName("receiving", 5, 10**18 - 1, 10**6 - 1),
    PartName(0, 10**18 - 1),
    CheckedName(1_800_000_000),
    OutcomeName("0123456789abcdef" * 2, f"{HOLDER}.7", 1_800_000_000_123, "done"),
    OutcomeName("0123456789abcdef" * 2, f"{HOLDER}.7", 0, "failed"),
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
    "word",
    [KEY + "\n", f"../{KEY}", KEY.upper(), KEY[:32], KEY[:33], KEY[1:], KEY + "~", KEY + "\udcff", KEY + "x" * 200],
)
def test_hostile_keys_are_no_keys(word: str) -> None:
    """An `item.json` in the trash could name a directory outside the cache to be restored to."""
    assert names.is_key(KEY)
    assert not names.is_key(word)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("ref.fa", "ref.fa"),
        ("Proben-ä.csv", "Proben-ä.csv"),
        ("Proben-a\u0308.csv", "Proben-a\u0308.csv"),
        ("東京", "東京"),
        ("a b 'c' \"d\" $e", "a b 'c' \"d\" $e"),
        ("reads[1]*.fq", "reads[1]*.fq"),
        ("-rf", "-rf"),
        ("👩‍🔬\u200f", "👩‍🔬\u200f"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("a/b", "a%2Fb"),
        ("a\nb\x9f\u2028", "a%0Ab%C2%9F%E2%80%A8"),
        ("100%", "100%25"),
        ("a%2Fb", "a%252Fb"),
        ("backup~", "backup%7E"),
        ("latin1-\udce4", "latin1-%ED%B3%A4"),
    ],
)
def test_a_label_says_what_the_name_is(name: str, label: str) -> None:
    """`rm` of one name would remove the item of another that looks alike on disk."""
    key = names.item_key((name.encode(errors="replace").decode(),), name)
    assert key[33:] == label
    assert names.is_key(key)
    assert names.key_name(key) == names.key_label(key) == name
    assert names.is_named(key, name)
    assert not names.is_named(key, label) or label == name


LONG = "東京都" * 30 + "north" + "大阪府" * 30 + ".csv"
OTHER_LONG = "東京都" * 30 + "south" + "大阪府" * 30 + ".csv"


@pytest.mark.parametrize(
    "name", [LONG, OTHER_LONG, "x" * 300, "👩‍🔬" * 50, "%" * 200, "~" * 190 + "é" * 20, "a" * 199 + "é"]
)
def test_a_long_name_keeps_its_front_and_its_end(name: str) -> None:
    """A name longer than file systems allow could not be cached, or would be taken for another with the same end."""
    key = names.item_key((name,), name)
    label = key[33:]
    assert 150 < len(label.encode()) <= names.NAME_LIMIT
    assert names.is_key(key)
    assert PinName.parse(str(PinName(key, 0))) == PinName(key, 0)
    front, _, end = (names.key_label(f"{key[:33]}{part}") for part in label.split("~"))
    assert len(front) > 10 < len(end)
    assert (name.startswith(front), name.endswith(end)) == (True, True)
    assert names.key_name(key) is None
    assert names.is_named(key, name)
    assert not names.is_named(key, names.key_label(key))


def test_a_long_name_is_not_one_with_the_same_front_and_end() -> None:
    """`rm` of a long name would remove the item of another."""
    key, other = names.item_key((LONG,), LONG), names.item_key((OTHER_LONG,), OTHER_LONG)
    assert key[33:50] == other[33:50]
    assert not names.is_named(key, OTHER_LONG)
    assert names.shortened(LONG) != names.shortened(OTHER_LONG)


def test_any_text_has_a_label_of_its_own() -> None:
    """Two names of odd characters would be one on disk."""
    pieces = ["%", "%2", "2", "F", "%2F", "/", "~", ".", "\n", "é", "e\u0301", "\udcc3", "\ud800", "0" * 31]
    texts = {"".join(some) for count in (1, 2, 3) for some in itertools.product(pieces, repeat=count)}
    assert len({names.label(text) for text in texts}) == len(texts)
    for text in texts:
        key = f"{'0' * 32}-{names.label(text)}"
        assert (names.is_key(key), names.key_name(key)) == (True, text)


def test_keys_tell_sources_apart_and_labels_do_not() -> None:
    """Two sources of one name would be one item, and a user would read another's data."""
    one, other = names.item_key(("file:/a/ref.fa",), "ref.fa"), names.item_key(("file:/b/ref.fa",), "ref.fa")
    assert one != other
    assert names.key_label(one) == names.key_label(other) == "ref.fa"
    assert one == names.item_key(("file:/a/ref.fa",), "ref.fa")
    assert names.item_key(("a", "b"), "x") != names.item_key(("a",), "x")


def test_random_parts_differ() -> None:
    """A closed name would be used again, and a paused evictor would delete what is new."""
    assert len({names.unique() for _ in range(1000)}) == 1000
    assert len(names.unique()) == 16
    assert len(names.unique(12)) == 12


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


@pytest.mark.parametrize("inner", ["..", "a/../../x", "../x", "a/.."])
def test_no_path_below_the_control_directory_leads_upwards(tmp_path: Any, inner: str) -> None:
    """A text of somebody else's that became part of a path would have a file of the user's own replaced."""
    control = tmp_path / ".sc-dtool"
    (control / "a").mkdir(parents=True)
    (control / "f").write_text("f")
    (tmp_path / "x").write_text("precious")
    fs = FileSystem()
    with pytest.raises(OSError, match="upwards"):
        fs.rename(f"{control}/f", f"{control}/{inner}")
    with pytest.raises(OSError, match="upwards"), fs.open_directory(str(control)) as handle:
        fs.remove_tree(f"{control}/{inner}", via=handle)
    assert (tmp_path / "x").read_text() == "precious"
