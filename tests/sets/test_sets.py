"""Many items at once: leases on all of them or on none, and one directory that shows them."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import httpserver
from cli.tool import SC_DTOOL, Disk, Done, call, on_terminal, start
from sccache_dtool.cache import Cache, UseOptions
from sccache_dtool.errors import Exit, FetchFailed, LeaseLost, UsageError
from sccache_dtool.liveness import caller
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol import holders
from sccache_dtool.protocol.holders import Holder, HolderList
from sccache_dtool.sets import manifest as manifests
from signals import interrupt
from waiting import wait_until

FILES = {"a/x": b"one\n", "a/y": b"two\n", "z": b"three\n"}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """Files, by the path at which they are to appear."""
    made = {}
    for number, (path, content) in enumerate(FILES.items()):
        file = tmp_path / f"source{number}"
        file.write_bytes(content)
        made[path] = str(file)
    return made


@pytest.fixture
def manifest(tmp_path: Path, sources: Mapping[str, str]) -> Path:
    """A list of them."""
    file = tmp_path / "items.txt"
    file.write_text("".join(f"{source} @{path}\n" for path, source in sources.items()))
    return file


def shown(view: str | os.PathLike[str]) -> dict[str, bytes]:
    """What is in a view."""
    found = {}
    for directory, _, names in os.walk(view):
        for name in names:
            file = Path(directory, name)
            found[str(file.relative_to(view))] = file.read_bytes()
    return found


def sessions(disk: Disk) -> list[str]:
    """The sessions that have not ended."""
    directory = disk.control / "sessions"
    return sorted(name for name in os.listdir(directory) if name != "gone") if directory.is_dir() else []


def nothing_is_held(disk: Disk) -> bool:
    return not (disk.leases() or disk.holders() or sessions(disk) or disk.names("tmp"))


# -- from Python -------------------------------------------------------------------------------------------------------


def test_a_program_uses_many_items_at_once(root: Path, disk: Disk, sources: Mapping[str, str]) -> None:
    """A program that reads twenty files would need twenty leases, and twenty chances to forget one."""
    cache = Cache(root)
    with cache.use_many(sources) as held:
        assert shown(held) == FILES
        assert {path: file.read_bytes() for path, file in held.items()} == FILES
        assert all("/items/" in str(file) for file in held.values())
        assert len(held) == len(disk.leases()) == len(FILES)
        assert len({lease.name.rpartition(".")[0] for lease in disk.leases()}) == 1
        cache.clean(Rules(everything=True))
        held.check()
        assert shown(held) == FILES
    assert nothing_is_held(disk)
    assert not os.path.exists(held)
    held.release()
    with pytest.raises(LeaseLost, match="was released"):
        held.check()
    cache.clean(Rules(everything=True))
    assert not disk.copies()


def test_each_use_is_counted_once(root: Path, sources: Mapping[str, str]) -> None:
    """What `clean` keeps because it is used often would depend on how it was asked for."""
    cache = Cache(root)
    for _ in range(3):
        cache.use_many(sources).release()
    for source in sources.values():
        uses = cache.uses(cache.key_for([source]))
        assert [use.how for use in uses] == ["released"] * 3


def test_an_item_may_appear_at_several_paths(root: Path, disk: Disk) -> None:
    """Two programs of one job want the same file under two names; it must not be fetched twice."""
    with httpserver.serve() as server:
        url = server.page("/ref.fa", b"ACGT")
        with Cache(root).use_many({f"{number}/ref.fa": url for number in range(5)}) as held:
            assert set(shown(held).values()) == {b"ACGT"}
            assert len(disk.leases()) == 5
            assert len(disk.copies()) == 1
        assert server.gets["/ref.fa"] == 1


def test_a_set_of_a_manifest_is_used(root: Path, manifest: Path, disk: Disk) -> None:
    """The same list must serve a program and a job script."""
    cache = Cache(root)
    with cache.use_many(cache.manifest(manifest)) as held:
        assert shown(held) == FILES
    assert nothing_is_held(disk)


@pytest.mark.parametrize("there", [False, True])
def test_if_one_item_cannot_be_had_none_is_held(
    root: Path, disk: Disk, sources: Mapping[str, str], there: bool
) -> None:
    """A job that was refused would keep what it cannot use, and nobody would give it back."""
    cache = Cache(root)
    if there:
        cache.use_many(sources).release()
    with pytest.raises(FetchFailed, match="No such file") as caught:
        cache.use_many({**sources, "lost": "/no/such/file"})
    assert "for lost ('lost'); no item of the set is held" in caught.value.details
    assert nothing_is_held(disk)


def test_an_item_that_cannot_be_had_ends_the_wait_for_others(root: Path, sources: Mapping[str, str]) -> None:
    """A typing error would be reported after the hours that another process takes to fetch something else."""
    cache = Cache(root)
    with httpserver.serve() as server:
        slow, lost = server.page("/slow", hold=True), server.page("/lost", status=404)
        fetched = threading.Thread(target=Cache(root).use, args=(slow,))
        fetched.start()
        server.wait_for_gets("/slow")
        with pytest.raises(FetchFailed, match="404"):
            cache.use_many({"slow": slow, "lost": lost})
        assert fetched.is_alive()  # nobody has waited for it
        server.release()
        fetched.join()


def test_a_download_ends_when_nobody_wants_it_any_more(root: Path, disk: Disk) -> None:
    """A hundred gigabytes would be downloaded before the error is reported that was there from the start."""
    with httpserver.serve() as server:
        large, lost = server.page("/large", bytes(1 << 22), drip=1 << 16), server.page("/lost", status=404, hold=True)
        failed: list[BaseException] = []

        def use() -> None:
            try:
                Cache(root).use_many({"large": large, "lost": lost})
            except FetchFailed as error:
                failed.append(error)

        using = threading.Thread(target=use)
        using.start()
        server.wait_for_gets("/large")
        server.wait_for_gets("/lost")
        server.release()
        while using.is_alive():  # it ends at the next bytes that come
            server.let_drop()
            using.join(0.01)
        assert failed
        assert not disk.copies()
        assert not disk.leases()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_although_a_server_is_silent(disk: Disk, tmp_path: Path, number: signal.Signals) -> None:
    """A batch system kills what does not end within half a minute, and then everything stays leased."""
    with httpserver.serve() as server:
        urls = [server.page("/there", b"x"), server.page("/silent", b"x" * 10, stall_after=3)]
        (tmp_path / "items.txt").write_text("\n".join(urls))
        argv = [SC_DTOOL, "use", "--holder", f"pid:{os.getpid()}", "--from", str(tmp_path / "items.txt")]
        with start(argv) as process:
            server.wait_for_gets("/silent")
            wait_until(disk.leases, "the other item is there")
            process.send_signal(number)
            assert process.wait(timeout=50) == 128 + number  # less than the client waits for a silent server
        assert not disk.leases()
        assert not sessions(disk)
        assert call("clean", "--all", "-y").code == 0
        assert nothing_is_held(disk)


def test_many_items_are_fetched_at_the_same_time(root: Path) -> None:
    """A thousand small files would take a thousand round trips, one after the other."""
    with httpserver.serve() as server:
        urls = {str(number): server.page(f"/{number}", b"x", hold=True) for number in range(4)}
        using = threading.Thread(target=lambda: Cache(root).use_many(urls).release())
        using.start()
        for number in range(4):
            server.wait_for_gets(f"/{number}")  # while none has been answered
        server.release()
        using.join()


class Shown:
    """A progress display."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, label: str, total: int | None, there: int = 0) -> None:
        self.calls.append(("start", label, total))

    def advance(self, n: int) -> None:
        self.calls.append(("advance", n))

    def stage(self, text: str) -> None:
        self.calls.append(("stage", text))

    def counted(self, done: int, total: int) -> None:
        self.calls.append(("counted", done, total))

    def done(self) -> None:
        self.calls.append(("done",))


@pytest.mark.parametrize("sized", [False, True])
def test_all_fetches_are_shown_as_one(root: Path, tmp_path: Path, sources: Mapping[str, str], sized: bool) -> None:
    """Eight progress bars would overwrite each other."""
    file = tmp_path / "items.toml"
    size = [f"size = {len(content)}\n" if sized else "" for content in FILES.values()]
    file.write_text(
        "".join(f'[[item]]\nsource = "{s}"\nat = "{p}"\n{n}' for (p, s), n in zip(sources.items(), size, strict=True))
    )
    display = Shown()
    cache = Cache(root, progress=display)
    with cache.use_many(cache.manifest(file)):
        total = sum(map(len, FILES.values()))
        assert display.calls[0] == ("start", "3 items", total if sized else None)
        assert display.calls[-1] == ("done",)
        assert [call[0] for call in display.calls].count("start") == 1
        assert sum(call[1] for call in display.calls if call[0] == "advance") == total
        counted = [call[1:] for call in display.calls if call[0] == "counted"]
        assert counted[-1] == (3, 3)
        assert counted == sorted(counted)
    display.calls.clear()
    cache.use_many(cache.manifest(file)).release()
    assert display.calls == []


def test_a_terminal_shows_how_many_items_are_there(root: Path, tmp_path: Path) -> None:
    """Without the sizes of all items, nobody would see whether a set of a thousand is nearly there."""
    with httpserver.serve() as server:
        urls = [server.page(f"/{number}", b"content") for number in range(3)]
        held_back = server.page("/last", bytes(1 << 20), drip=1 << 19)
        file = tmp_path / "items"
        file.write_text("\n".join([*urls, held_back]) + "\n")
        with on_terminal([SC_DTOOL, "-C", str(root), "use", "--from", str(file), "--holder", "a"]) as using:
            server.let_drop()
            wait_until(lambda: "3 of 4 items" in using.text, "three items are there")
            server.let_drop(2)
            assert using.finish() == 0


@pytest.mark.parametrize("owner", ["program", "name"])
def test_a_set_that_somebody_deletes_is_known_to_be_lost(root: Path, sources: Mapping[str, str], owner: str) -> None:
    """A program would read files that are deleted meanwhile, until its next heartbeat hours later."""
    cache = Cache(root)
    if owner == "program":
        held = cache.use_many(sources)
    else:
        held = cache.hold_many(cache.owner("nightly"), manifests.parse_mapping(sources, cache.request))
    held.check()
    assert call("-C", root, "session", "rm", held.session).code == 0
    with pytest.raises(LeaseLost):
        held.check()
    held.release()


def test_a_gate_that_a_purge_has_removed_loses_no_lease(root: Path, disk: Disk, sources: Mapping[str, str]) -> None:
    """A program would stop although its data is kept."""
    with Cache(root).use_many(sources) as held:
        (disk.control / "sessions" / held.session / "use").rmdir()
        held.check()


def test_a_loss_is_told_to_whoever_reads(root: Path, sources: Mapping[str, str]) -> None:
    """A program that was stopped for long would read files while the next `clean` deletes them."""
    lost: list[LeaseLost] = []
    cache = Cache(root, on_lost=lost.append)
    held = cache.use_many(sources)
    for name in HolderList.glance(cache.store).present.values():
        assert holders.revoke(cache.store, name)
    with pytest.raises(LeaseLost):
        held.holder.beat()
    wait_until(lambda: lost, "the thread that shows heartbeats tells of it")
    with pytest.raises(LeaseLost):
        held.check()
    held.release()


def test_what_a_program_forgets_is_released_at_its_end(root: Path, disk: Disk, manifest: Path) -> None:
    """Whoever leaves a notebook open would keep a thousand items, even after its end."""
    script = (
        "import sys; from sccache_dtool import Cache\n"
        "cache = Cache(sys.argv[1]); held = cache.use_many(cache.manifest(sys.argv[2])); print(len(held))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(root), str(manifest)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("3\n", "")
    assert nothing_is_held(disk)


def test_a_forked_child_does_not_release_what_its_parent_holds(
    root: Path, disk: Disk, sources: Mapping[str, str]
) -> None:
    """A worker that ends first would take the data away from the program that started it."""
    held = Cache(root).use_many(sources)
    pid = os.fork()
    if pid == 0:
        held.release()
        os._exit(0)
    os.waitpid(pid, 0)
    assert shown(held) == FILES
    assert len(disk.leases()) == len(FILES)
    held.release()
    assert nothing_is_held(disk)


def test_a_forked_child_is_told_what_its_parent_was_told(root: Path, sources: Mapping[str, str]) -> None:
    """A worker that checks the set before it reads would refuse to read what its parent holds."""
    held = Cache(root).use_many(sources)
    pid = os.fork()
    if pid == 0:
        try:
            held.check()
        except LeaseLost:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    held.release()


@pytest.mark.parametrize("what", ["all", "list", "entries", "lists of all"])
def test_a_set_is_released_whatever_became_of_its_session(
    root: Path, disk: Disk, sources: Mapping[str, str], what: str
) -> None:
    """After a purge, or a change by somebody else, a program would keep its items for as long as it runs."""
    held = Cache(root).use_many(sources)
    session = Path(held.view).parent
    (file,) = session.glob("data-*")
    if what == "all":
        shutil.rmtree(session)
    elif what == "list":
        file.unlink()
    elif what == "entries":
        text = json.loads(file.read_text())
        file.write_text(json.dumps({**text, "dataSet": text["dataSet"][:1]}))
    else:
        shutil.rmtree(session.parent)
    held.release()
    assert nothing_is_held(disk)
    held.release()


def test_whoever_reads_learns_that_somebody_has_deleted_the_session(
    root: Path, sc: Callable[..., Done], disk: Disk, sources: Mapping[str, str]
) -> None:
    """A program would read files while the next `clean` deletes them, and would not be told."""
    lost: list[LeaseLost] = []
    held = Cache(root, on_lost=lost.append).use_many(sources)
    assert sc("session", "rm", held.session).code == 0
    assert not disk.leases()
    with pytest.raises(LeaseLost):
        held.holder.beat()
    wait_until(lambda: lost, "the thread that shows heartbeats tells of it")
    with pytest.raises(LeaseLost):
        held.check()
    held.release()
    assert nothing_is_held(disk)


def test_a_failure_at_the_very_end_leaves_nothing(
    root: Path, disk: Disk, sources: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that nobody was given would be kept for as long as the program runs."""
    confirm = Holder.confirm

    def failing(holder: Holder) -> bool:
        if sessions(disk):
            raise OSError(errno.EIO, "Input/output error")
        return confirm(holder)

    monkeypatch.setattr(Holder, "confirm", failing)
    with pytest.raises(OSError, match="Input/output"):
        Cache(root).use_many(sources)
    assert nothing_is_held(disk)


def test_a_set_is_not_held_after_an_interrupt(root: Path, disk: Disk, sources: Mapping[str, str]) -> None:
    """After a Ctrl-C in a notebook, nothing but the end of the notebook would release a set."""

    def interrupt_here() -> None:
        raise KeyboardInterrupt

    cache = Cache(root)
    step = 0
    while True:
        step += 1
        try:
            if not interrupt(lambda: cache.use_many(sources).release(), interrupt_here, step, "protocol/program.py"):
                break
        except KeyboardInterrupt:
            pass
        cache.close()
        holders = {path.name.partition(".")[0] for path in disk.holders()}
        assert holders.isdisjoint(path.name.partition(".")[0] for path in disk.leases())
    assert step > 10


def test_a_set_that_was_released_takes_no_memory(root: Path, sources: Mapping[str, str]) -> None:
    """A program that uses one set after the other would grow until it is killed."""
    cache = Cache(root)
    sets = []
    for _ in range(3):
        held = cache.use_many(sources)
        held.release()
        sets.append(weakref.ref(held))
    del held
    gc.collect()
    assert [one() for one in sets[:-1]] == [None, None]


def test_close_releases_sets_as_well(root: Path, disk: Disk, sources: Mapping[str, str]) -> None:
    """A signal handler that releases everything would leave the larger part."""
    cache = Cache(root)
    cache.use_many(sources)
    cache.use(sources["z"])
    cache.close()
    assert nothing_is_held(disk)


def test_a_set_is_held_for_somebody_else_under_a_path_that_is_known_before(
    root: Path, disk: Disk, sources: Mapping[str, str], manifest: Path
) -> None:
    """A job script must be told its directory before the job's data is there."""
    cache = Cache(root)
    owner = caller.Owner(caller.NAMED, None, "a job", "")
    id = "s0123456789abcdef"
    held = cache.hold_many(owner, cache.manifest(manifest), UseOptions(ttl=3600.0), session=id, label="job.sh")
    assert held.view == str(disk.control / "sessions" / id / "view")
    assert shown(held.view) == FILES
    with pytest.raises(UsageError, match="already exists"):
        cache.hold_many(owner, cache.manifest(manifest), session=id)
    assert len(disk.leases()) == len(FILES)
    assert cache.release_set([owner], id) is not None
    assert cache.release_set([owner], id) is None
    assert nothing_is_held(disk)


# -- from the shell ----------------------------------------------------------------------------------------------------


def test_a_list_is_used_and_given_back(sc: Callable[..., Done], disk: Disk, manifest: Path) -> None:
    """A job script would need twenty commands and twenty traps for twenty files."""
    view = sc("use", "--from", manifest).path
    assert shown(view) == FILES
    assert view == disk.control / "sessions" / sessions(disk)[0] / "view"
    assert sc("clean", "--all", "-y").code == 0
    assert shown(view) == FILES
    assert sc("unuse", view).err == ""
    assert nothing_is_held(disk)
    again = sc("unuse", view)
    assert again.code == 0
    assert "was deleted at" in again.err


def test_a_list_comes_from_standard_input(manifest: Path, disk: Disk) -> None:
    """What another program lists would have to be written into a file first."""
    with open(manifest) as file:
        view = call("use", "--holder", f"pid:{os.getpid()}", "--from", "-", stdin=file).path
    assert shown(view) == FILES
    assert call("unuse", "--holder", f"pid:{os.getpid()}", f"{view}/a/x").code == 0  # any path in it will do
    assert nothing_is_held(disk)


def test_a_result_for_programs_names_the_session(sc: Callable[..., Done], manifest: Path, disk: Disk) -> None:
    """Scripts must not take a path apart."""
    row = sc("-f", "json", "use", "--holder", f"pid:{os.getpid()}", "--from", manifest).row("use")
    assert (row["session"], row["items"]) == (sessions(disk)[0], 3)
    assert sc("-f", "json", "unuse", "--holder", f"pid:{os.getpid()}", row["path"]).row("unuse")["released"] == 1


def test_the_set_of_another_holder_is_not_given_back(sc: Callable[..., Done], manifest: Path, disk: Disk) -> None:
    """A script that is given the wrong path would take the data from another job."""
    view = sc("use", "--holder", "nightly", "--from", manifest).path
    done = sc("unuse", view)
    assert done.code == 0
    assert "nothing to release" in done.err
    assert "[nightly]" in done.err
    assert len(disk.leases()) == len(FILES)
    sc("unuse", "--holder", "nightly", view)
    assert nothing_is_held(disk)


def test_items_are_removed_with_the_last_use(sc: Callable[..., Done], manifest: Path, disk: Disk) -> None:
    """On a small disk, a job must be able to take all of its data along."""
    first, second = sc("use", "--from", manifest).path, sc("use", "--from", manifest).path
    assert first != second
    sc("unuse", "--evict-if-last", first)
    assert shown(second) == FILES
    sc("unuse", "--evict-if-last", second)
    assert not disk.copies()


def test_a_command_sees_the_set(sc: Callable[..., Done], manifest: Path, disk: Disk, tmp_path: Path) -> None:
    """A job that is one command would need a script around it."""
    out = tmp_path / "out"
    script = (
        f'cat "$SC_DTOOL_VIEW/a/x" "$SC_DTOOL_PATH/a/y" "$1/z" > {out}; ls {disk.control}/sessions >> {out}; exit 7'
    )
    assert sc("run", "--from", manifest, "--", "sh", "-c", script, "sh", "{}").code == 7
    *content, _, session = out.read_text().splitlines()
    assert content == ["one", "two", "three"]
    assert session.startswith("s")
    assert nothing_is_held(disk)


def test_a_command_of_one_item_is_not_given_another_ones_view(
    sc: Callable[..., Done], sources: Mapping[str, str], tmp_path: Path
) -> None:
    """A script would look for its data in a directory of one file."""
    done = sc("run", sources["z"], "--", "sh", "-c", 'test -z "${SC_DTOOL_VIEW+x}"')
    assert done.code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "items.txt", "/a"], "--from cannot be combined"),
        (["--from", "items.txt", "-n", "x"], "--from cannot be combined"),
        (["--from", "/no/such/list"], "cannot read /no/such/list"),
        (["--from", "/dev/null"], "/dev/null names no item"),
    ],
)
def test_what_makes_no_sense_is_said_so(
    sc: Callable[..., Done], disk: Disk, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job would begin without its data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.txt").write_text("/etc/hostname\n")
    for command in ("use", "run"):
        after = ["--", "true"] if command == "run" else []
        done = sc(command, *words, *after)
        assert (done.code, done.out) == (Exit.USAGE, "")
        assert said in done.err
    assert disk.left() == []


@pytest.mark.parametrize("pattern", ["expanded", "literal"])
def test_a_pattern_is_told_what_to_do_instead(
    sc: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """`use many/f*` is what everybody tries first; the error would speak of steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "many").mkdir()
    for name in ("f1", "f2"):
        (tmp_path / "many" / name).write_text(name)
    done = sc("use", *(["many/f1", "many/f2"] if pattern == "expanded" else ["many/f*"]))
    assert done.code in (Exit.USAGE, Exit.FETCH_FAILED)
    assert "sc-dtool use --from -" in done.err


def test_a_pattern_of_absolute_paths_says_that_it_makes_one_item(sc: Callable[..., Done], tmp_path: Path) -> None:
    """`use /data/f*` succeeds, and whoever wanted twenty items would not learn that they are one, nor what to do."""
    files = [tmp_path / name for name in ("f1", "f2")]
    for file in files:
        file.write_text(file.name)
    done = sc("use", *files)
    assert done.code == 0
    assert sorted(os.listdir(done.out.strip())) == ["f1", "f2"]
    assert done.err.count("these 2 sources become one item, a directory with all of them; to use many items") == 1
    assert "sc-dtool use --from -" in done.err
    assert sc("use", *files).err == ""  # it is there, and was meant so


def test_the_error_says_which_of_a_thousand(sc: Callable[..., Done], tmp_path: Path, disk: Disk) -> None:
    """Whoever lists a thousand files would search for the one that is missing."""
    lines = []
    for number in range(100):
        file = tmp_path / f"f{number}"
        if number != 57:
            file.write_text(str(number))
        lines.append(f"{file}\n")
    (tmp_path / "items.txt").write_text("".join(lines))
    done = sc("use", "--from", tmp_path / "items.txt")
    assert (done.code, done.out) == (Exit.FETCH_FAILED, "")
    assert f"cannot fetch file:{tmp_path}/f57: No such file" in done.err
    assert f"for f57 ({tmp_path}/items.txt:58)" in done.err
    assert nothing_is_held(disk)


def test_a_set_goes_where_there_is_room_for_all_of_it(sc: Callable[..., Done], tmp_path: Path, manifest: Path) -> None:
    """Of several caches, one that has everything is used, and what fits nowhere is refused before it is fetched."""
    first, second = tmp_path / "first", tmp_path / "second"
    Cache(first).init()
    Cache(second).init()
    assert str(sc("use", "-d", f"{first}:{second}", "--from", manifest).path).startswith(f"{first}/")
    view = sc("use", "-d", f"{second}:{first}", "--from", manifest).path
    assert str(view).startswith(f"{first}/")
    sc("unuse", "-d", f"{second}:{first}", view)
    assert not view.exists()
    other = tmp_path / "other.txt"
    other.write_text("/etc/hostname\n")
    done = sc("use", "--size", "8000PB", "-d", f"{first}:{second}", "--from", other)
    assert done.code == Exit.NO_SPACE


# -- others ------------------------------------------------------------------------------------------------------------


def test_links_that_others_have_made_lead_nowhere(
    sc: Callable[..., Done], disk: Disk, manifest: Path, tmp_path: Path
) -> None:
    """A member of the group could have what lies beside the cache deleted by whoever gives a set back."""
    view = sc("use", "--from", manifest).path
    beside = tmp_path / "beside"
    (beside / "use").mkdir(parents=True)
    (beside / "thesis").write_text("precious")
    (view / "z").unlink()
    (view / "z").symlink_to(beside)
    (view / "more").symlink_to(beside)
    os.rename(view / "a", tmp_path / "a")
    (view / "a").symlink_to(beside)
    assert sc("unuse", "--evict-if-last", view).code == 0
    assert sc("clean", "--all", "-y").code == 0
    assert (beside / "thesis").read_text() == "precious"
    assert (beside / "use").is_dir()
    assert nothing_is_held(disk)


def test_two_sets_with_the_same_items_in_opposite_order(root: Path, disk: Disk, tmp_path: Path) -> None:
    """Each of two jobs would wait for ever for what the other one is to fetch."""
    with httpserver.serve() as server:
        urls = [server.page(f"/f{number}", b"x" * 100, hold=True) for number in range(24)]
        (tmp_path / "up").write_text("\n".join(urls))
        (tmp_path / "down").write_text("\n".join(reversed(urls)))
        argv = [SC_DTOOL, "use", "--holder", f"pid:{os.getpid()}", "--from"]
        with start([*argv, str(tmp_path / "up")]) as up, start([*argv, str(tmp_path / "down")]) as down:
            wait_until(lambda: server.gets.total() >= 8, "as many downloads as a user may have at a time")
            server.release()
            views = [process.communicate(timeout=300)[0].rstrip("\n") for process in (up, down)]
            assert [len(shown(view)) for view in views] == [24, 24]
        assert server.gets.total() == 24  # each was fetched once, for both
    assert len(disk.leases()) == 48
    for view in views:
        assert call("unuse", "--holder", f"pid:{os.getpid()}", view).code == 0
    assert nothing_is_held(disk)


def test_a_set_of_a_killed_process_is_reaped(root: Path, disk: Disk, manifest: Path) -> None:
    """A job that was killed would keep its thousand items, and its directory of links, for ever."""
    script = (
        "import sys; from sccache_dtool import Cache\n"
        "cache = Cache(sys.argv[1]); held = cache.use_many(cache.manifest(sys.argv[2])); print(held.view, flush=True)\n"
        "sys.stdin.read()"
    )
    with start([sys.executable, "-c", script, str(root), str(manifest)]) as process:
        assert process.stdout is not None
        view = process.stdout.readline().rstrip("\n")
        assert shown(view) == FILES
        assert call("clean", "--all", "-y").code == 0
        assert shown(view) == FILES
        process.kill()
        process.wait()
    assert call("clean", "--all", "-y").code == 0
    assert nothing_is_held(disk)
    assert not disk.copies()
