"""Manifests: which items they list, and what is said of those that mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sccache_dtool.cache import Cache
from sccache_dtool.errors import CacheError, UsageError
from sccache_dtool.fetch.request import DatasetRequest
from sccache_dtool.sets import manifest
from sccache_dtool.sets.manifest import Entry

DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture
def parse(tmp_path: Path) -> Callable[..., list[Entry]]:
    """Parses a text, as one of a file."""
    cache = Cache(tmp_path / "none")

    def run(text: str, file: str = "items.txt") -> list[Entry]:
        return manifest.parse(text, file, cache.request)

    return run


def listed(entries: list[Entry]) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.path, one.request.stack.canonical) for one in entries if not isinstance(one.request, DatasetRequest)]


@pytest.mark.parametrize("text", [f"x = {'[' * 100_000}", f"x = {'1' * 5_000}", "\x00"])
def test_toml_that_no_parser_takes_is_refused(parse: Callable[..., list[Entry]], text: str) -> None:
    """A manifest from somewhere else would look like a fault of this program."""
    with pytest.raises(UsageError, match=r"items.toml is not TOML"):
        parse(text, "items.toml")


def test_a_file_without_end_is_refused(tmp_path: Path) -> None:
    """A mistyped path such as /dev/zero would fill the memory of a login node."""
    with pytest.raises(UsageError, match="/dev/zero is larger than 128 MiB"):
        Cache(tmp_path / "none").manifest("/dev/zero")


@pytest.mark.parametrize("size", ["9" * 400, "'999999PB'"])
def test_a_size_that_no_file_has_is_refused(parse: Callable[..., list[Entry]], size: str) -> None:
    """After some items had been fetched, the sum of all sizes would be too large to be shown."""
    with pytest.raises(UsageError, match=r"size is neither"):
        parse(f'[[item]]\nsource = "/x"\nsize = {size}\n', "items.toml")


@pytest.mark.parametrize(
    ("text", "file"), [("/data/x @x\n", "-"), ('[[item]]\nsource = "/data/x"\nat = "x"\n', "a.toml")]
)
def test_a_mark_of_windows_is_not_part_of_the_first_source(
    parse: Callable[..., list[Entry]], text: str, file: str
) -> None:
    """A list that was saved in Windows would name a file that nobody has."""
    assert listed(parse(f"\ufeff{text}", file)) == [("x", ("file:/data/x",))]


def test_lines_are_read_as_a_shell_reads_them(parse: Callable[..., list[Entry]]) -> None:
    """A list that was pasted from a script would mean other files."""
    entries = parse(
        "# what the job reads\n"
        f"https://example.org/ref.tar.gz {DIGEST} tar @ref   # unpacked\n"
        "\n"
        "  '/data/my file' @\"a b/it's\"\r\n"
        "/data/x\\ y#1\n"
        "/data/'#2' @#2\n"
    )
    assert listed(entries) == [
        ("ref", ("https://example.org/ref.tar.gz", DIGEST, "tar")),
        ("a b/it's", ("file:/data/my file",)),
        ("x y#1", ("file:/data/x y#1",)),
        ("#2", ("file:/data/#2",)),
    ]
    assert [one.where for one in entries] == ["items.txt:2", "items.txt:4", "items.txt:5", "items.txt:6"]


@pytest.mark.parametrize(("file", "before"), [("items.toml", "# x\n"), ("-", "\n# x\n")])
def test_toml_says_the_same_and_more(parse: Callable[..., list[Entry]], file: str, before: str) -> None:
    """A program that writes manifests would have to quote as a shell does."""
    entries = parse(
        f"""{before}[[item]]
source = "https://example.org/ref.tar.gz"
steps = ["{DIGEST}", "tar"]
at = "/refs//./hg38"
size = "10GB"

[[item]]
name = "a count"

[[item]]
source = "/data/b"
name = "b"
size = 17
""",
        file,
    )
    assert listed(entries) == [
        ("refs/hg38", ("https://example.org/ref.tar.gz", DIGEST, "tar")),
        ("a count", ()),
        ("b", ("file:/data/b",)),
    ]
    assert [one.size for one in entries] == [10**10, None, 17]
    first = before.count("\n") + 1
    assert [one.where for one in entries] == [f"{file}:{first + lines}" for lines in (0, 6, 9)]


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("https://example.org/ref.fa.gz gz", "ref.fa"),
        ("https://example.org/dir/", "dir"),
        ("/data/ref.tar tar", "ref"),
        ("dtool:http://example.org/12345678-1234-1234-1234-123456789abc#a/b.txt", "b.txt"),
        ("dtool:http://example.org/12345678-1234-1234-1234-123456789abc", "12345678-1234-1234-1234-123456789abc"),
    ],
)
def test_an_item_without_a_path_appears_at_its_name(parse: Callable[..., list[Entry]], line: str, path: str) -> None:
    """A list of URLs would be no manifest."""
    if line.startswith("dtool:"):
        pytest.importorskip("dtoolcore", reason="dtool is not installed")
    assert [one.path for one in parse(line)] == [path]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/a tarr", "tarr is not a step"),
        ("/a @../x", "leads upwards"),
        ("/a @x/../../y", "leads upwards"),
        ("/a @/", "has no name in it"),
        ("/a @./.", "has no name in it"),
        ("/a '@x\ty'", "control character"),
        ("/a @x\0y", "control character"),
        (f"/a @{'x' * 256}", "is too long"),
        (f"/a @{'x/' * 600}x", "is too long"),
        ("/a @x tar", "@x is not at the end"),
        ("/a @x @y", "@x is not at the end"),
        ("@x", "no source"),
        ("/a @", "no path after @"),
        ("'/a @x", "quotation mark"),
        ("/a \\", "quotation mark"),
        ("/a'b'\"", "quotation mark"),
        ("''", "empty"),
        ("nosuch://x", "unknown kind of source"),
    ],
)
def test_a_line_that_means_nothing_is_named(parse: Callable[..., list[Entry]], line: str, said: str) -> None:
    """In a list of a thousand lines, nobody would find the one that is wrong."""
    with pytest.raises(UsageError, match=said) as caught:
        parse(f"/fine\n{line}\n")
    assert caught.value.message.startswith("items.txt:2: ")


def test_a_name_with_spaces_gets_a_hint(parse: Callable[..., list[Entry]], tmp_path: Path) -> None:
    """A list of file names that printf has written would be refused because of a step that nobody has given."""
    (tmp_path / "run 18").touch()
    with pytest.raises(UsageError, match="18 is not a step") as caught:
        parse(f"{tmp_path}/run 18")
    assert caught.value.hint == f"quote a name that contains spaces: '{tmp_path}/run 18'"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ('soruce = "/a"', "soruce has no meaning here .did you mean 'source'"),
        ("source = 7", "source is not a text"),
        ('source = "/a"\nat = 7', "at is not a text"),
        ('source = "/a"\nsteps = "tar"', "steps is not a list of texts"),
        ('source = "/a"\nsteps = [1]', "steps is not a list of texts"),
        ('source = "/a"\nsize = "many"', "many"),
        ('source = "/a"\nsize = -1', "size is neither"),
        ('source = "/a"\nsize = true', "size is neither"),
        ('steps = ["tar"]', "steps without a source"),
        ("", "nothing to use"),
        ('source = "/a"\nat = "a\\u0000b"', "control character"),
    ],
)
def test_a_table_that_means_nothing_is_named(parse: Callable[..., list[Entry]], fields: str, said: str) -> None:
    """As for lines."""
    with pytest.raises(UsageError, match=said) as caught:
        parse(f'[[item]]\nsource = "/fine"\n[[item]]\n{fields}\n', "items.toml")
    assert caught.value.message.startswith("items.toml:3: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[item]\n", "is not TOML"),
        ("item = 7\n", "item is not a list"),
        ('[[items]]\nsource = "/a"\n', "items has no meaning here"),
    ],
)
def test_what_is_no_manifest_is_not_taken_for_an_empty_one(
    parse: Callable[..., list[Entry]], text: str, said: str
) -> None:
    """A job would start without its data because of a slip of the pen."""
    with pytest.raises(UsageError, match=said):
        parse(text, "items.toml")


def test_everything_that_is_wrong_is_said_at_once(parse: Callable[..., list[Entry]]) -> None:
    """Whoever corrects a long list would begin again with every mistake."""
    with pytest.raises(UsageError) as caught:
        parse("/a tarr\n/fine @x\n/b @../y\n/c @x\n/d @x/below\n")
    assert caught.value.message == "items.txt: 4 of its items cannot be used"
    assert [line.partition(": ")[0] for line in caught.value.details] == [
        "items.txt:1",
        "items.txt:3",
        "items.txt:4",
        "items.txt:5",
    ]
    with pytest.raises(UsageError) as caught:
        parse("".join(f"/a tarr{number}\n" for number in range(1000)))
    assert caught.value.details[-1] == "and 980 more"


def test_one_path_is_that_of_one_item(parse: Callable[..., list[Entry]]) -> None:
    """One item would hide another one in the directory that shows them; one item may be at two paths."""
    assert [one.path for one in parse("/a @x/y\n/a @z\n/b @x/yz\n")] == ["x/y", "z", "x/yz"]
    for text in ("/a @x\n/b @./x\n", "/a\n/b/a\n", "/a @x/y/z\n/b @x\n", "/a @x\n/b @x/y/z\n"):
        with pytest.raises(UsageError, match=r"path of another item \(items.txt:"):
            parse(text)


@pytest.mark.parametrize(
    ("items", "paths"),
    [
        ({"x": "/a", "d/y": ("/b", "gz"), "z": Path("/c")}, [("x", 1), ("d/y", 2), ("z", 1)]),
        ({"/x": ["/a"]}, [("x", 1)]),
    ],
)
def test_a_program_names_sources_by_path(items: Any, paths: list[tuple[str, int]], tmp_path: Path) -> None:
    """A program would have to write a file for what it knows."""
    entries = manifest.parse_mapping(items, Cache(tmp_path / "none").request)
    assert [(path, len(words)) for path, words in listed(entries)] == paths


def test_a_mapping_that_means_nothing_is_an_error_in_words(tmp_path: Path) -> None:
    """A program would be given a TypeError from deep within."""
    with pytest.raises(CacheError, match="2 of its items cannot be used"):
        manifest.parse_mapping({"../x": "/a", "y": ("/b", "tarr")}, Cache(tmp_path / "none").request)
