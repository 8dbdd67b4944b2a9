"""A real user whose real quota is used up, on a disk and over NFS: ext4 refuses, and what NFS makes of it is seen.

The file server's kernel has quotas, which that of the machine may lack.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from hosts.machine import Done
from nfs.conftest import FULL
from nfs.lab import EXPORT, Lab, NfsHost

USER = 12345

#: A user like any other, but that they may read Python wherever it is.
_AS_USER = (
    f"setpriv --reuid={USER} --regid={USER} --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
    " env XDG_STATE_HOME=/run/tmp/state"
).split()

#: What is used up, and the part of a quota that is as large as what is used: blocks, inodes.
EXHAUSTED = {"blocks": (True, False), "inodes": (False, True)}


class Quota:
    """A user's quota on the server's disk."""

    def __init__(self, server: NfsHost) -> None:
        self._server = server

    def lift(self) -> None:
        """Let the user have what they like."""
        self._set(0, 0)

    def exhaust(self, *, blocks: bool, inodes: bool) -> None:
        """Let them have what they have, and no more."""
        self._server.do("sync")
        done = self._server.do("repquota", "--user", "--no-names", "--output=csv", EXPORT)
        (used,) = (line.split(",") for line in done.splitlines() if line.startswith(f"#{USER},"))
        self._set(int(used[3]) if blocks else 0, int(used[7]) if inodes else 0)

    def _set(self, blocks: int, inodes: int) -> None:
        limits = [str(one) for one in (blocks, blocks, inodes, inodes)]
        self._server.do("setquota", "--user", str(USER), *limits, EXPORT)


@pytest.fixture
def quota(mounted: Lab) -> Iterator[Quota]:
    made = Quota(mounted.server)
    made.lift()
    yield made
    made.lift()


def sources(host: NfsHost) -> list[str]:
    """Three files of some size, on the host's own disk."""
    made = [f"/run/tmp/source{number}" for number in range(3)]
    for path in made:
        host.do("dd", "if=/dev/urandom", f"of={path}", "bs=100k", "count=1", "status=none")
    return made


#: Where it is used up, and with which version of NFS.
WHERE = [("on the disk", "4.2"), ("over NFS", "4.2"), *((("over NFS", "3"), ("over NFS", "4.0")) if FULL else ())]


@pytest.mark.parametrize("exhausted", EXHAUSTED)
@pytest.mark.parametrize(("where", "version"), WHERE)
def test_a_quota_that_is_used_up(mounted: Lab, quota: Quota, where: str, exhausted: str) -> None:
    """Whoever has used up their quota could give nothing back and clean nothing, and so never have room again."""
    host = mounted.server if where == "on the disk" else mounted.clients[0]
    held, idle, new = sources(host)
    blocks, inodes = EXHAUSTED[exhausted]

    def sc_dtool(*words: str) -> Done:
        return host.run(*_AS_USER, sys.executable, "-m", "sccache_dtool", "-C", host.place, *words)

    host.do("install", "-d", "-o", str(USER), host.place)
    path = sc_dtool("use", "--holder", "job", held).out.rstrip("\n")
    assert sc_dtool("use", "--holder", "other", idle).code == 0
    assert sc_dtool("unuse", "--holder", "other", idle).code == 0
    assert sc_dtool("use", "--holder", "other", held).code == 0

    quota.exhaust(blocks=blocks, inodes=inodes)
    done = sc_dtool("use", "--holder", "job", new)
    assert done.code == 13, done
    assert "Traceback" not in done.err
    assert "sc-dtool clean" in done.err
    hit = sc_dtool("use", "--holder", "third", held)  # a link may need no block
    assert hit.code in ((0, 13) if blocks else (13,)), hit
    assert host.do("sha256sum", path).split()[0] == host.do("sha256sum", held).split()[0]
    assert sc_dtool("unuse", "--holder", "other", held).code == 0
    cleaned = sc_dtool("clean", "--all", "-y")
    assert cleaned.code == 0, cleaned
    assert [record["type"] for record in records(sc_dtool("-f", "json", "ls"))].count("item") == 1
    assert host.do("sha256sum", path).split()[0] == host.do("sha256sum", held).split()[0]
    assert sc_dtool("unuse", "--holder", "job", held).code == 0
    if hit.code == 0:
        assert sc_dtool("unuse", "--holder", "third", held).code == 0
    assert sc_dtool("clean", "--all", "-y").code == 0

    quota.lift()
    ends = [record["how"] for record in records(sc_dtool("-f", "json", "log"))]
    assert ends == ["released"] * (3 + (hit.code == 0))
    assert sc_dtool("use", "--holder", "job", new).code == 0
    assert sc_dtool("doctor").code == 0


def records(done: Done) -> list[dict[str, str]]:
    """What a command says in JSON."""
    assert done.code == 0, done
    return [json.loads(line) for line in done.out.splitlines()]
