"""The model and the program make the same calls: each operation is run in both, and with each of its replies lost.

So the model cannot drift away from what it is a model of. Names are compared by their places and their order: what is
`u1.0` in the one and `r2f3…-….0` in the other is LEASE1 in both. Not compared are calls that change nothing for others
(fsync, close, permissions), single steps within the removal of a tree, and what is read twice because it takes time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from faults import REPEATED, Call, Counting, FakeClock, FakeProc, store_of
from model import actors, disk
from model.actors import Program
from model.disk import IN_TREE, Refused, Tree, tree_of
from model.scenarios import COPY, EMPTY
from sccache_dtool.cache import Cache
from sccache_dtool.disk import records
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout, LeaseName, PartName, StateName, TrashName, WorkName
from sccache_dtool.evict import trash
from sccache_dtool.fetch.transfers import find_abandoned
from sccache_dtool.liveness import caller
from sccache_dtool.protocol import history, leases, reaping
from sccache_dtool.protocol.holders import Holder, HolderList
from sccache_dtool.protocol.leases import Held, Place

_UNSEEN = {"sync", "close", "share", "is_shared", "remove_tree", "changed"}


class Losing(Counting):
    """Carries everything out, and loses the reply to the `nth` call that changes something; 0: to none."""

    def __init__(self, nth: int = 0) -> None:
        super().__init__()
        self.nth = nth

    def handle(self, call: Call, do: Callable[[], Any]) -> Any:
        result = do()
        if call.kind in REPEATED:
            self.nth -= 1
            if self.nth == 0:
                raise OSError(REPEATED[call.kind], "lost", call.path)
        return result


class World(NamedTuple):
    """A cache with one copy of one item that nobody uses, and who acts on it."""

    fs: Losing
    layout: Layout
    clock: FakeClock
    proc: FakeProc
    source: str
    key: str
    generation: str
    holder: Holder

    @property
    def place(self) -> Place:
        return Place.of(self.layout, self.key, self.generation, "ref")

    def act(self) -> None:
        """What was done until now was done to set the scene."""
        self.fs.calls.clear()


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[[int], World]]:
    """Makes worlds whose file system loses one reply, counted from the moment of `lose`."""
    made: list[Cache] = []
    numbers = itertools.count()

    def make() -> World:
        directory = tmp_path / str(next(numbers))
        directory.mkdir()
        source = directory / "ref"
        source.write_text("ACGT")
        clock, proc, fs = FakeClock(), FakeProc(str(directory / "proc")), Losing()
        cache = Cache(directory / "cache", fs=FileSystem(), clock=clock, proc=proc)
        made.append(cache)
        cache.init()
        lease = cache.use(str(source))
        lease.release()
        cache.close()
        layout = Layout(str(directory / "cache"))
        for name in os.listdir(layout.history(lease.key)):
            os.unlink(f"{layout.history(lease.key)}/{name}")
        owner = caller.program_owner(proc)
        holder = Holder(store_of(fs, layout, clock=clock), owner, None)
        return World(fs, layout, clock, proc, str(source), lease.key, lease.place.generation, holder)

    yield make
    for cache in made:
        cache.close()


# -- the same words for both -------------------------------------------------------------------------------------------


class Names:
    """Gives each name that differs from run to run a number, in the order in which they appear."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str] = {}

    def path(self, parts: list[str]) -> str:
        return "/".join(self._part(tuple(parts[:number]), part) for number, part in enumerate(parts))

    def _part(self, above: tuple[str, ...], part: str) -> str:
        where, name, tail = "/".join(above[:1]), part.partition("~")[0], part.partition("~")[2]
        if where == "item" and len(above) == 1 and part != "history":
            return self._number("COPY", name)
        if part.startswith("kept~"):
            return "kept"
        if where == "trash":
            return self._number("COPY", name) + ("~going" if tail.endswith("going") else "")
        if len(above) == 3 and above[2] == "use":
            return self._number("LEASE", name)
        if above == ("item", "history"):
            return self._number("SEGMENT", "") if name.startswith("segment") else self._number("ENDED", part)
        if where == "holders" and part != "gone":
            return self._number("PROBE" if part.startswith("probe") else "HOLDER", part)
        if where == "tmp" and len(above) == 1:
            return f"{self._number('WORK', name)}~{tail.partition('~')[0]}"
        return {"item.json": "json"}.get(part, part)

    def _number(self, kind: str, name: str) -> str:
        count = sum(known == kind for known, _ in self._known)
        return self._known.setdefault((kind, name), f"{kind}{count + 1}")


def of_product(world: World) -> list[str]:
    """The calls that the program has made."""
    names, lines = Names(), []
    item = world.layout.item(world.key)
    for call in world.fs.calls:
        if call.kind in _UNSEEN:
            continue
        if call.kind == "write":
            lines.append("write")
            continue
        if call.kind == "get_records":  # many at once, with one call each
            directory, records = call.arguments
            inner = str(directory).removeprefix(f"{world.layout.control}/")
            lines.extend(f"readlink {names.path([inner, str(name)])}" for name in records)
            continue
        paths = call.arguments[:2] if call.kind == "rename" else [call.path]
        inner = [str(path).replace(item, "item").removeprefix(f"{world.layout.control}/").split("/") for path in paths]
        lines.append(" ".join([call.kind, *(names.path(path) for path in inner)]))
    return lines


def of_model(tree: Tree, program: Program, *, lost: int, dead: bool) -> list[str]:
    """The calls that the model makes, alone, with the reply to the `lost`-th lost."""
    names, lines, answer = Names(), [], None
    while True:
        try:
            call = program.throw(answer) if isinstance(answer, Refused) else program.send(answer)
        except (StopIteration, Refused):
            return lines
        kind = call[0]
        answer = None
        if kind == "judge":
            answer = "dead" if dead else "alive"
        if kind == "choose":
            answer = call[-1]
        if kind in ("judge", "choose", "hold", "drop", "lost", "began", "counted", "reads"):
            continue
        try:
            step = disk.perform(tree, call)
            answer, tree = step.result, Tree(step.names or tree.names)
            if kind in disk.REPEATED:
                lost -= 1
                if lost == 0:
                    answer = Refused(disk.REPEATED[kind])
        except Refused as refusal:
            answer = refusal
        if kind.startswith(IN_TREE) or kind in ("names-on", "names-still"):
            continue
        paths = call[1:3] if kind == "rename" else [call[2] if kind == "symlink" else call[1]]
        lines.append("write" if kind == "write" else " ".join([kind, *(names.path(path.split("/")) for path in paths)]))


# -- operations --------------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """One operation in both: what was before, what is done, and the same in the model."""

    before: Callable[[World], object]
    act: Callable[[World, Any], object]
    tree: tuple[str, ...]
    links: dict[str, str]
    program: Callable[[], Program]
    dead: bool = False  # whether the holder u1 is


def _nothing(world: World) -> None:
    """A copy that nobody uses."""


def _lease(world: World) -> str:
    lease = leases.take(store_of(FileSystem(), None, clock=world.clock), world.holder, world.place)
    assert lease is not None
    return lease.name


def _lease_without_history(world: World) -> str:
    os.rmdir(world.layout.history(world.key))
    return _lease(world)


def _held(world: World, name: str) -> Held:
    return Held(world.key, world.generation, name, LeaseName.parse(name))


def _lease_of_the_dead(world: World) -> str:
    """The holder in its world is a process that is gone."""
    name = _lease(world)
    world.proc.end(os.getpid())
    return name


def _lease_of_the_missing(world: World) -> str:
    name = _lease(world)
    world.holder.retire()
    return name


def _reap(world: World, name: str) -> None:
    judge = reaping.Judge(
        store_of(world.fs, world.layout, clock=world.clock),
        HolderList.complete(store_of(world.fs, world.layout)),
        lambda holder, record: reaping.Verdict(reaping.State.DEAD, "gone"),
    )
    reaping.reap(store_of(world.fs, world.layout, clock=world.clock), judge, [_held(world, name)], dry_run=False)


def _closed(world: World) -> None:
    os.rmdir(world.place.gate)


def _binned(world: World) -> TrashName:
    trash.evict(store_of(FileSystem(), world.layout), world.key, world.generation, 1)
    (name,) = trash.listing(store_of(FileSystem(), world.layout))
    return name


def _used_twice(world: World) -> None:
    for _ in range(2):
        lease = leases.take(store_of(FileSystem(), None, clock=world.clock), world.holder, world.place)
        assert lease is not None
        leases.end(
            store_of(FileSystem(), None, clock=world.clock),
            world.place.gate,
            world.place.history,
            lease.name,
            "released",
        )


def _work(world: World) -> WorkName:
    work = WorkName(world.holder.next_lease(), "fetch")
    os.mkdir(f"{world.layout.tmp}/{work}")
    return work


_IN_RESTORE = ("use", "trashed", "trashed/payload#", "trashed/json#")


def _half_restored(world: World, renames: int) -> WorkName:
    """What a restorer leaves that is killed after so many renames."""
    name = _binned(world)
    work = WorkName(world.holder.next_lease(), "restore", str(name))
    os.makedirs(f"{world.layout.tmp}/{work}/use")
    if renames:
        os.rename(f"{world.layout.trash}/{name}", f"{world.layout.tmp}/{work}/trashed")
        for inner in Path(world.layout.tmp, str(work), "trashed").glob("kept~*"):
            inner.unlink()
    return work


def _revoked(world: World) -> None:
    (name,) = [name for name in os.listdir(world.layout.holders) if name != "gone"]
    os.rename(f"{world.layout.holders}/{name}", f"{world.layout.gone}/{name}")


def _fold(world: World, nothing: object) -> None:
    tmp = f"{world.layout.tmp}/{WorkName(world.holder.next_lease(), 'fold')}"
    history.fold(store_of(world.fs, None), world.place.history, tmp, least=2)


def _beat(world: World, nothing: object) -> None:
    world.holder.beat()


_U1 = {"holders/u1.0": "u1"}
_HELD = {**_U1, "item/g0/use/u1.0": "u1.0"}
_ENDED = {**_U1, "item/history/u1.0~u1~released": "u1.0", "item/history/u1.1~u1~released": "u1.1"}
_PLAIN = (*EMPTY, *COPY)

OPERATIONS = {
    "take": Operation(
        _nothing,
        lambda world, _: leases.take(store_of(world.fs, None, clock=world.clock), world.holder, world.place),
        _PLAIN,
        _U1,
        lambda: actors.enter("item/g0/use", "u1.0"),
    ),
    "take, closed": Operation(
        _closed,
        lambda world, _: leases.take(store_of(world.fs, None, clock=world.clock), world.holder, world.place),
        tuple(path for path in _PLAIN if path != "item/g0/use"),
        _U1,
        lambda: actors.enter("item/g0/use", "u1.0"),
    ),
    "release": Operation(
        _lease,
        lambda world, name: leases.end(
            store_of(world.fs, None, clock=world.clock), world.place.gate, world.place.history, name, "released"
        ),
        _PLAIN,
        _HELD,
        lambda: actors.release("u1", "g0", "u1.0"),
    ),
    "release, no history yet": Operation(
        _lease_without_history,
        lambda world, name: leases.end(
            store_of(world.fs, None, clock=world.clock), world.place.gate, world.place.history, name, "released"
        ),
        tuple(path for path in _PLAIN if path != "item/history"),
        _HELD,
        lambda: actors.release("u1", "g0", "u1.0"),
    ),
    "evict": Operation(
        _nothing,
        lambda world, _: trash.evict(store_of(world.fs, world.layout), world.key, world.generation),
        _PLAIN,
        {},
        lambda: actors.evict("g0"),
    ),
    "evict, for who wants it back": Operation(
        _nothing,
        lambda world, _: trash.evict(store_of(world.fs, world.layout), world.key, world.generation, 2_000_000_000),
        _PLAIN,
        {},
        lambda: actors.evict("g0", keep=True),
    ),
    "evict, in use": Operation(
        _lease,
        lambda world, _: trash.evict(store_of(world.fs, world.layout), world.key, world.generation),
        _PLAIN,
        _HELD,
        lambda: actors.evict("g0"),
    ),
    "evict, half done": Operation(
        _closed,
        lambda world, _: trash.evict(store_of(world.fs, world.layout), world.key, world.generation),
        tuple(path for path in _PLAIN if path != "item/g0/use"),
        {},
        lambda: actors.evict("g0"),
    ),
    "purge": Operation(
        _binned,
        lambda world, _: trash.purge(store_of(world.fs, world.layout), world.clock.wall() + 10),
        (*EMPTY, "trash/g0", "trash/g0/payload#", "trash/g0/json#"),
        {},
        actors.purge,
    ),
    "restore": Operation(
        _binned,
        lambda world, name: trash.restore(
            store_of(world.fs, world.layout, clock=world.clock), world.holder, world.key, name
        ),
        (*EMPTY, "trash/g0", "trash/g0/payload#", "trash/g0/json#"),
        _U1,
        lambda: actors.restore("u1", "g0"),
    ),
    "give back, nothing taken": Operation(
        lambda world: _half_restored(world, 0),
        lambda world, work: trash.give_back(store_of(world.fs, world.layout), work),
        (*EMPTY, "tmp/u1.0~restore~g0", "tmp/u1.0~restore~g0/use", "trash/g0", "trash/g0/payload#", "trash/g0/json#"),
        _U1,
        lambda: actors.give_back("u1.0~restore~g0"),
    ),
    "give back, all taken": Operation(
        lambda world: _half_restored(world, 1),
        lambda world, work: trash.give_back(store_of(world.fs, world.layout), work),
        (*EMPTY, "tmp/u1.0~restore~g0", *(f"tmp/u1.0~restore~g0/{inner}" for inner in _IN_RESTORE)),
        _U1,
        lambda: actors.give_back("u1.0~restore~g0"),
    ),
    "discard a work area": Operation(
        _work,
        lambda world, work: trash.discard_work(store_of(world.fs, world.layout), work),
        (*EMPTY, "tmp/u1.1~fetch"),
        _U1,
        lambda: actors.discard_work("u1.1~fetch"),
    ),
    "beat": Operation(_nothing, _beat, _PLAIN, _U1, lambda: actors.beat("u1", 0)),
    "beat, revoked": Operation(_revoked, _beat, _PLAIN, {"holders/gone/u1.0": "u1"}, lambda: actors.beat("u1", 0)),
    "call the listing": Operation(
        _nothing,
        lambda world, _: HolderList.complete(store_of(world.fs, world.layout)),
        _PLAIN,
        _U1,
        lambda: actors.list_holders("r1", 1),
    ),
    "reap the dead": Operation(
        _lease, _reap, _PLAIN, _HELD, lambda: actors.reap("r1", (("g0", False, ("u1.0",)),)), dead=True
    ),
    "reap the missing": Operation(
        _lease_of_the_missing,
        _reap,
        _PLAIN,
        {"item/g0/use/u1.0": "u1.0"},
        lambda: actors.reap("r1", (("g0", False, ("u1.0",)),)),
    ),
    "reap the revoked": Operation(
        lambda world: (_lease(world), _revoked(world))[0],
        _reap,
        _PLAIN,
        {"item/g0/use/u1.0": "u1.0", "holders/gone/u1.0": "u1"},
        lambda: actors.reap("r1", (("g0", False, ("u1.0",)),)),
    ),
    "fold": Operation(_used_twice, _fold, _PLAIN, _ENDED, lambda: actors.fold("u1")),
    "read the history": Operation(
        _used_twice,
        lambda world, _: history.read(store_of(world.fs, None), world.place.history),
        _PLAIN,
        _ENDED,
        actors.read_history,
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_model_makes_the_calls_of_the_program(make_world: Callable[[], World], name: str) -> None:
    """What the model proves would be proved of another program."""
    operation = OPERATIONS[name]
    made = 1
    for lost in itertools.count():
        if lost > made:
            break
        world = make_world()
        given = operation.before(world)
        world.fs.calls.clear()
        world.fs.nth = lost
        try:
            operation.act(world, given)
        except Exception as error:
            print(f"{name}, reply {lost} lost: {error}")
        calls = of_product(world)
        assert calls
        made = sum(call.kind in REPEATED for call in world.fs.calls)
        tree = tree_of(*operation.tree, **operation.links)
        assert of_model(tree, operation.program(), lost=lost, dead=operation.dead) == calls, f"reply {lost} lost"


def test_the_model_publishes_as_the_program_does(make_world: Callable[[], World]) -> None:
    """What the model proves of a download would be proved of another program. (How the data comes is not modelled.)"""
    world = make_world()
    os.rename(world.layout.generation(world.key, world.generation), f"{world.layout.root}/aside")
    with contextlib.closing(Cache(world.layout.root, fs=world.fs, clock=world.clock, proc=world.proc)) as cache:
        cache.use(world.source)
        calls = of_product(world)
    begin = next(number for number, line in enumerate(calls) if line.endswith("/json"))
    end = next(number for number, line in enumerate(calls) if line.startswith("rename tmp/WORK") and " item/" in line)
    shown = re.compile(r"names tmp/WORK|unlink tmp/WORK\d+~fetch/(at|part|transfer)")
    tree = tree_of(*EMPTY, "tmp/u1.1~fetch")
    program = actors.publish("g1", "tmp/u1.1~fetch", "u1.0")
    of_both = [
        [re.sub(r"(WORK|COPY|LEASE)\d+", r"\1", line) for line in lines if not shown.match(line)]
        for lines in (calls[begin : end + 1], of_model(tree, program, lost=0, dead=False))
    ]
    assert of_both[0] == of_both[1]


def test_the_model_takes_over_as_the_program_does(make_world: Callable[[], World]) -> None:
    """What the model proves of a takeover would be proved of another program. (Only what decides is compared.)"""
    world = make_world()
    area = f"{world.layout.tmp}/{_work(world)}"
    facts = {"key": world.key, "label": "ref", "by": "x", "began": 0.0, "sign": "gone"}
    FileSystem().write_new(f"{area}/transfer.json", records.encode_document(facts))
    for name in (StateName("transferring", 5, 9, 1), PartName(0, 5)):
        FileSystem().put_record("-", f"{area}/{name}")
    world.fs.calls.clear()
    taken = WorkName(world.holder.next_lease(), "taken")
    assert find_abandoned(store_of(world.fs, world.layout), world.key, f"{world.layout.tmp}/{taken}")
    tree = tree_of(*EMPTY, "tmp/u1.1~fetch")
    decisive = [line for line in of_product(world) if line == "names tmp" or line.startswith("rename")]
    assert decisive == of_model(tree, actors.find_abandoned("tmp/u1.2~taken"), lost=0, dead=False)
