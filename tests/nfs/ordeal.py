"""A storm on several hosts, and what befalls them meanwhile: each by a seed, one after the other, and never by time.

What happens next, happens when enough was done since: everybody notes it in a directory of the machine, which no
failure of a host can harm.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from nfs.lab import NOTES, Lab, NfsHost
from races.storm import KINDS, Journal, Notes
from waiting import wait_until

_PROGRAM = str(Path(__file__).with_name("storm_on_host.py"))

#: Seconds in which something must have happened. A host that was cut off waits for up to twice as long as it was.
PATIENCE = 300.0

#: Nobody waits long for a fetcher that fell silent.
_CONFIG = """
[lease]
heartbeat_ttl = "{lifetime}"
[fetch]
wait = "5s"
"""

#: Where hosts are to be taken for dead, and where nobody is, however slow the machine. There is a margin of a minute.
_SHORT, _LONG = "20s", "2h"

#: A storm with less of everything than on one machine: three hosts and a server share two processors.
_WEATHER = {
    "uses": 10**9,
    "evictions": 10**9,
    "seconds": 3600.0,
    "users": 3,
    "evictors": 1,
    "pause": 0.05,
    "stuck": 2 * PATIENCE,
    "durable": True,
}


class _Raging:
    """The storm on one host, from its start to the host's crash or the storm's end."""

    def __init__(self, ordeal: Ordeal, host: NfsHost, number: int, *, may_be_robbed: bool, mutant: str) -> None:
        name = f"{host.name}{number}"
        (ordeal.lab.notes / name).mkdir()
        self.host = host
        self.boot_id = host.boot_id
        self.notes = Notes(ordeal.lab.notes / name)
        weather = {**_WEATHER, "seed": ordeal.seed + number, "may_be_robbed": may_be_robbed}
        self._pid = host.start(
            sys.executable, _PROGRAM, "rage", host.place, json.dumps(weather), ordeal.items, f"{NOTES}/{name}", mutant
        )

    def end(self) -> list[str]:
        """What went wrong with its processes."""
        done = self.host.wait(self._pid)
        assert done.code == 0, done
        return [f"{self.host.name}: {wrong}" for wrong in json.loads(done.out)["wrong"]]


class Ordeal:
    """A storm on the first clients of a laboratory."""

    def __init__(self, lab: Lab, hosts: int, items: str, seed: int) -> None:
        """`items`: the file with what is to be used."""
        self.lab = lab
        self.seed = seed
        self.items = items
        self.counts: Counter[str] = Counter()
        self._dice = random.Random(seed)
        self._began = time.monotonic()
        self._hosts = lab.clients[:hosts]
        self._raging: dict[NfsHost, _Raging] = {}
        self._over: list[_Raging] = []  # with the host that has crashed
        self._suffering: list[NfsHost] = []
        self._watch = 0
        self._watched: list[Notes] = []

    # -- begin and end -------------------------------------------------------------------------------------------------

    def begin(self, may_be_robbed: int, mutant: str = "none") -> None:
        """Let it rage. Of the hosts so many, the last ones, will be taken for dead; the first runs the mutant."""
        assert self._hosts[0].sc_dtool("init").code == 0
        config = f"{self._hosts[0].place}/.sc-dtool/config.toml"
        settings = _CONFIG.format(lifetime=_SHORT if may_be_robbed else _LONG)
        self._hosts[0].do("sh", "-c", 'printf %s "$0" >"$1"', settings, config)
        self._start_watch()
        for number, host in enumerate(self._hosts):
            robbed = number >= len(self._hosts) - may_be_robbed
            self._start(host, may_be_robbed=robbed, mutant=mutant if number == 0 else "none")

    def _start(self, host: NfsHost, *, may_be_robbed: bool, mutant: str = "none") -> None:
        number = 10 * len(self._over) + len(self._raging)
        self._raging[host] = _Raging(self, host, number, may_be_robbed=may_be_robbed, mutant=mutant)

    def _start_watch(self) -> None:
        name = f"{self.lab.server.name}{len(self._watched)}"
        (self.lab.notes / name).mkdir()
        self._watched.append(Notes(self.lab.notes / name))
        words = "watch", self.lab.server.place, self.items, f"{NOTES}/{name}"
        self._watch = self.lab.server.start(sys.executable, _PROGRAM, *words)

    def end(self) -> list[str]:
        """What was seen to be wrong while it raged. Who was killed on a host, that host alone can prove dead."""
        wrong = [line for raging in self._raging.values() for line in raging.end()]
        for host in self._hosts:
            assert host.sc_dtool("reap").code == 0
        done = self.lab.server.wait(self._watch)
        assert done.code == 0, done
        return wrong + self.seen()

    def seen(self) -> list[str]:
        """What was seen to be wrong so far."""
        journal = self.journal()
        return sorted(journal["violation"] | journal["wrong"])

    def journal(self) -> Journal:
        """What everybody noted."""
        every = [raging.notes for raging in (*self._over, *self._raging.values())] + self._watched
        read = [notes.read() for notes in every]
        return {kind: set().union(*(lines[kind] for lines in read)) for kind in KINDS if kind != "counts"}

    def totals(self) -> Counter[str]:
        """How much was done, and befell."""
        every = [raging.notes for raging in (*self._over, *self._raging.values())] + self._watched
        return sum((notes.counts() for notes in every), Counter(self.counts))

    def judged(self, work: Path) -> tuple[list[str], int]:
        """What is not as it must be, now that all is over, and how many uses are in the history."""
        noted = work / "journal.json"
        noted.write_text(json.dumps({kind: sorted(lines) for kind, lines in self.journal().items()}))
        server = self.lab.server
        done = server.run(sys.executable, _PROGRAM, "judge", server.place, str(noted), self.items)
        assert done.code == 0, done
        found = json.loads(done.out)
        return found["violations"], found["in history"]

    # -- what befalls it -----------------------------------------------------------------------------------------------

    def befall(self, *faults: str) -> None:
        """Some of the faults below, in an order of chance."""
        for fault in self._dice.sample(faults, len(faults)):
            print(f"{time.monotonic() - self._began:5.0f} s  {fault}", flush=True)
            getattr(self, fault)()
            self.go_on()

    def go_on(self, *hosts: NfsHost) -> None:
        """Wait until these hosts, or all, have used some things more."""
        before = {host: self._uses(host) for host in hosts or self._raging}
        for host, uses in before.items():
            enough = uses + self._dice.randrange(15, 30)
            self.wait_until(lambda: self._uses(host) >= enough, f"{host.name} goes on")  # noqa: B023

    def wait_until(self, happened: Callable[[], bool], what: str, *, in_order: bool = True) -> None:
        """Look again and again; `in_order`: what is wrong meanwhile ends it all."""

        def has_happened() -> bool:
            if happened():
                return True
            assert not in_order or self.seen() == []
            return False

        wait_until(has_happened, what, patience=PATIENCE, pause=0.1)

    def _uses(self, host: NfsHost) -> int:
        return self._raging[host].notes.counts()["uses"]

    def lose_packets(self) -> None:
        """From now on what the server and a client send arrives late, and some of it never."""
        for host in (self.lab.server, self._dice.choice(self._hosts)):
            host.suffer("delay", f"{self._dice.randrange(2, 8)}ms", "2ms", "loss", f"{self._dice.randrange(1, 4)}%")
            self._suffering.append(host)
        self.counts["slow networks"] += 2

    def restart_server(self) -> None:
        """A power failure of the server."""
        self.recover(self.lab.server)
        self.lab.server.crash()
        self.lab.server.boot()
        self.lab.server.connect()
        self._start_watch()
        self.counts["restarts"] += 1

    def crash_client(self) -> None:
        """A power failure of the last host, which boots again and goes on; nobody can prove its processes dead."""
        host = self._hosts[-1]
        self.recover(host)
        host.crash()
        self._over.append(self._raging.pop(host))
        self.go_on()
        host.boot()
        host.connect()
        host.mount(self.lab.version)
        self._start(host, may_be_robbed=True)
        self.counts["crashes"] += 1

    def part_briefly(self) -> None:
        """The second host is cut off for a while."""
        host, others = self._hosts[1], [one for one in self._hosts if one is not self._hosts[1]]
        host.cut()
        self.go_on(*others)
        host.heal()
        self.counts["partitions"] += 1

    def stand_still_briefly(self) -> None:
        """The last host stands still for a while."""
        host, others = self._hosts[-1], self._hosts[:-1]
        host.freeze()
        self.go_on(*others)
        host.thaw()
        self.counts["freezes"] += 1

    def fall_silent(self) -> None:
        """All but the first are cut off or stand still until they are taken for dead, and so is who has crashed."""
        silent = self._hosts[1:]
        print(f"{time.monotonic() - self._began:5.0f} s  silence", flush=True)
        frozen = [silent[-1]]
        boots = {raging.boot_id for raging in (*self._over, *(self._raging[host] for host in silent))}
        for host in silent:
            (host.freeze if host in frozen else host.cut)()
        self.counts["freezes"] += len(frozen)
        self.counts["partitions"] += len(silent) - len(frozen)
        self.go_on(self._hosts[0])
        self.wait_until(lambda: not boots & self._boots_of_holders(), "the silent are taken for dead")
        for host in silent:
            (host.thaw if host in frozen else host.heal)()
        print(f"{time.monotonic() - self._began:5.0f} s  silence is over", flush=True)

    def _boots_of_holders(self) -> set[str]:
        words = "sh", "-c", f"cd {self.lab.server.place}/.sc-dtool/holders && for name in *.*; do readlink $name; done"
        records = self.lab.server.run(*words).out.splitlines()
        return {str(json.loads(record)["boot"]) for record in records if record.startswith("{")}

    def recover(self, *hosts: NfsHost) -> None:
        """The network of these hosts, or of all, is good again."""
        for host in [one for one in self._suffering if one in (hosts or self._suffering)]:
            self.counts["packets lost"] += host.recover()
            self._suffering.remove(host)
