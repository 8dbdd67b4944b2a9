"""Sets, sessions, locks, lots, and objects, used and changed by two hosts at once, on real NFS."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from nfs.conftest import FULL
from nfs.lab import Lab, NfsHost

_PROGRAM = str(Path(__file__).with_name("changes_on_host.py"))


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Files that all hosts see at the same paths."""
    made = [tmp_path / f"f{number}" for number in range(6)]
    for path in made:
        path.write_text(path.name)
    return [str(path) for path in made]


def start(host: NfsHost, *words: str) -> int:
    """Start something of `changes_on_host.py`."""
    what, *more = words
    return host.start(sys.executable, _PROGRAM, what, host.place, *more)


def start_sc_dtool(host: NfsHost, *words: str) -> int:
    """Start a command of the package on the cache that all hosts share."""
    return host.start_sc_dtool("--cache-dir", host.place, *words)


def test_what_another_host_makes_first_is_there_at_once(mounted: Lab, source: str) -> None:
    """A cleaning by a host that has looked before would remove what the first pin, or the first lot, protects.

    A client remembers for half a minute that there was no such directory.
    """
    a, b = mounted.clients[:2]
    assert a.sc_dtool("use", "--holder", "job", source).code == 0
    assert a.sc_dtool("unuse", "--holder", "job", source).code == 0
    for words in (("clean", "-n", "--all"), ("session", "ls"), ("lot", "ls")):
        assert b.sc_dtool(*words).code == 0
    session = a.sc_dtool("session", "create", "--holder", "job", "--add", f"{source}:/data").out.strip()
    assert b.sc_dtool("session", "show", session).code == 0
    assert a.sc_dtool("pin", source).code == 0
    assert "pinned" in b.sc_dtool("clean", "--all", "-y").out
    assert a.sc_dtool("unpin", source).code == 0
    assert a.sc_dtool("lot", "create", "physics", "--path", source, "--dedicated", "1GB").code == 0
    assert "within the share of its lot" in b.sc_dtool("clean", "--all", "-y").out
    assert b.sc_dtool("lot", "set", "physics", "--dedicated", "0").code == 0
    assert a.sc_dtool("clean", "--all", "-y").code == 0
    assert [item for item in b.records("ls") if item["type"] == "item"] == []


def test_a_lease_of_a_set_is_not_taken_for_a_single_use(mounted: Lab, source: str) -> None:
    """`unuse` of an item by a job's other node would end the lease of the job's set, and its data could be removed."""
    a, b = mounted.clients[:2]
    assert b.sc_dtool("use", "--holder", "job", source).code == 0
    assert b.sc_dtool("unuse", "--holder", "job", source).code == 0
    a.do("sh", "-c", f"echo {source} >/run/tmp/list")
    assert a.sc_dtool("use", "--holder", "job", "--from", "/run/tmp/list").code == 0
    assert b.sc_dtool("unuse", "--holder", "job", source).code != 1
    assert b.leases() == 1


def test_two_sets_in_opposite_order_beside_a_cleaner(mounted: Lab, sources: list[str], tmp_path: Path) -> None:
    """Two jobs would wait for each other for ever, or read what was removed although their sets hold it."""
    a, b = mounted.clients[:2]
    assert a.sc_dtool("init").code == 0
    running = {}
    for host, names in ((a, sources), (b, sources[::-1])):
        file = tmp_path / f"{host.name}.txt"
        file.write_text("\n".join(names))
        script = "cat $SC_DTOOL_VIEW/*"
        words = "run", "--from", str(file), "--", "sh", "-c", script
        line = [sys.executable, "-m", "sccache_dtool", "-C", host.place, *words]
        running[host] = host.start("sh", "-c", 'for n in 1 2 3; do "$@" || exit; echo; done', "sh", *line)
    whole = "".join(Path(name).name for name in sorted(sources))
    for host, pid in running.items():
        assert host.said(pid) == whole
    for _ in range(3):
        assert mounted.server.sc_dtool("clean", "--all", "-y").code in (0, 3)
    for host, pid in running.items():
        done = host.wait(pid)
        assert (done.code, done.out.split()) == (0, [whole] * 2), done
    view = a.sc_dtool("use", "--holder", "job", "--from", str(tmp_path / "a.txt")).out.strip()
    assert b.sc_dtool("clean", "--all", "-y").code in (0, 3)
    assert b.do("sh", "-c", f"cat {view}/*") == whole
    assert b.sc_dtool("unuse", "--holder", "job", view).code == 0
    assert a.sc_dtool("clean", "--all", "-y").code == 0
    assert (a.leases(), a.sc_dtool("doctor").code) == (0, 0)


def test_a_session_is_changed_by_one_of_two(mounted: Lab, sources: list[str]) -> None:
    """Of two changes to the same data set one would be lost, and its user not be told."""
    a, b = mounted.clients[:2]
    session = a.sc_dtool("session", "create", "--holder", "job", "--add", f"{sources[0]}:/f0").out.strip()
    for number in range(1, 4):
        changing = {
            host: start_sc_dtool(
                host, "session", "set", session, "--if-seq", str(number), f"{sources[number]}:/{host.name}{number}"
            )
            for host in (a, b)
        }
        codes = {host: host.wait(pid).code for host, pid in changing.items()}
        assert sorted(codes.values()) == [0, 14]
        (shown,) = b.records("session", "show", session)
        (winner,) = (host for host, code in codes.items() if code == 0)
        assert shown["seq"] == number + 1
        assert [entry["mount"] for entry in shown["data_set"]] == [f"/{winner.name}{number}"]


@pytest.mark.parametrize("calls", [1, 5, 9, 13] if FULL else [5])
def test_a_session_is_deleted_while_another_host_takes_locks(mounted: Lab, sources: list[str], calls: int) -> None:
    """A lock would outlive its session. The deletion is killed after so many changes, and `clean` on another host
    finishes it.
    """
    a, b = mounted.clients[:2]
    added = [word for number in (0, 1) for word in ("--add", f"{sources[number]}:/f{number}")]
    session = a.sc_dtool("session", "create", "--holder", "job", *added).out.strip()
    lock = b.sc_dtool("lock", "get", session, "/f0", "--owner", "me").out.strip()
    assert [one["lock"] for one in a.records("lock", "ls", "--session", session)] == [lock]
    locking = start(b, "lock", session, "/f0", "/f1")
    assert b.said(locking) == "some"
    deleting = a.wait(start(a, "delete", session, str(calls)))
    assert deleting.out == "killed\n", deleting
    done = b.wait(locking)
    assert "ended" in done.out or "deleted" in done.out, done
    assert b.sc_dtool("clean", "--all", "-y").code == 0
    assert "was deleted" in a.sc_dtool("session", "rm", session).out
    assert a.records("lock", "ls") == []
    assert (a.leases(), b.leases(), a.sc_dtool("doctor").code) == (0, 0, 0)


def test_a_path_has_one_lot_whichever_host_claims_it(mounted: Lab) -> None:
    """The data at it would count for two groups, and each would believe that it has the space."""
    a, b = mounted.clients[:2]
    assert a.sc_dtool("init").code == 0
    words = "--path", "/data", "--dedicated", "1GB"
    claiming = {host: start_sc_dtool(host, "lot", "create", f"group-{host.name}", *words) for host in (a, b)}
    done = {host: host.wait(pid) for host, pid in claiming.items()}
    assert sorted(one.code for one in done.values()) == [0, 2], done
    (refused,) = (one for one in done.values() if one.code == 2)
    assert "group-a" in refused.err
    assert "group-b" in refused.err
    assert [host.sc_dtool("lot", "show", "group-a").code for host in (a, b)] in ([0, 0], [2, 2])


def test_no_change_of_lots_is_lost_or_made_twice(mounted: Lab) -> None:
    """A limit that somebody was told is set would not be. Two of the writers are killed, and the server restarts."""
    times, writers = (50, 4) if FULL else (12, 4)
    a, b = mounted.clients[:2]
    assert a.sc_dtool("init").code == 0
    assert a.sc_dtool("lot", "create", "physics", "--max-objects", "0").code == 0
    running = [(host, start(host, "count", "physics", str(times))) for _ in range(writers) for host in (a, b)]
    killed = [(host, start(host, "count", "physics", "1000")) for host in (a, b)]
    made = 0
    for host, pid in (*running, *killed):
        assert host.said(pid) == "1"
    if FULL:
        mounted.server.crash()
        mounted.server.boot()
        mounted.server.connect()
    for host, pid in killed:
        made += int(host.said(pid))
        host.kill(pid)
    for host, pid in running:
        done = host.wait(pid)
        assert done.code == 0, done
        assert done.out.splitlines()[-1] == str(times)
    shown = {host.records("lot", "show", "physics")[0]["max_objects"] for host in (a, b)}
    assert len(shown) == 1
    counted = shown.pop() - times * len(running)
    assert counted >= made  # a killed one may have made more than it was asked for
    log = a.records("lot", "log")
    assert log[0]["number"] == times * len(running) + counted + 1
    assert a.sc_dtool("doctor").code == 0


def test_two_hosts_add_the_same_file(mounted: Lab, source: str) -> None:
    """One of two who add a file would fail, or a second copy of it would be stored."""
    a, b = mounted.clients[:2]
    archive = f"{a.place}-archive"
    a.do("mkdir", archive)
    assert a.sc_dtool("init").code == 0
    config = f"{a.place}/.sc-dtool/config.toml"
    a.do("sh", "-c", 'printf "[archive]\\nurl = \\"%s\\"\\n" "$0" >"$1"', archive, config)
    assert a.sc_dtool("archive", "init").code == 0
    adding = [(host, start_sc_dtool(host, "add", source)) for host in (a, b) for _ in range(2)]
    done = [host.wait(pid) for host, pid in adding]
    assert [one.code for one in done] == [0] * len(adding), done
    (id,) = {one.out.strip() for one in done}
    server = mounted.server
    files = server.do("find", f"{server.place}-archive", "!", "-type", "d", "-printf", "%P\\n").split()
    kinds = Counter(file.partition("/")[0] for file in files)
    assert (kinds["objects"], kinds["added"]) == (1, len(adding)), files
    for host in (a, b):
        assert host.sc_dtool("cat", id).out == "data"
    assert sum(item["copies"] for item in b.records("ls") if item["type"] == "item") == 1
