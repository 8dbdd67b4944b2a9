"""`sc-dtool use dtool:…`: items and whole datasets for batch jobs, in one line."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dtool import stores
from faults import store_of
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.cli import main
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.errors import Exit, FetchFailed
from sccache_dtool.fetch import dtool_source
from sccache_dtool.fetch.dtool_source import item_key
from sccache_dtool.fetch.request import DatasetRequest
from sccache_dtool.liveness import caller
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol import holders, sessions
from sccache_dtool.protocol.holders import Holder, HolderList
from sccache_dtool.sets import datasets
from sccache_dtool.sets.manifest import Entry

FILES = stores.FILES
FIRST = stores.identifier("a/first.txt")


@pytest.fixture
def sc(cache_dir, capsys):
    """Runs a command; leases are this process's, or those of a name."""

    def run(*words: object, holder: str | None = None, code: int = Exit.DONE) -> str:
        given = [str(word) for word in words]
        if given[0] in ("use", "unuse"):
            given[1:1] = ["--holder", holder or f"pid:{os.getpid()}"]
        capsys.readouterr()
        found = main.run(given)
        said = capsys.readouterr()
        assert found == code, said.err
        return (said.out + said.err).strip() if given[0] == "unuse" else said.out.strip()

    return run


def leases(cache_dir: Path, uuid: str) -> dict[str, int]:
    cache = Cache(cache_dir)
    return {relpath: cache.item(item_key(uuid, stores.identifier(relpath))).leases for relpath in FILES}


def shown(path: str) -> dict[str, bytes]:
    found = {}
    for directory, _, names in os.walk(path):
        for name in names:
            file = Path(directory, name)
            found[str(file.relative_to(path))] = file.read_bytes()
    return found


@pytest.mark.parametrize("item", ["a/first.txt", "./a/first.txt", FIRST])
def test_an_item_is_used_and_given_back(sc, dataset, cache_dir, item):
    """A batch job must get at one item by the name it knows it by, and let go of it by the same words."""
    word = f"dtool:{dataset.uri}#{item}"
    path = sc("use", word)
    assert Path(path).read_bytes() == b"one\n"
    assert Path(path).name == "first.txt"
    assert leases(cache_dir, dataset.uuid)["a/first.txt"] == 1
    sc("clean", "--all", "-y")
    assert Path(path).exists()
    sc("unuse", word)
    assert leases(cache_dir, dataset.uuid)["a/first.txt"] == 0
    sc("clean", "--all", "-y")
    assert not Path(path).exists()


def test_leases_of_a_killed_use_are_not_denied(sc, dataset, cache_dir):
    """After a `use` of a dataset was killed, its holder would be told that it holds nothing, and keep the items."""
    sc("use", f"dtool:{dataset.uri}#{FIRST}", holder="nightly")  # all that is left of it, before there is a view
    said = sc("unuse", f"dtool:{dataset.uri}", holder="nightly")
    assert "nothing to release" in said
    assert "but 1 on items of the dataset" in said
    assert leases(cache_dir, dataset.uuid)["a/first.txt"] == 1
    sc("unuse", f"dtool:{dataset.uri}#{FIRST}", holder="nightly")
    assert "items of the dataset" not in sc("unuse", f"dtool:{dataset.uri}", holder="nightly")


def test_a_set_with_an_impossible_source_can_be_given_back(sc, dataset, cache_dir):
    """A description that somebody has damaged would keep the leases of everybody who uses the dataset."""
    path = sc("use", f"dtool:{dataset.uri}")
    (description,) = Path(path).parent.glob("data-*.json")
    facts = json.loads(description.read_text())
    for entry in facts["dataSet"]:
        entry["words"] = ["dtool:\ud800"]
    description.unlink()
    description.write_text(json.dumps({**facts, "label": "dtool:\ud800"}))
    assert sc("unuse", path) == ""
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 0)
    sc("unuse", f"dtool:{dataset.uri}#{FIRST}")
    sc("unuse", f"dtool:{dataset.uri}")


@pytest.mark.parametrize("lost", ["description", "session"])
def test_a_set_whose_description_was_lost_is_given_back_by_its_path(sc, dataset, cache_dir, lost):
    """A purge of the file system would keep the items leased until the job's end, whatever the job gives back."""
    path = sc("use", f"dtool:{dataset.uri}")
    if lost == "session":
        shutil.rmtree(Path(path).parent)
    else:
        (description,) = Path(path).parent.glob("data-*.json")
        description.unlink()
    sc("unuse", path, holder="another")
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 1)
    sc("unuse", path)
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 0)
    assert [name for name in os.listdir(cache_dir / ".sc-dtool" / "holders") if name != "gone"] == []
    assert os.listdir(cache_dir / ".sc-dtool" / "sessions") == ["gone"]


def test_it_is_the_item_that_the_plugin_serves(sc, dataset, web):
    """Two copies of everything would be fetched, and neither protect the other's users."""
    path = dataset.item_content_abspath(FIRST)
    assert sc("use", f"dtool:{dataset.uri}#{FIRST}") == path
    assert web.data_requests == 1


def test_an_item_of_an_object_store_is_found_without_its_server(sc, on_s3, cache_dir):
    """A job whose data is there must start while the object store is down: the URI says which item it is."""
    on_s3.item_content_abspath(FIRST)
    nowhere = f"s3://no-such-bucket/{on_s3.uuid}"
    path = sc("use", f"dtool:{nowhere}#a/first.txt")
    assert Path(path).read_bytes() == b"one\n"
    sc("unuse", f"dtool:{nowhere}#a/first.txt")


def test_steps_can_be_taken_with_an_item(sc, web, tmp_path, cache_dir):
    """Archives in datasets are as common as elsewhere."""
    import io
    import tarfile

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        member = tarfile.TarInfo("inner/x.txt")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    stores.make_dataset(f"file://{tmp_path / 'web'}", {"x.tar.gz": data.getvalue()}, "archives")
    path = sc("use", f"dtool:{web.address}/archives#x.tar.gz", "tar")
    assert Path(path, "inner/x.txt").read_bytes() == b"abc"
    assert Path(sc("use", f"dtool:{web.address}/archives#x.tar.gz")).read_bytes() == data.getvalue()


def test_a_local_dataset_is_copied_into_the_cache(sc, tmp_path, cache_dir):
    """Whoever names it here wants it on this disk; the original stays as it is."""
    dataset = stores.make_dataset(f"file://{tmp_path}", FILES, "mine")
    path = sc("use", f"dtool:{tmp_path}/mine#second.csv")
    assert path.startswith(str(cache_dir))
    assert Path(path).read_bytes() == b"two, three\n"
    assert (tmp_path / "mine" / "data" / "second.csv").read_bytes() == b"two, three\n"
    assert dataset.uuid[:8] in path


def test_a_whole_dataset_is_one_directory_with_the_relative_paths(sc, dataset, web, cache_dir):
    """A batch job stages a dataset with one line."""
    path = sc("use", f"dtool:{dataset.uri}")
    assert shown(path) == FILES
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 1)
    sc("clean", "--all", "-y")
    assert shown(path) == FILES
    assert web.data_requests == len(FILES)


@pytest.mark.parametrize("by_path", [False, True])
def test_a_whole_dataset_is_given_back_with_all_its_items(sc, dataset, cache_dir, by_path):
    """Leases that `unuse` forgets would keep the items until the job's end, or for ever."""
    word = f"dtool:{dataset.uri}"
    path = sc("use", word)
    sc("unuse", path if by_path else word)
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 0)
    assert "nothing to release" in sc("unuse", word)
    sc("clean", "--all", "-y")
    assert not os.path.exists(path)


@pytest.mark.parametrize("purged", ["directory", "link"])
@pytest.mark.parametrize("by_path", [False, True])
def test_a_dataset_whose_directory_was_purged_is_given_back(sc, dataset, cache_dir, purged, by_path):
    """The items would stay leased, without a word, by whoever has given back all that it used."""
    word = f"dtool:{dataset.uri}"
    path = sc("use", word)
    if purged == "link":
        (Path(path) / "bare").unlink()
    else:
        shutil.rmtree(path)
    again = sc("use", word)
    assert shown(again) == FILES
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 2)
    sc("unuse", path if by_path else word)
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 1)
    sc("unuse", again if not by_path and os.path.exists(again) else word)
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 0)
    assert "nothing to release" in sc("unuse", word)


def test_giving_back_a_purged_directory_keeps_what_another_one_shows(sc, dataset, cache_dir):
    """A job would lose the protection of what it reads, because it has given back something else."""
    word = f"dtool:{dataset.uri}"
    old = Path(sc("use", word))
    gone = (old / "bare").resolve()
    gone.unlink()
    new = sc("use", word)
    shutil.rmtree(old)
    sc("unuse", old)
    sc("clean", "--all", "-y", "--grace", "0s")
    assert shown(new) == FILES
    assert not gone.parents[1].exists()
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 1)


def test_a_path_of_a_dataset_means_that_very_directory(sc, dataset, cache_dir):
    """A job whose data was replaced would give back what another one reads, and have it deleted."""
    word = f"dtool:{dataset.uri}"
    old = sc("use", word)
    for item in Cache(cache_dir).items():
        if item.key.endswith(stores.identifier("bare")):
            (copy,) = item.copies
    directory = Path(Cache(cache_dir).path(copy)).parents[1]
    newer = directory.with_name(str(copy.generation._replace(random="0" * 16, created=copy.generation.created + 60)))
    shutil.copytree(directory, newer, symlinks=True)
    for lease in (newer / "use").iterdir():
        lease.unlink()
    new = sc("use", word)
    assert old != new
    assert "nothing" not in sc("unuse", old)
    assert "nothing to release" in sc("unuse", old)
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 1)
    sc("clean", "--all", "-y")
    assert shown(new) == FILES


def test_a_dataset_is_known_by_its_uri(sc, dataset):
    """`why` and `status` would find what `use` was given only by its key: the list of what is in it."""
    word = f"dtool:{dataset.uri}"
    sc("use", word)
    assert f"{dataset.uuid[:8]}.dataset is " in sc("why", word)


def test_a_view_that_leads_out_of_the_cache_is_none(sc, dataset, cache_dir):
    """A member of the group could have what lies beside the cache deleted by whoever gives a dataset back."""
    view = Path(sc("use", f"dtool:{dataset.uri}"))
    beside = cache_dir / "g0123456789abcdef-1700000000-8-1"
    (beside / "use").mkdir(parents=True)
    (beside / "thesis").write_text("precious")
    (view / "second.csv").unlink()
    (view / "second.csv").symlink_to(f"../../../../../x/../{beside.name}/payload/x")
    sc("unuse", "--all", "--evict-if-last", f"dtool:{dataset.uri}")
    assert (beside / "thesis").read_text() == "precious"
    assert (beside / "use").is_dir()


def test_giving_back_a_dataset_lists_holders_once(sc, dataset, monkeypatch):
    """A listing for each item would make it minutes for a dataset of some thousand items."""
    word = f"dtool:{dataset.uri}"
    sc("use", "--ttl", "1h", word)
    listed = []
    complete = HolderList.complete
    monkeypatch.setattr(HolderList, "glance", lambda store: pytest.fail("not for each of them"))
    monkeypatch.setattr(HolderList, "complete", lambda store: listed.append(1) or complete(store))
    sc("unuse", word)
    assert len(listed) == 1


def test_uses_of_a_dataset_are_counted(sc, dataset, cache_dir):
    """Who uses it twice gives it back twice, and each keeps all its items in between."""
    word = f"dtool:{dataset.uri}"
    assert len({sc("use", word), sc("use", word), sc("use", word, holder="pid:1")}) == 3
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 3)
    sc("unuse", word)
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 2)
    sc("unuse", "--all", word)
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 1)
    sc("unuse", "--evict-if-last", word, holder="pid:1")
    assert not any(item.copies for item in Cache(cache_dir).items())


def test_giving_back_a_dataset_leaves_single_uses_of_its_items(sc, dataset, cache_dir):
    """A job that uses both must not lose one with the other."""
    item, whole = f"dtool:{dataset.uri}#bare", f"dtool:{dataset.uri}"
    sc("use", item)
    sc("use", whole)
    sc("unuse", whole)
    assert leases(cache_dir, dataset.uuid) == {**dict.fromkeys(FILES, 0), "bare": 1}


def test_a_picture_of_evicted_items_is_not_shown_again(sc, dataset, cache_dir, web):
    """A directory of dangling links is what the next job would get."""
    word = f"dtool:{dataset.uri}"
    before = sc("use", word)
    sc("unuse", word)
    assert Cache(cache_dir).remove(item_key(dataset.uuid, FIRST)) == 4
    after = sc("use", word)
    assert after != before
    assert shown(after) == FILES
    assert web.data_requests == len(FILES) + 1
    assert not os.path.exists(before)


def test_a_dataset_that_is_there_needs_no_server(sc, dataset, web, cache_dir, monkeypatch):
    """As for items: which they are is read from a list in the cache."""
    word = f"dtool:{dataset.uri}"
    sc("use", word)
    sc("unuse", word)
    monkeypatch.setattr(dtool_source, "uuid_of", lambda uri: dataset.uuid)  # as where the URI ends in it
    web.stop()
    assert shown(sc("use", word)) == FILES
    sc("unuse", word)


def test_if_one_item_fails_none_is_held(sc, dataset, web, cache_dir):
    """A job that gets no path gives nothing back."""
    web.before_data = lambda number: b"X"
    assert sc("use", f"dtool:{dataset.uri}", code=Exit.FETCH_FAILED) == ""
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 0)
    names = [name for name in os.listdir(cache_dir / ".sc-dtool" / "holders") if name != "gone"]
    assert names == []


def test_json_says_how_many_items_there_are(sc, dataset):
    """Scripts must not parse prose."""
    record = json.loads(sc("-f", "json", "use", "--holder", f"pid:{os.getpid()}", f"dtool:{dataset.uri}"))
    assert record["items"] == len(FILES)
    assert shown(record["path"]) == FILES


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["dtool:"], Exit.USAGE, "does not name a dataset"),
        (["dtool:http://127.0.0.1:9/x#"], Exit.USAGE, "does not name an item"),
        (["dtool:nosuch://a/b#c"], Exit.FETCH_FAILED, "dtool has no storage broker for 'nosuch'"),
        (["dtool:/no/such/dataset#c"], Exit.FETCH_FAILED, "not a dataset"),
        (["dtool:/no/such/dataset", "tar"], Exit.USAGE, "cannot be applied to a whole dataset"),
        (["-n", "x", "dtool:/no/such/dataset"], Exit.USAGE, "-n cannot be used with a whole dataset"),
    ],
)
def test_what_makes_no_sense_is_said_so(cache_dir, capsys, words, code, said):
    """An error must say what to write instead."""
    assert main.run(["use", "--holder", f"pid:{os.getpid()}", *words]) == code
    assert said in capsys.readouterr().err


def test_run_takes_an_item(dataset, cache_dir, capfd):
    """Jobs that are one command need neither `use` nor `unuse`."""
    assert main.run(["run", f"dtool:{dataset.uri}#second.csv", "--", "cat", "{}"]) == 0
    assert capfd.readouterr().out == "two, three\n"


def test_run_takes_a_whole_dataset(dataset, cache_dir, capfd):
    """A job that is one command stages its dataset with one line, and nobody can delete it underneath."""
    clean = f"{sys.executable} -m sccache_dtool -C {cache_dir} clean --all -y"
    script = f"{clean}; cd $SC_DTOOL_PATH && cat second.csv a/first.txt; ls {cache_dir}/.sc-dtool/holders | grep -c ^r"
    assert main.run(["run", f"dtool:{dataset.uri}", "--", "sh", "-c", script]) == 0
    said = capfd.readouterr().out
    assert said.endswith("two, three\none\n1\n")  # one holder for all items, and so one heartbeat
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 0)
    assert [name for name in os.listdir(cache_dir / ".sc-dtool" / "holders") if name != "gone"] == []


def test_run_gives_back_what_it_can(dataset, cache_dir, capfd):
    """One lease that cannot be given back would keep all the others, and change the exit code of the command."""
    history = 'h=$(readlink -f "$1"/second.csv); h=${h%/*/*/*}/history; rmdir $h && touch $h; exit 7'
    assert main.run(["run", f"dtool:{dataset.uri}", "--", "sh", "-c", history, "sh", "{}"]) == 7
    assert "could not release 1 of 4 leases" in capfd.readouterr().err
    assert leases(cache_dir, dataset.uuid) == {**dict.fromkeys(FILES, 0), "second.csv": 1}


def test_run_holds_nothing_if_one_item_fails(dataset, web, cache_dir):
    """The command would run on half a dataset."""
    web.before_data = lambda number: b"X"
    assert main.run(["run", f"dtool:{dataset.uri}", "--", "true"]) == Exit.FETCH_FAILED
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 0)
    assert [name for name in os.listdir(cache_dir / ".sc-dtool" / "holders") if name != "gone"] == []


def test_what_is_staged_shows_heartbeats_until_all_is_there(dataset, web, cache_dir, monkeypatch):
    """Items with a lifetime would be taken for forgotten, and removed, while the rest is being fetched for hours."""
    beaten = threading.Event()
    beat = Holder.beat

    def note(holder: Holder) -> None:
        beat(holder)
        if threading.current_thread().name == "sc-dtool heartbeat":
            beaten.set()

    def last(number: int) -> None:
        assert number < len(FILES) or beaten.wait(60)  # the last one takes long

    monkeypatch.setattr(Holder, "beat", note)
    web.before_data = last
    owner = caller.Owner(caller.NAMED, None, "a job", "")
    entries = [Entry("", DatasetRequest(dataset.uri, dataset.uuid))]
    assert len(Cache(cache_dir).hold_many(owner, entries, UseOptions(ttl=1.0))) == len(FILES)
    assert beaten.is_set()


@pytest.mark.parametrize("times", [1, 1000])
def test_a_holder_that_was_revoked_while_the_rest_was_fetched_is_noticed(sc, dataset, cache_dir, monkeypatch, times):
    """A job would be given a directory whose files the next `clean` deletes."""
    layout = Layout(str(cache_dir))
    monkeypatch.setattr(Holder, "confirm", Holder.prove)  # as if its last heartbeat were long ago
    real = sessions.create

    def create(*given: Any, **more: Any) -> Any:
        nonlocal times
        times -= 1
        if times >= 0:
            for name in HolderList.glance(store_of(FileSystem(), layout)).present.values():
                holders.revoke(store_of(FileSystem(), layout), name)
        return real(*given, **more)

    again = times == 1
    monkeypatch.setattr(sessions, "create", create)
    path = sc("use", f"dtool:{dataset.uri}", code=Exit.DONE if again else Exit.LEASE_LOST)
    assert set(leases(cache_dir, dataset.uuid).values()) == {1 if again else 0}
    if again:
        Cache(cache_dir).clean(Rules(everything=True))
        assert shown(path) == FILES


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        [],
        {},
        {"items": []},
        {"items": {FIRST: None}},
        {"items": {FIRST: {"size_in_bytes": 1}}},
        {"items": {FIRST: {"relpath": 7, "size_in_bytes": 1}}},
        {"items": {FIRST: {"relpath": "x"}}},
        {"items": {FIRST: {"relpath": "x", "size_in_bytes": "many"}}},
        {"items": {FIRST: {"relpath": "x", "size_in_bytes": float("inf")}}},
        {"items": {FIRST: {"relpath": "x", "size_in_bytes": -1}}},
    ],
)
def test_a_damaged_manifest_is_an_error_in_words(cache_dir, monkeypatch, manifest):
    """What a server sends in the place of a manifest would end in a fault of this program."""
    uuid = "12345678-1234-1234-1234-123456789abc"
    dataset = SimpleNamespace(uuid=uuid, uri="http://h/x", name="x", _manifest=manifest, _storage_broker=None)
    monkeypatch.setattr(dtool_source, "open_dataset", lambda uri: dataset)
    cache = Cache(cache_dir)
    one = dtool_source.item_request(uuid, FIRST, str(cache_dir), lambda: dataset)
    with pytest.raises(FetchFailed, match="manifest of http://h/x is damaged"):
        one.complete()
    request = DatasetRequest(f"http://h/{uuid}", uuid)
    with pytest.raises(FetchFailed, match="is damaged"):
        datasets.bytes_of(request)
    with pytest.raises(FetchFailed, match="is damaged"):
        cache.use_many([Entry("", request)])


def test_a_dataset_is_an_entry_of_a_list(sc, dataset, cache_dir, tmp_path):
    """A job that reads a dataset and a reference would need two commands, and two traps."""
    (tmp_path / "ref.fa").write_bytes(b"ACGT")
    (tmp_path / "items.txt").write_text(f"{tmp_path}/ref.fa\ndtool:{dataset.uri} @study/data\n")
    path = sc("use", "--from", tmp_path / "items.txt")
    assert shown(path) == {"ref.fa": b"ACGT"} | {f"study/data/{name}": content for name, content in FILES.items()}
    sc("unuse", path)
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 0)
    (tmp_path / "items.txt").write_text(f"{tmp_path}/ref.fa @study/x\ndtool:{dataset.uri} @study\n")
    assert sc("use", "--from", tmp_path / "items.txt", code=Exit.USAGE) == ""


@pytest.mark.parametrize("content", ["", "{}", '{"items": {"x": 7}}', '{"items": {"x": ["y", 1]}}'])
def test_a_damaged_list_of_items_is_an_error_in_words(sc, dataset, cache_dir, capsys, content):
    """A file that somebody has damaged would be a fault of this program, or an empty dataset."""
    word = f"dtool:{dataset.uri}"
    sc("unuse", sc("use", word))
    cache = Cache(cache_dir)
    (copy,) = cache.item(DatasetRequest(dataset.uri, dataset.uuid).key).copies
    path = cache.path(copy)
    path.chmod(0o600)
    path.write_text(content.ljust(copy.generation.bytes))  # of another size it would be fetched again
    assert main.run(["use", "--holder", f"pid:{os.getpid()}", word]) == Exit.FETCH_FAILED
    assert "is damaged" in capsys.readouterr().err
    assert leases(cache_dir, dataset.uuid) == dict.fromkeys(FILES, 0)


@pytest.mark.parametrize("how", ["add", "from", "python"])
def test_a_session_lists_the_items_of_a_dataset_that_is_not_fetched(sc, dataset, cache_dir, tmp_path, how):
    """A viewer could not show what is in a dataset before all of it is there; or show it, and not open it."""
    if how == "python":
        session = Cache(cache_dir).create_session({"/data": f"dtool:{dataset.uri}"}).id
    else:
        manifest = tmp_path / "items.txt"
        manifest.write_text(f"dtool:{dataset.uri} @data\n")
        given = ["--add", f"dtool:{dataset.uri}:/data"] if how == "add" else ["--from", manifest]
        session = sc("session", "create", "--holder", f"pid:{os.getpid()}", *given)
    found = Cache(cache_dir).session(session)
    assert sorted(one.mount for one in found.items) == sorted(f"/data/{relpath}" for relpath in FILES)
    folder = found.object("/data", children=True)
    assert {one.name: one.type for one in folder.children} == {
        relpath.split("/")[0]: "folder" if "/" in relpath else "item" for relpath in FILES
    }
    absent = found.object("/data/a/first.txt")
    assert (absent.type, absent.state, absent.children) == ("item", "absent", None)
    lock = sc("lock", "get", session, "/data/a/first.txt")
    assert sc("lock", "cat", lock) == "one"
    assert found.object("/data/a/first.txt").state == "cached"
    found.delete()


def test_an_item_of_a_dataset_is_locked_for_a_session(sc, dataset, cache_dir):
    """An item could be put into a session, but never be locked."""
    session = sc("session", "create", "--holder", "ada", "--add", f"dtool:{dataset.uri}#a/first.txt:/x")
    lock = sc("lock", "get", session, "/x")
    assert sc("lock", "cat", lock) == "one"
    sc("session", "rm", session)
    assert leases(cache_dir, dataset.uuid)["a/first.txt"] == 0
