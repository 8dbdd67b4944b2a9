"""Which item a word means, and which names a pattern matches: never one that only looks alike."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import Disk, Done, config, one_line_error
from sccache_dtool.disk import names as layout

Sc = Callable[..., Done]

#: Too long for a file name: the same front and the same end.
LONG = "東京都庁舎" * 10 + "-north-" + "大阪府立図書館" * 8 + ".csv"
OTHER_LONG = LONG.replace("north", "south")

#: Names that once were one: a word that means the second must not mean the first.
ALIKE = [
    ("東京", "大阪"),
    ("Proben-ä.csv", "Proben-ö.csv"),
    (unicodedata.normalize("NFD", "Übung.csv"), unicodedata.normalize("NFC", "Übung.csv")),
    ("evil", "evil?"),
    ("a b", "a_b"),
    (".hidden", "hidden"),
    ("-dash", "dash"),
    ("Ref.fa", "ref.fa"),
    ("a*", "ab"),
    ("reads[1].fq", "reads1.fq"),
    ("'quoted' \"name\"", "quoted name"),
    ("a/b", "a%2Fb"),
    ("100%", "100%25"),
    ("copy~", "copy"),
    ("🧬", "🧫"),
    (LONG, OTHER_LONG),
    (LONG, LONG[:40] + LONG[-40:]),
    ("e" * 200, "e" * 199),
]


def store(sc: Sc, name: str, source: str) -> str:
    """Put an item into the cache that nobody uses; its key."""
    key = str(sc("use", "-f", "json", "-n", name, source).row("use")["item"])
    assert sc("unuse", "-n", name).code == 0
    return key


def names(sc: Sc, *words: str) -> list[str]:
    return [str(row["name"]) for row in sc("-f", "json", "ls", *words).rows("item")]


@pytest.mark.parametrize(("name", "other"), ALIKE)
def test_a_word_means_no_item_of_another_name(sc: Sc, source: str, name: str, other: str) -> None:
    """`rm` of one item would remove another."""
    store(sc, name, source)
    assert names(sc) == [name]
    done = sc("rm", "--", other)
    assert done.code == 2
    assert one_line_error(done)
    assert sc("why", "--", other).code == 2
    assert sc("rm", "--trash", "1d", "--", name).code == 0
    assert sc("restore", "--", other).code == 2
    assert sc("restore", "--", name).code == 0


@pytest.mark.parametrize("command", ["pin", "unpin", "why", "status", "log", "unuse", "locate"])
def test_every_command_goes_by_the_same_names(sc: Sc, source: str, command: str) -> None:
    """`pin` would protect an item that nobody asked for, and `why` speak of another one."""
    store(sc, "東京", source)
    done = sc(command, "大阪")
    assert done.code == (1 if command == "locate" else 2)
    assert one_line_error(done)
    assert sc(command, "東京").code == 0


@pytest.mark.parametrize(("name", "other"), ALIKE)
def test_a_file_is_called_as_it_is(sc: Sc, tmp_path: Path, name: str, other: str) -> None:
    """The item of a file could not be named by the file's name, or would be found by another one."""
    name, other = name.replace("/", "."), other.replace("/", ".")
    source = tmp_path / name[-60:]
    source.write_text("ACGT\n")
    sc("use", source)
    assert names(sc) == [source.name]
    assert sc("why", "--", source.name).code == 0
    if other[-60:] != source.name:
        assert sc("why", "--", other[-60:]).code == 2


def test_a_similar_name_is_shown(sc: Sc, source: str) -> None:
    """Whoever types a name that was made on another system would not find out why it is not found."""
    key = store(sc, unicodedata.normalize("NFD", "Übung.csv"), source)
    done = sc("rm", "Übung.csv")
    assert done.code == 2
    assert f"  similar: {key}" in done.err
    assert sc("rm", key[:8]).code == 0


def test_an_item_of_a_long_name_can_be_handled(sc: Sc, source: str, disk: Disk) -> None:
    """What has a name longer than file systems allow could not be pinned, restored, or found once it is gone."""
    key, other = store(sc, LONG, source), store(sc, OTHER_LONG, source)
    assert key[33:60] == other[33:60]
    assert sorted(names(sc)) == sorted([LONG, OTHER_LONG])
    assert sc("pin", LONG).code == 0
    sc("clean", "--all", "-y")
    assert names(sc) == [LONG]
    assert [str(row["item"]) for row in sc("-f", "json", "log", OTHER_LONG).rows("use")] == [other]
    assert sc("unpin", LONG).code == 0
    assert sc("rm", "--trash", "1d", LONG).code == 0
    assert sc("restore", OTHER_LONG).code == 2
    assert sc("restore", LONG).code == 0
    assert sc("doctor").code == 0, sc("doctor")


# -- words that could mean several -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["rm", "pin", "why", "unuse"])
def test_what_could_be_several_is_left_alone(sc: Sc, tmp_path: Path, command: str, disk: Disk) -> None:
    """One of two items of a name would be removed, and nobody would see which."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ref.fa").write_text(name)
        sc("use", tmp_path / name / "ref.fa")
    before = disk.leases()
    done = sc(command, "ref.fa")
    assert done.code == 2
    assert one_line_error(done).endswith("'ref.fa' could be any of 2 items")
    assert all(f"-ref.fa: file:{tmp_path}/{name}/ref.fa\n" in done.err for name in ("a", "b"))
    assert (disk.leases(), disk.names(".").count("pins")) == (before, 0)


def test_a_name_that_is_the_beginning_of_a_key_is_not_preferred(sc: Sc, source: str) -> None:
    """A member of the group could name an item like another's key, and have the wrong one removed."""
    key = store(sc, "mine", source)
    other = store(sc, key[:12], source)
    done = sc("rm", key[:12])
    assert done.code == 2
    assert key in done.err
    assert other in done.err
    assert sc("rm", key).code == 0
    assert sc("rm", key[:12]).code == 0


def test_a_whole_key_means_that_item(sc: Sc, source: str) -> None:
    """A script that goes by keys would be stopped by an item that somebody has named like one."""
    key = store(sc, "mine", source)
    store(sc, key, source)
    assert sc("rm", key).code == 0
    assert names(sc) == [key]


def test_a_name_that_is_a_source_is_not_preferred(sc: Sc, source: str) -> None:
    """An item named like the source of another would be taken for it."""
    sc("use", source)
    sc("unuse", source)
    store(sc, source, source)
    done = sc("rm", source)
    assert done.code == 2
    assert "could be any of 2 items" in done.err


def test_many_candidates_are_counted(sc: Sc, tmp_path: Path) -> None:
    """The list of candidates would fill the terminal."""
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "x").write_text("x")
        sc("use", tmp_path / str(number) / "x")
    assert "\n  and 2 more\n" in sc("why", "x").err


# -- unuse -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["{name}", "{key}", "{key:.6}", "{source}", "file:{source}", "{path}", "{path}/x/y", "{item}"]
)
def test_unuse_takes_every_word_that_why_takes(sc: Sc, source: str, disk: Disk, word: str) -> None:
    """`unuse` would find nothing, exit 0, and the lease would stay."""
    given = [] if "{source}" in word else ["-n", "hg"]
    path = sc("use", "--holder", "job42", *given, source).path
    word = word.format(name="hg", source=source, path=path, item=path.parents[2], key=path.parents[2].name)
    assert sc("why", word).code == 0
    done = sc("unuse", "-f", "json", "--holder", "job42", word)
    assert done.row("unuse")["released"] == 1
    assert disk.leases() == []


@pytest.mark.parametrize("word", ["nothing", "", "abcd", "0123456789ab", "*"])
def test_unuse_of_no_item_is_a_slip(sc: Sc, source: str, disk: Disk, word: str) -> None:
    """A mistyped name would be taken for given back, and keep its data for ever."""
    sc("use", source)
    done = sc("unuse", word)
    assert done.code == 2
    assert one_line_error(done)
    assert len(disk.leases()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["/no/such/file"],
        ["./no-such-file"],
        ["data/file"],
        ["file:x"],
        ["http://127.0.0.1:1/x"],
        ["never", "sha256:" + "0" * 64],
        ["-n", "never"],
        ["0123456789abcdef0123456789abcdef-never"],
    ],
)
def test_unuse_of_what_was_never_used_is_not_an_error(sc: Sc, words: list[str]) -> None:
    """The trap of a job whose `use` has failed would fail in turn, and hide the reason."""
    sc("init")
    done = sc("unuse", *words)
    assert (done.code, "nothing to release" in done.err) == (0, True)


def test_unuse_of_what_was_removed_is_not_an_error(
    sc: Sc, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap of a job would fail if its lease was reaped, and its data evicted, before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reads").write_text("ACGT\n")
    path = sc("use", "reads").path
    shutil.rmtree(path.parents[2])
    for word in (str(path), str(path.parents[2]), "reads", "./reads", path.parents[2].name):
        assert sc("unuse", word).code == 0


def test_the_words_of_use_come_first(sc: Sc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others' items of the same name would keep a job from giving back its own."""
    for name in ("mine", "others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ref.fa").write_text(name)
        sc("use", tmp_path / name / "ref.fa")
    monkeypatch.chdir(tmp_path / "mine")
    assert sc("unuse", "-f", "json", "ref.fa").row("unuse")["released"] == 1
    assert "not in use" in sc("why", tmp_path / "mine" / "ref.fa").out


def test_a_file_here_is_not_an_item_of_the_same_name(
    sc: Sc, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap of a script whose second `use` has failed would end the lease of the first."""
    for name in ("mine", "others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ref.fa").write_text(name)
    sc("use", tmp_path / "others" / "ref.fa")
    monkeypatch.chdir(tmp_path / "mine")
    done = sc("unuse", "ref.fa")
    assert (done.code, "nothing to release" in done.err, len(disk.leases())) == (0, True, 1)


def second_copy(path: Path) -> None:
    """Give an item another copy, as an election gone wrong does; the next use takes it."""
    copy = path.parents[1]
    parts = copy.name.split("-")
    newer = copy.with_name("-".join([f"g{'0' * 16}", str(int(parts[1]) + 60), *parts[2:]]))
    shutil.copytree(copy, newer, symlinks=True)
    for lease in (newer / "use").iterdir():
        lease.unlink()


@pytest.mark.parametrize("extra", [[], ["--all"]])
def test_a_path_means_the_lease_on_that_copy(sc: Sc, source: str, extra: list[str]) -> None:
    """The lease on another copy would end, and the next `clean` would delete it under its reader."""
    first = sc("use", "--holder", "job", source).path
    second_copy(first)
    second = sc("use", "--holder", "job", source).path
    assert first != second
    for mine, other in ((first, second), (first, second)):
        assert sc("unuse", "--holder", "job", *extra, mine).code == 0
        sc("clean", "--all", "-y")
        assert (mine.exists(), other.exists()) == (False, True)
    assert sc("unuse", "-f", "json", "--holder", "job", second).row("unuse")["released"] == 1


def test_a_path_is_in_one_of_several_caches(sc: Sc, source: str, tmp_path: Path) -> None:
    """With several caches, the lease in another one would end."""
    caches = [tmp_path / "one", tmp_path / "two"]
    paths = [sc("use", "-C", cache, "--holder", "job", source).path for cache in caches]
    everywhere = f"{caches[0]}:{caches[1]}:{tmp_path / 'three'}"
    assert sc("unuse", "-f", "json", "--holder", "job", "-d", everywhere, paths[1]).row("unuse")["released"] == 1
    leases = [Disk(cache).leases() for cache in caches]
    assert [len(found) for found in leases] == [1, 0]
    assert sc("unuse", "-f", "json", "--holder", "job", "-d", everywhere, "ref.fa").row("unuse")["released"] == 1
    assert sc("unuse", "--holder", "job", "-d", everywhere, "nothing").code == 2


def test_a_path_tells_its_cache(sc: Sc, source: str, tmp_path: Path) -> None:
    """A job that forgets -C would go on, and its lease stay."""
    path = sc("use", "-C", tmp_path / "other", source).path
    sc("init")
    assert sc("-f", "json", "unuse", path).row("unuse")["released"] == 1
    assert Disk(tmp_path / "other").leases() == []


# -- patterns ----------------------------------------------------------------------------------------------------------

#: Names, and patterns that must match them.
MATCHING = [
    ("übung.bin", "übung*"),
    (unicodedata.normalize("NFD", "übung.bin"), "übung*"),
    ("übung.bin", unicodedata.normalize("NFD", "übung*")),
    ("大阪府.csv", "?阪*"),
    (LONG, "*-north-*"),
    (LONG, "東京都*"),
    ("reads[1].fq", "reads[1].fq"),
    ("reads[1].fq", "reads[[]1*"),
    ("a b", "a ?"),
    ("a/b", "a/*"),
    ("100%", "100%"),
    (".hidden", ".h*"),
    ("x" * 90 + ".fa", "x" * 90 + ".fa"),
]


@pytest.mark.parametrize("setting", [False, True], ids=["option", "setting"])
@pytest.mark.parametrize(("name", "pattern"), MATCHING)
def test_what_is_excluded_stays(sc: Sc, source: str, root: Path, name: str, pattern: str, setting: bool) -> None:
    """A pattern that matches the name would protect nothing, silently."""
    store(sc, name, source)
    store(sc, "other", source)
    if setting:
        config(root, f"[clean]\nexclude = [{json.dumps(pattern, ensure_ascii=False)}]\n")
    done = sc("clean", "--all", "-y", *([] if setting else ["--exclude", pattern]))
    assert done.code == 0
    assert "has no effect" not in done.err
    assert names(sc) == [name]
    assert names(sc, "--filter", pattern) == [name]


@pytest.mark.parametrize("name", ["übung.bin", LONG])
def test_what_a_plan_removes_may_be_excluded_by_now(sc: Sc, source: str, root: Path, tmp_path: Path, name: str) -> None:
    """A plan would remove what somebody has protected since it was made."""
    store(sc, name, source)
    store(sc, "other", source)
    assert sc("clean", "--all", "-n", "-o", tmp_path / "plan").code == 0
    config(root, f'[clean]\nexclude = ["{name[:3]}*"]\n')
    sc("clean", "--plan", tmp_path / "plan")
    assert names(sc) == [name]


def test_a_name_that_cannot_be_read_may_be_excluded(sc: Sc, source: str, disk: Disk, tmp_path: Path) -> None:
    """An item whose name only its description has would lose its protection with that."""
    store(sc, LONG, source)
    sc("clean", "--all", "-n", "-o", tmp_path / "plan")
    (copy,) = disk.copies()
    facts = json.loads((copy / "item.json").read_text())
    facts["name"] = "something else"
    (copy / "item.json").chmod(0o600)
    (copy / "item.json").write_text(json.dumps(facts))
    shown = sc("doctor")
    assert "does not contain the item's name" in shown.out
    kept = sc("-f", "json", "clean", "--all", "-y", "--exclude", "x*").rows("kept")
    assert [row["reason"] for row in kept] == ["its name cannot be read, so it may be excluded"]
    assert disk.copies() == [copy]
    assert sc("clean", "--all", "-y").code == 0
    assert disk.copies() == []


@pytest.mark.parametrize("how", [["-y"], ["-n"], ["--notice", "1d"]], ids=str)
def test_a_pattern_that_protects_nothing_is_reported(sc: Sc, source: str, root: Path, how: list[str]) -> None:
    """A mistyped pattern would be taken for protection."""
    store(sc, "übung.bin", source)
    config(root, '[clean]\nexclude = ["foo*", "übung*"]\n')
    done = sc("clean", "--all", "--exclude", "ubung*", "--exclude", "*.bin", *how)
    assert done.code == 0
    assert "warning: --exclude 'ubung*' has no effect" in done.err
    assert "\n'foo*' in [clean] exclude has no effect" in f"\n{done.err}"
    assert done.err.count("has no effect") == 2


def test_a_pattern_of_directories_that_matches_nothing_is_reported(sc: Sc, source: str, root: Path) -> None:
    """What dtool leaves in a directory whose name was mistyped would never be cleaned."""
    store(sc, "x", source)
    (root / "mirror" / "a").mkdir(parents=True)
    config(root, '[dtool]\ndirectories = ["studdy-1", "mirror/*"]\n')
    done = sc("clean", "--all", "-y")
    assert "'studdy-1' in [dtool] directories has no effect" in done.err
    assert done.err.count("has no effect") == 1


def test_a_pattern_that_protects_what_is_in_use_is_not_reported(sc: Sc, source: str) -> None:
    """A pattern would be called useless as long as its items are in use."""
    sc("use", source)
    assert "has no effect" not in sc("clean", "--all", "-y", "--exclude", "ref*").err


def test_a_filter_that_matches_nothing_is_reported(sc: Sc, source: str) -> None:
    """An empty list would be taken for an empty cache."""
    sc("use", source)
    assert sc("ls", "--filter", "foo*").err == "no item has a name that matches 'foo*'\n"
    assert sc("ls", "--filter", "ref*", "--filter", "idle") == Done(0, "", "")


def test_a_key_is_no_name(sc: Sc, source: str) -> None:
    """A pattern such as 'b*' would match one key in 16."""
    key = store(sc, "zz", source)
    assert "has no effect" in sc("clean", "--all", "-n", "--exclude", f"{key[:4]}*").err


@pytest.mark.parametrize("name", ["deadbeef.dataset", f"deadbeef.{'0' * 40}"])
def test_a_name_like_those_of_datasets_is_a_name(sc: Sc, source: str, name: str) -> None:
    """An item would be left out of the sums, or be counted as a dataset's, because of its name."""
    store(sc, name, source)
    done = sc("-f", "json", "summary")
    assert done.row("summary")["items"] == 1
    assert [row["dataset"] for row in done.rows("dataset")] == [None]
    assert sc("unuse", name).code == 0


# -- commands that are recommended -------------------------------------------------------------------------------------


def recommended(text: str) -> list[str]:
    """The words of the command that a message ends with."""
    import shlex

    return shlex.split(text.rstrip("\n").rpartition("sc-dtool ")[2])


def test_the_lease_of_a_missing_holder_is_ended_as_recommended(sc: Sc, source: str, tmp_path: Path) -> None:
    """`why` would recommend a command that refuses, and the item could never be removed."""
    root = tmp_path / "another cache"
    assert sc("-C", root, "use", "--holder", "old-host", source).code == 0
    disk = Disk(root)
    (holder,) = disk.holders()
    holder.unlink()
    words = recommended(sc("-C", root, "why", source).err)
    assert words[:2] == ["-C", str(root)]
    assert sc(*words, "-n").out.splitlines()[-1] == "would end 1 lease"
    assert len(disk.leases()) == 1
    assert sc(*words, "-y").out.splitlines()[-1] == "ended 1 lease"
    assert disk.leases() == []
    assert sc(*words, "-y").code == 2


def test_the_recommended_plan_is_carried_out(sc: Sc, source: str, tmp_path: Path, disk: Disk) -> None:
    """A plan in a file with a space in its name could not be carried out as recommended."""
    store(sc, "x", source)
    assert sc(*recommended(sc("clean", "--all", "-n", "-o", tmp_path / "my plan").err)).code == 0
    assert disk.copies() == []


def test_a_cache_is_set_up_as_recommended(sc: Sc, tmp_path: Path) -> None:
    """The command that sets up a missing cache would set up another one."""
    done = sc("-C", tmp_path / "my cache", "ls")
    assert done.code == 10
    assert sc(*recommended(done.err)).path == tmp_path / "my cache"


def test_names_on_disk_are_listed_as_utf8(sc: Sc, source: str, disk: Disk) -> None:
    """A person who looks into the cache with `ls` could not tell which item is which."""
    store(sc, "Proben-ä.csv", source)
    (item,) = {copy.parent for copy in disk.copies()}
    assert os.fsencode(item.name).endswith("-Proben-ä.csv".encode())
    assert layout.key_name(item.name) == "Proben-ä.csv"
