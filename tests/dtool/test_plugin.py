"""The plugin: every user of dtool gets leases and right content, and dtool goes on whatever happens to us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import dtoolcore
import pytest

from dtool import stores
from faults import store_of
from sccache_dtool.cache import Cache
from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.dtool import leased, plugin
from sccache_dtool.errors import InUse, LeaseLost
from sccache_dtool.fetch.dtool_source import WrongContent, item_key
from sccache_dtool.policy.rules import Rules
from sccache_dtool.protocol import holders
from sccache_dtool.protocol.holders import HolderList

FILES = stores.FILES
FIRST = stores.identifier("a/first.txt")

USE = """
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
say(dataset.item_content_abspath(sys.argv[2]))
input()
"""


def in_cache(path: str, cache_dir: Path) -> bool:
    return path.startswith(f"{cache_dir}/.sc-dtool/items/")


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("storage", ["on_s3", "dataset"])
def test_every_item_is_served_from_the_cache_with_its_extension_and_content(storage, cache_dir, request):
    """Without this dtool's users would have no leases, or programs that go by extensions would refuse the files."""
    dataset = request.getfixturevalue(storage)
    for relpath, content in FILES.items():
        path = dataset.item_content_abspath(stores.identifier(relpath))
        assert in_cache(path, cache_dir)
        assert path.endswith(f"/{relpath.rpartition('/')[2]}")
        assert read(path) == content


def test_nothing_loose_is_left_behind(dataset, cache_dir):
    """What the broker downloads goes into our work area: the shared cache would else fill with second copies."""
    dataset.item_content_abspath(FIRST)
    assert sorted(os.listdir(cache_dir)) == [".sc-dtool", "CACHEDIR.TAG"]
    assert os.listdir(cache_dir / ".sc-dtool" / "tmp") == []


def test_the_lease_lasts_as_long_as_the_process(dataset, cache_dir, run_python):
    """Users of dtool open the file after the call: a lease that ended with it would protect nothing."""
    user = run_python(USE, dataset.uri, FIRST)
    path = user.line()
    cache = Cache(cache_dir)
    key = item_key(dataset.uuid, FIRST)
    with pytest.raises(InUse):
        cache.remove(key)
    cache.clean(Rules(everything=True))
    assert read(path) == b"one\n"
    user.end()
    assert cache.item(key).leases == 0
    assert cache.remove(key) == 4


def test_a_killed_process_holds_its_items_no_longer(dataset, cache_dir, run_python):
    """Otherwise every crash of a script would fill the cache for good."""
    user = run_python(USE, dataset.uri, FIRST)
    user.line()
    user.kill()
    cache = Cache(cache_dir)
    assert cache.remove(item_key(dataset.uuid, FIRST)) == 4
    assert [use.how for use in cache.uses(item_key(dataset.uuid, FIRST))] == ["reaped"]


def test_one_process_holds_one_lease_however_often_it_asks(dataset, cache_dir):
    """A loop over an item would else fill the server with leases."""
    again = stores.open_dataset(dataset.uri)
    assert len({one.item_content_abspath(FIRST) for one in (dataset, again, dataset)}) == 1
    assert Cache(cache_dir).item(item_key(dataset.uuid, FIRST)).leases == 1


def test_what_was_deleted_by_hand_is_fetched_again(dataset, cache_dir):
    """After an `rm -rf` dtool alone fetches again; with us a script would fail until it is restarted."""
    path = dataset.item_content_abspath(FIRST)
    shutil.rmtree(Path(path).parents[1])
    again = dataset.item_content_abspath(FIRST)
    assert again != path
    assert read(again) == b"one\n"


def test_a_block_gives_its_lease_back(dataset, cache_dir):
    """A process that lives for weeks must be able to say when it is done with an item."""
    cache = Cache(cache_dir)
    with leased(dataset, FIRST) as path:
        assert read(path) == b"one\n"
        assert cache.item(item_key(dataset.uuid, FIRST)).leases == 1
    assert cache.item(item_key(dataset.uuid, FIRST)).leases == 0
    assert cache.item(item_key(dataset.uuid, FIRST)).uses == 1


def test_a_forked_child_holds_its_own_lease(dataset, cache_dir, run_python):
    """Workers of a pool outlive the parent's leases, or are left without any."""
    program = """
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
path = dataset.item_content_abspath(sys.argv[2])
pid = os.fork()
if pid == 0:
    say(dataset.item_content_abspath(sys.argv[2]) == path)
    os._exit(0)
os.waitpid(pid, 0)
input()
"""
    parent = run_python(program, dataset.uri, FIRST)
    assert parent.line() == "True"
    assert Cache(cache_dir).item(item_key(dataset.uuid, FIRST)).leases == 2
    parent.end()


def test_a_hit_asks_no_server(on_s3, cache_dir, run_python, monkeypatch):
    """Hits of dtool's own cost a round trip, and fail while the server is down, though the file is there."""
    dataset = on_s3
    with leased(dataset, FIRST):
        pass
    plugin._forget()
    stores.take_server_away(dataset, monkeypatch)
    assert read(dataset.item_content_abspath(FIRST)) == b"one\n"


def test_a_hit_is_served_while_the_web_server_is_down(dataset, web, cache_dir):
    """As over S3; dtool-http alone asks for the manifest at every hit."""
    with leased(dataset, FIRST):
        pass
    web.stop()
    assert read(dataset.item_content_abspath(FIRST)) == b"one\n"


def test_a_server_that_is_down_is_told_of_as_without_us(on_s3, cache_dir, monkeypatch, capfd):
    """Scripts that catch what their broker raises must go on to catch it."""
    dataset = on_s3
    assert dataset.identifiers
    stores.take_server_away(dataset, monkeypatch)
    with pytest.raises(ConnectionRefusedError, match="the server is down"):
        dataset.item_content_abspath(FIRST)
    assert capfd.readouterr().err == ""


def test_what_is_no_item_is_answered_by_the_broker(on_s3, cache_dir, monkeypatch, capfd):
    """A mistyped identifier must raise what it always did, and no warning about us."""
    dataset = on_s3
    ours, own = (pytest.raises(Exception) for _ in range(2))  # noqa: PT011  (whatever the broker raises)
    with ours as ours_raised:
        dataset.item_content_abspath("0" * 40)
    monkeypatch.setenv(plugin.SWITCH, "off")
    with own as own_raised:
        dataset.item_content_abspath("0" * 40)
    assert type(ours_raised.value) is type(own_raised.value)
    assert capfd.readouterr().err == ""


def test_http_and_s3_copies_are_one_item(s3, cache_dir, tmp_path, serve):
    """The same data would else be fetched and kept twice."""
    local = stores.make_dataset(f"file://{tmp_path}", FILES, "mydata")
    web = serve(tmp_path)
    first = stores.open_dataset(dtoolcore.copy(local.uri, s3)).item_content_abspath(FIRST)
    second = stores.open_dataset(f"{web.address}/mydata").item_content_abspath(FIRST)
    assert first == second
    assert web.data_requests == 0


def test_two_servers_with_the_same_path_do_not_collide(cache_dir, tmp_path, serve):
    """By itself dtool gives the first server's content for the second's item."""
    datasets = []
    for number in (1, 2):
        base = tmp_path / f"server{number}"
        base.mkdir()
        stores.make_dataset(f"file://{base}", {"a/first.txt": b"content %d\n" % number}, "same")
        datasets.append(dtoolcore.DataSet.from_uri(f"{serve(base).address}/same"))
    assert [read(one.item_content_abspath(FIRST)) for one in datasets] == [b"content 1\n", b"content 2\n"]


@pytest.mark.no_cache
@pytest.mark.parametrize("scheme", ["file", "symlink"])
def test_local_datasets_are_left_alone(scheme, cache_dir, tmp_path):
    """Local data must be neither copied nor leased, and above all never be deleted."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "x.txt").write_text("mine")
    if scheme == "symlink":
        pytest.importorskip("dtool_symlink", reason="dtool-symlink is not installed")
        metadata = dtoolcore.generate_admin_metadata("links")
        proto = dtoolcore.generate_proto_dataset(metadata, f"symlink://{tmp_path}")
        proto._storage_broker.symlink_path = str(source)
        proto.create()
        proto.put_readme("")
        proto.freeze()
        dataset = dtoolcore.DataSet.from_uri(proto.uri)
    else:
        dataset = stores.make_dataset(f"file://{tmp_path}", {"x.txt": b"mine"})
    path = dataset.item_content_abspath(stores.identifier("x.txt"))
    assert not path.startswith(str(cache_dir))
    assert not cache_dir.exists()
    with leased(dataset, stores.identifier("x.txt")) as same:
        assert same == path


def test_wrong_content_is_fetched_again(dataset, web, cache_dir):
    """A transfer that goes wrong once must not be seen by anybody."""
    web.before_data = lambda number: b"XX" if number == 1 else None
    assert read(dataset.item_content_abspath(FIRST)) == b"one\n"
    assert web.data_requests == 2


def test_a_torn_transfer_is_fetched_again(dataset, web, cache_dir):
    """A connection that breaks once must not cost a job."""
    web.before_data = lambda number: b"" if number == 1 else None
    assert read(dataset.item_content_abspath(FIRST)) == b"one\n"
    assert web.data_requests == 2


def test_content_that_stays_wrong_is_an_error_that_names_it(dataset, web, cache_dir):
    """Silently damaged data is the worst that a cache can give."""
    web.before_data = lambda number: b"XX"
    with pytest.raises(
        WrongContent, match=r"a/first\.txt of dataset study .* was received with errors twice: its md5 is"
    ) as error:
        dataset.item_content_abspath(FIRST)
    assert dataset._manifest["items"][FIRST]["hash"] in str(error.value)
    assert FIRST in error.value.details[0]
    assert web.data_requests == 2
    assert not list(Cache(cache_dir).item(item_key(dataset.uuid, FIRST)).copies)


# -- it never breaks dtool ---------------------------------------------------------------------------------------------

CONTENT = """
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
for _ in range(2):
    for identifier in sorted(dataset.identifiers):
        say(open(dataset.item_content_abspath(identifier), "rb").read() == b"")
"""


def content_is_there(process) -> str:
    """The standard error of a process that got all items."""
    out, err = process.end()
    assert sorted(out.split()) == ["False"] * 6 + ["True"] * 2
    return err


@pytest.mark.no_cache
def test_switched_off_everything_is_as_without_us(on_s3, cache_dir, run_python):
    """Whoever suspects us must be able to find out."""
    err = content_is_there(run_python(CONTENT, on_s3.uri, SC_DTOOL_PLUGIN="off"))
    assert err == ""
    assert os.listdir(cache_dir) == [on_s3.uuid]


def test_a_root_that_must_be_no_cache_is_warned_of_once(dataset, tmp_path, run_python):
    """Wherever dtool is told to, it caches; that we refuse must not stop it, nor bury its user in warnings."""
    home = tmp_path / "home"
    home.mkdir()
    err = content_is_there(
        run_python(CONTENT, dataset.uri, HOME=str(home), DTOOL_CACHE_DIRECTORY=str(home), SC_DTOOL_PLUGIN="")
    )
    assert len(err.splitlines()) == 1
    assert "warning: dtool continues without leases" in err
    assert "home directory" in err


@pytest.mark.no_cache
def test_a_damaged_format_file_is_warned_of_once(dataset, cache_dir, run_python):
    """A cache of a later version, or a broken one, must not keep dtool from its work."""
    (cache_dir / ".sc-dtool").mkdir(parents=True)
    (cache_dir / ".sc-dtool" / "FORMAT").write_text("sc-dtool cache\nversion: 99\nid: x\n")
    err = content_is_there(run_python(CONTENT, dataset.uri, SC_DTOOL_PLUGIN=""))
    assert len(err.splitlines()) == 1
    assert "format 99" in err


@pytest.mark.parametrize(
    ("configure", "beginning"),
    [("", "sc-dtool: warning: "), ("import logging; logging.basicConfig()\n", "WARNING:sccache_dtool:")],
    ids=["not configured", "configured"],
)
def test_a_warning_is_shown_once_whether_the_program_configures_logging_or_not(
    dataset, cache_dir, run_python, configure, beginning
):
    """Each warning would be in a program's log and on its standard error, or nowhere."""
    cache_dir.mkdir(exist_ok=True)
    cache_dir.chmod(0o777)
    err = content_is_there(run_python(configure + CONTENT, dataset.uri, SC_DTOOL_PLUGIN=""))
    assert err.count("every user can create and delete files here") == 1
    (line,) = [line for line in err.splitlines() if "every user" in line]
    assert line.startswith(beginning)


@pytest.mark.root
def test_a_cache_that_is_not_writable_fails_as_it_did_without_us(dataset, open_tmp_path, run_python):
    """Whose cache it is not must be told by dtool what it cannot do, after our warning."""
    program = stores.AS_OTHERS + "become(65534, 65534)\n" + CONTENT
    theirs = str(open_tmp_path)
    _, err = run_python(program, dataset.uri, SC_DTOOL_PLUGIN="", DTOOL_CACHE_DIRECTORY=theirs).end(expected=1)
    assert err.count("warning: dtool continues without leases: ") == 1
    assert err.strip().splitlines()[-1].startswith("PermissionError")


@pytest.mark.root
def test_what_is_in_a_cache_that_one_may_only_read_is_served_without_a_lease(dataset, open_tmp_path, run_python, web):
    """Where one user fetches and others only read, dtool alone serves its hits; ours must be served as well."""
    theirs = open_tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o755)
    content_is_there(run_python(CONTENT, dataset.uri, SC_DTOOL_PLUGIN="", DTOOL_CACHE_DIRECTORY=str(theirs)))
    served = web.data_requests
    program = stores.AS_OTHERS + "become(65534, 65534)\n" + CONTENT
    err = content_is_there(run_python(program, dataset.uri, SC_DTOOL_PLUGIN="", DTOOL_CACHE_DIRECTORY=str(theirs)))
    _, line = err.splitlines()  # the first is of the cache of its own that `become` makes
    assert f"continues without leases: Permission denied: {theirs}/.sc-dtool/" in line
    assert web.data_requests == served + len(FILES)  # by `become`, into a cache of its own


#: Of all that a first access loads: ours and others', early and late, modules and packages.
LOADED_LATE = (
    "sccache_dtool.cache",
    "sccache_dtool.fetch.dtool_source",
    "sccache_dtool.fetch.populate",
    "sccache_dtool.protocol.election",
    "flufl.lock",
)


def test_a_fork_in_the_middle_of_our_loading_leaves_no_child_that_hangs(dataset, cache_dir, run_python):
    """Pools fork while threads load data; a child must not wait for a module that nobody goes on loading in it."""
    program = """
import importlib.abc, signal, threading
loading, forked = threading.Event(), threading.Event()
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[3]:
            loading.set()
            forked.wait(0.5)  # it cannot come if the fork waits for us
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
assert sys.argv[3] not in sys.modules
sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=dataset.item_content_abspath, args=[sys.argv[2]])
thread.start()
assert loading.wait(100)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    dataset.item_content_abspath(sys.argv[2])
    os._exit(0)
forked.set()
say(os.waitpid(pid, 0)[1])
thread.join()
input()
"""
    for module in LOADED_LATE:
        process = run_python(program, dataset.uri, FIRST, module)
        assert process.line() == "0", module
        assert "Exception" not in process.end()[1]
        shutil.rmtree(cache_dir)


def test_a_worker_of_a_pool_gives_its_items_back(dataset, cache_dir, run_python):
    """The workers of a DataLoader would hold items for hours after their end, as other hosts see them."""
    program = """
import multiprocessing
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
def work():
    open(dataset.item_content_abspath(sys.argv[2])).read()
worker = multiprocessing.get_context("fork").Process(target=work)
worker.start()
worker.join()
say(worker.exitcode)
input()
"""
    process = run_python(program, dataset.uri, FIRST)
    assert process.line() == "0"
    assert Cache(cache_dir).item(item_key(dataset.uuid, FIRST)).leases == 0
    process.end()


def test_what_was_purged_is_fetched_again_by_the_next_process(dataset, cache_dir, run_python):
    """Every script would be given a path to nothing, for ever."""
    first = run_python(USE, dataset.uri, FIRST)
    path = first.line()
    first.end()
    os.unlink(path)
    second = run_python(USE, dataset.uri, FIRST)
    assert read(second.line()) == b"one\n"
    second.end()
    assert len(Cache(cache_dir).item(item_key(dataset.uuid, FIRST)).copies) == 1


def test_a_program_that_was_suspended_is_given_what_is_protected(dataset, cache_dir, monkeypatch):
    """A notebook that goes on the next morning would read what was reaped and deleted meanwhile."""
    path = dataset.item_content_abspath(FIRST)
    layout = Layout(str(cache_dir))
    for name in HolderList.glance(store_of(FileSystem(), layout)).present.values():
        assert holders.revoke(store_of(FileSystem(), layout), name)
    monkeypatch.setattr(Clock, "since_boot", lambda self, real=Clock.since_boot: real(self) + 10**6)
    again = dataset.item_content_abspath(FIRST)
    Cache(cache_dir).clean(Rules(everything=True))
    assert read(again) == b"one\n"
    assert again == path


def test_a_signal_handler_may_access_what_the_program_is_just_accessing(dataset, cache_dir, run_python):
    """A handler that looks something up would wait for ever for the access that it has interrupted."""
    program = """
import signal, threading
from sccache_dtool.dtool import plugin
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
dataset.item_content_abspath(sys.argv[2])
def handle(*_):
    say(open(dataset.item_content_abspath(sys.argv[2])).read().strip())
signal.signal(signal.SIGUSR1, handle)
slot = (str(dataset.uuid), sys.argv[2])
with plugin._state.guard, plugin._state.busy[slot]:
    plugin._state.held.clear()
    os.kill(os.getpid(), signal.SIGUSR1)
input()
"""
    process = run_python(program, dataset.uri, FIRST)
    assert process.line() == "one"
    process.end()


def test_a_fault_of_ours_is_warned_of_once(dataset, cache_dir, run_python):
    """Our bugs are ours."""
    program = "import sccache_dtool.cache\nsccache_dtool.cache.Cache.use_request = None\n" + CONTENT
    err = content_is_there(run_python(program, dataset.uri, SC_DTOOL_PLUGIN=""))
    assert len(err.splitlines()) == 1
    assert "continues without leases: 'NoneType' object is not callable" in err


def test_an_installation_without_our_own_needs_is_warned_of_once(dataset, cache_dir, run_python):
    """A half-installed sc-dtool must not take dtool down with it."""
    program = 'sys.modules["flufl.lock"] = None\nsys.modules["sccache_dtool.cache"] = None\n' + CONTENT
    err = content_is_there(run_python(program, dataset.uri, SC_DTOOL_PLUGIN=""))
    assert len(err.splitlines()) == 1


def test_without_proc_leases_live_by_heartbeat(dataset, cache_dir, run_python):
    """Containers without /proc are users, too."""
    program = (
        """
from sccache_dtool.liveness import process
process.Proc.here = lambda self: None
"""
        + USE
    )
    user = run_python(program, dataset.uri, FIRST, SC_DTOOL_PLUGIN="")
    assert in_cache(user.line(), cache_dir)
    with pytest.raises(InUse):
        Cache(cache_dir).remove(item_key(dataset.uuid, FIRST))
    assert user.end()[1] == ""


def test_loading_twice_wraps_once():
    """Two copies of the plugin in one environment would lease everything twice."""
    before = dtoolcore.DataSet.item_content_abspath
    assert hasattr(before, plugin._MARK)
    assert plugin.install()
    assert dtoolcore.DataSet.item_content_abspath is before
    dtoolcore._generate_storage_broker_lookup()
    assert dtoolcore.DataSet.item_content_abspath is before


def test_loading_raises_nothing_where_dtool_is_not_as_we_know_it():
    """Nothing is caught by dtool while it loads plugins: an error of ours would kill every dtool command."""
    program = """
import sys, types
fake = types.ModuleType("dtoolcore")
sys.modules["dtoolcore"] = fake
from sccache_dtool.dtool.plugin import Plugin
print(Plugin.key)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "sc-dtool\n"


def test_a_broker_that_cannot_be_redirected_is_still_leased(dataset, cache_dir, monkeypatch):
    """Whatever a broker calls its cache's path: what it puts there is adopted, checked, and protected."""
    broker = dataset._storage_broker

    class Odd:
        def __init__(self) -> None:
            self._hidden = [str(cache_dir)]
            self.asked = 0

        def get_item_abspath(self, identifier: str) -> str:
            self.asked += 1
            directory = Path(self._hidden[0], dataset.uuid)
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{identifier}.txt").write_bytes(b"one\n")
            return f"{directory}/{identifier}.txt"

        def __getattr__(self, name: str) -> object:
            return getattr(broker, name)

    odd = Odd()
    monkeypatch.setattr(dataset, "_storage_broker", odd)
    with leased(dataset, FIRST) as path:
        assert in_cache(path, cache_dir)
    with leased(dataset, FIRST) as path:
        assert read(path) == b"one\n"
    assert odd.asked == 1


def test_a_broker_that_gives_its_own_data_is_left_alone(dataset, cache_dir, tmp_path, monkeypatch):
    """Data outside the cache is somebody's own; it needs no lease and gets no copy."""
    (tmp_path / "mine.txt").write_text("one\n")

    class Own:
        def get_item_abspath(self, identifier: str) -> str:
            return str(tmp_path / "mine.txt")

    monkeypatch.setattr(dataset, "_storage_broker", Own())
    assert dataset.item_content_abspath(FIRST) == str(tmp_path / "mine.txt")
    assert not list(Cache(cache_dir, may_hold_data=True).root.glob(".sc-dtool/items/*"))


def test_the_entry_points_are_those_that_dtool_and_its_specification_name():
    """An entry point with a wrong name is loaded by nobody, and nobody is told."""
    from importlib.metadata import entry_points

    groups = {
        "dtool.storage_brokers": ["Plugin"],
        "dtool.cli": ["cache"],
        "dtool.pre_item_content_abspath": ["pre_item_content_abspath"],
        "dtool.post_item_content_abspath": ["post_item_content_abspath"],
    }
    for group, expected in groups.items():
        ours = [point for point in entry_points(group=group) if point.value.startswith("sccache_dtool")]
        assert [
            point.load().__name__.replace("_OfDtool", "cache") if group != "dtool.cli" else point.load().name
            for point in ours
        ] == expected


def test_dtools_own_command_goes_through_us(dataset, cache_dir):
    """`dtool item fetch` is what people type."""
    dtool = shutil.which("dtool", path=os.path.dirname(sys.executable))
    pytest.importorskip("dtool_info", reason="dtool-info, which has `dtool item fetch`, is not installed")
    assert dtool is not None
    done = subprocess.run([dtool, "item", "fetch", dataset.uri, FIRST], capture_output=True, text=True, check=True)
    assert in_cache(done.stdout.strip(), cache_dir)
    assert Cache(cache_dir).item(item_key(dataset.uuid, FIRST)).uses == 1


def test_what_the_plugin_says_does_not_control_the_terminal(capsys, monkeypatch):
    """A server or another user of the cache could clear the screen of a person who runs dtool."""
    stores.give_everything_back()
    plugin._warn_once(RuntimeError("no such bucket\x1b[2J"))
    plugin._report_loss(LeaseLost("lost\nall is well"))
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert [line.startswith("sc-dtool: warning: ") for line in err.splitlines()] == [True, True]


SAY = """
import logging, sys
if sys.argv[1]:
    logging.basicConfig(level=sys.argv[1], format="%(levelname)s %(message)s")
from sccache_dtool.dtool import plugin
from sccache_dtool.log import Log
plugin._cache(object())
Log().warning("one")
Log().note("two")
"""


@pytest.mark.parametrize(
    ("level", "lines"),
    [("", ["sc-dtool: warning: one", "sc-dtool: two"]), ("WARNING", ["WARNING one"]), ("ERROR", [])],
)
def test_a_program_that_configures_logging_decides_what_it_sees(cache_dir, level, lines):
    """A program with a log of its own would have each message twice, and could not switch either off."""
    done = subprocess.run([sys.executable, "-c", SAY, level], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == lines
