"""Explores everything that several actors can do on one server, breadth first, within bounds.

A state is: the tree on the server, where each actor stands, what is believed (facts), what each client remembers to be
absent, and how many of each kind of misfortune may still happen. Any actor may go on at any time, or never: a pause of
any length is one of the orders. Misfortunes are answers that differ from the plain one; see `_answers`.
"""

from __future__ import annotations

import dis
import gc
import inspect
import time
from array import array
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

from model import disk
from model.actors import Program
from model.disk import EIO, ENOENT, IN_TREE, REPEATED, Call, Refused, Tree, is_directory, split

Fact = tuple[Any, ...]
Make = Callable[[], Program]


#: What is asked of the world and not of the server, and what an actor only says of itself: see `actors`.
_QUESTIONS = frozenset({"elected", "judge", "choose", "reads"})
_BELIEFS = frozenset({"hold", "drop", "lost", "began", "counted"})


class Luck(NamedTuple):
    """How many misfortunes of each kind may still happen in a run."""

    crashes: int = 0  # an actor stops for good; with `ends` at the same moment for all others to see
    lost: int = 0  # a call is done and its reply lost: the repetition is refused
    errors: int = 0  # a call fails with EIO, done or not
    stale: int = 0  # a look-up or a listing shows what was, or not yet what is
    lapses: int = 0  # a living holder is taken for dead


class Node(NamedTuple):
    """Where an actor stands: the call that it makes next, None when it has ended."""

    call: Call | None
    sent: tuple[object, ...]  # a history of answers that leads here
    why: str  # how it ended


class Life:
    """All places in one actor's program that were reached so far; answers lead from one to the next."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self.nodes: list[Node] = []
        self._known: dict[Hashable, int] = {}
        self._ways: dict[tuple[int, object], int] = {}
        self._place(())

    def after(self, node: int, answer: object) -> int:
        """Where an answer leads."""
        way = self._ways.get((node, answer))
        if way is None:
            way = self._ways[node, answer] = self._place((*self.nodes[node].sent, answer))
        return way

    def _place(self, sent: tuple[object, ...]) -> int:
        program = self._make()
        call: Call | None = None
        why = "ended"
        try:
            call = next(program)
            for answer in sent:
                call = program.throw(Refused(answer.why)) if isinstance(answer, Refused) else program.send(answer)
            mark = _mark(program)
        except StopIteration:
            call, mark = None, "ended"
        except Refused as refusal:
            call, mark, why = None, "failed", f"gave up: {refusal.why}"
        if mark not in self._known:
            self._known[mark] = len(self.nodes)
            self.nodes.append(Node(call, sent, why))
        return self._known[mark]


def _mark(program: Any) -> Hashable:
    """What tells one place in a program from another: the line and the variables of each function that is paused."""
    frames = []
    while program is not None:
        frame = program.gi_frame
        _check(frame.f_code)
        frames.append((frame.f_code, frame.f_lasti, tuple(sorted(frame.f_locals.items()))))
        program = program.gi_yieldfrom
    return tuple(frames)


_checked: set[Any] = set()


def _check(code: Any) -> None:
    """A loop over an iterator would hide where it is from `_mark`."""
    if code in _checked:
        return
    loops = [step for step in dis.get_instructions(code) if step.opname == "FOR_ITER"]
    assert not loops or code.co_flags & inspect.CO_GENERATOR == 0, f"{code.co_name}: `for` in a program"
    _checked.add(code)


class State(NamedTuple):
    """One moment."""

    tree: Tree
    at: tuple[int, ...]  # of each actor the node
    facts: frozenset[Fact]
    absent: frozenset[tuple[int, str, str]]  # (actor, directory, name) that its client was told is not there
    luck: Luck


class Moved(NamedTuple):
    """What one transition does, for the trace: a call of an actor and its answer, or None for its crash."""

    actor: int
    call: Call | None
    answer: object = None
    note: str = ""

    @property
    def text(self) -> str:
        return "crashes" if self.call is None else f"{_words(self.call)}{_shown(self.answer)}{self.note}"


class Scenario(NamedTuple):
    """Actors on a tree, and what may befall them."""

    name: str
    tree: Tree
    actors: Mapping[str, Make]
    luck: Luck
    mortal: frozenset[str] | None = None  # who may crash; None: everybody
    recovery: Make | None = None  # what puts everything in order, once nobody is left
    wanted: str | None = None  # the payload of a copy that is kept, and that nobody may delete


class Result(NamedTuple):
    """What an exploration has found."""

    scenario: Scenario
    states: int
    transitions: int
    seconds: float
    violation: str | None
    trace: tuple[str, ...]


class Explorer:
    """One exploration."""

    def __init__(self, scenario: Scenario, violated: Callable[[Tree, frozenset[Fact]], str | None]) -> None:
        self._scenario = scenario
        self._violated = violated
        self._names = list(scenario.actors)
        self._lives = [Life(make) for make in scenario.actors.values()]
        self._fine: set[tuple[Tree, frozenset[Fact]]] = set()
        self._recovered: set[tuple[Tree, frozenset[Fact]]] = set()
        self._trees: dict[Tree, Tree] = {}
        self._made: dict[Tree, frozenset[Fact]] = {}  # the leases that are seen in a tree
        self._beliefs: dict[frozenset[Fact], frozenset[Fact]] = {}

    def run(self) -> Result:
        """Explore until everything was seen, or something is violated."""
        gc.disable()  # nothing of all that is kept is a cycle, and looking for one takes a third of the time
        try:
            return self._explore()
        finally:
            gc.enable()

    def _explore(self) -> Result:
        began = time.monotonic()
        first = State(self._scenario.tree, (0,) * len(self._lives), frozenset(), frozenset(), self._scenario.luck)
        first, wrong = self._settle(first, range(len(self._lives)))
        assert wrong is None
        known: dict[State, int] = {first: 0}
        states = [first]
        parents, moves, transitions = array("l", [-1]), [Moved(-1, None)], 0
        backward: list[list[int]] = [[]]
        index = 0
        while index < len(states):
            state = states[index]
            for moved, after, wrong in self._steps(state):
                transitions += 1
                if wrong:
                    trace = (*self._trace(index, parents, moves), self._line(moved))
                    return Result(self._scenario, len(states), transitions, time.monotonic() - began, wrong, trace)
                found = known.get(after)
                if found is None:
                    found = known[after] = len(states)
                    states.append(after)
                    parents.append(index)
                    moves.append(moved)
                    backward.append([])
                    wrong = self._wrong(after)
                    if wrong:
                        trace = self._trace(found, parents, moves)
                        seconds = time.monotonic() - began
                        return Result(self._scenario, len(states), transitions, seconds, wrong, trace)
                backward[found].append(index)
            index += 1
        stuck = self._stuck(states, backward)
        trace = () if stuck is None else self._trace(stuck, parents, moves)
        wrong = None if stuck is None else "from here on nobody ever comes to an end"
        return Result(self._scenario, len(states), transitions, time.monotonic() - began, wrong, trace)

    # -- what can happen -----------------------------------------------------------------------------------------------

    def _steps(self, state: State) -> Iterator[tuple[Moved, State, str | None]]:
        for actor, node in enumerate(state.at):
            if node < 0:
                continue
            call = self._lives[actor].nodes[node].call
            if call is None:
                continue
            for answer, tree, luck, note in self._answers(state, actor, call):
                absent = self._noticed(state, actor, call, answer)
                after = self._lives[actor].after(node, answer)
                at = (*state.at[:actor], after, *state.at[actor + 1 :])
                moved = Moved(actor, call, answer, note)
                yield (moved, *self._settle(State(tree, at, state.facts, absent, luck), (actor,)))
            if state.luck.crashes and self._is_mortal(actor):
                yield Moved(actor, None), self._without(state, actor), None

    def _is_mortal(self, actor: int) -> bool:
        return self._scenario.mortal is None or self._names[actor] in self._scenario.mortal

    def _without(self, state: State, actor: int) -> State:
        name = self._names[actor]
        facts = frozenset(fact for fact in state.facts if fact[0] == "made" or fact[1] != name) | {("dead", name)}
        return State(
            state.tree,
            (*state.at[:actor], -1, *state.at[actor + 1 :]),
            facts,
            frozenset(one for one in state.absent if one[0] != actor),
            state.luck._replace(crashes=state.luck.crashes - 1),
        )

    def _answers(self, state: State, actor: int, call: Call) -> Iterator[tuple[object, Tree, Luck, str]]:
        """All that a call can come to: (what the actor is told, the tree after it, the luck that is left, a note)."""
        kind, tree, luck = call[0].removeprefix(IN_TREE), state.tree, state.luck
        if kind in _QUESTIONS:
            yield from self._judged(state, actor, call)
            return
        try:
            step = disk.perform(tree, call)
        except Refused as refusal:
            yield refusal, tree, luck, ""
        else:
            after = self._tree(tree, step)
            for result in self._listings(state, actor, call, step.result):
                spent = luck if result[1] == "" else luck._replace(stale=luck.stale - 1)
                yield result[0], after, spent, result[1]
            if luck.lost and kind in REPEATED:
                yield Refused(REPEATED[kind]), after, luck._replace(lost=luck.lost - 1), ", done, and its reply lost"
            if luck.errors and kind in REPEATED:
                spent = luck._replace(errors=luck.errors - 1)
                yield Refused(EIO), after, spent, ", though it is done"
                yield Refused(EIO), tree, spent, ", and is not done"
        if luck.stale:
            spent = luck._replace(stale=luck.stale - 1)
            for way in self._old_ways(tree, call):
                try:
                    step = disk.perform(tree, call, way)
                    yield step.result, self._tree(tree, step), spent, f", by an old way into {way[2]}"
                except Refused as refusal:
                    yield refusal, tree, spent, f", by an old way into {way[2]}"
            if self._seems_absent(state, actor, call):
                yield Refused(ENOENT), tree, spent, ", by an old memory of its absence"

    def _judged(self, state: State, actor: int, call: Call) -> Iterator[tuple[object, Tree, Luck, str]]:
        kind, *options = call
        tree, luck = state.tree, state.luck
        if kind == "elected":
            yield True, tree, luck, ""
            yield False, tree, luck, ""
        elif kind == "reads":
            yield None, tree, luck, ""
        elif kind == "choose":
            for option in options:
                yield option, tree, luck, ""
        elif ("dead", options[0]) in state.facts or options[0] not in self._names:
            yield "dead", tree, luck, ""
        else:
            yield "alive", tree, luck, ""
            if (
                luck.lapses
                and self._lives[self._names.index(options[0])].nodes[state.at[self._names.index(options[0])]].call
            ):
                yield "dead", tree, luck._replace(lapses=luck.lapses - 1), ", its lifetime having lapsed"

    def _listings(self, state: State, actor: int, call: Call, result: object) -> Iterator[tuple[object, str]]:
        """A listing that takes time, and one that is out of date by one name."""
        if call[0] == "names-on":
            first, now = frozenset(call[2:]), frozenset(result)  # type: ignore[call-overload]
            unsure = sorted(first ^ now)
            for chosen in range(1 << len(unsure)):
                with_these = {name for bit, name in enumerate(unsure) if chosen >> bit & 1}
                yield tuple(sorted(first & now | with_these)), ""
            return
        if call[0] == "names-still":
            yield (result if result == call[2:] else None), ""
            return
        yield result, ""
        if call[0] != "names" or not state.luck.stale or self._is_fresh(actor, result):
            return
        names = frozenset(result)  # type: ignore[call-overload]
        for name in sorted(names):
            yield tuple(sorted(names - {name})), f", out of date: without {name}"
        where = state.tree.at(call[1])
        for was, name, _ in sorted(state.tree.ways):
            if was == where and name not in names:
                yield tuple(sorted(names | {name})), f", out of date: with {name}"

    def _is_fresh(self, actor: int, result: object) -> bool:
        """A change of one's own makes the client ask the server for the listing."""
        return any(name.startswith(f"probe-{self._names[actor]}") for name in result)  # type: ignore[attr-defined]

    def _old_ways(self, tree: Tree, call: Call) -> Iterator[tuple[str, str, str]]:
        """Directories that once were on the path of a call, and are not any more."""
        for way in sorted(tree.ways):
            if is_directory(way[2]) and tree.names.get(way[:2]) != way[2] and self._is_on_path(tree, call, way):
                yield way

    def _is_on_path(self, tree: Tree, call: Call, way: tuple[str, str, str]) -> bool:
        for path in _paths(call):
            here: str | None = ""
            for name in split(path)[:-1]:
                if (here, name) == way[:2]:
                    return True
                here = tree.names.get((here or "", name))
                if here is None:
                    break
        return False

    def _noticed(self, state: State, actor: int, call: Call, answer: object) -> frozenset[tuple[int, str, str]]:
        """What this client will remember to be absent."""
        if not (state.luck.stale and isinstance(answer, Refused) and answer.where):
            return state.absent
        return state.absent | {(actor, *answer.where)}

    def _seems_absent(self, state: State, actor: int, call: Call) -> bool:
        if not state.absent:
            return False
        for path in _paths(call):
            here: str | None = ""
            for name in split(path):
                if (actor, here, name) in state.absent and (here, name) in state.tree.names:
                    return True
                here = state.tree.names.get((here or "", name))
                if here is None:
                    break
        return False

    def _tree(self, tree: Tree, step: disk.Step) -> Tree:
        if step.names is None:
            return tree
        ways = tree.ways
        if self._scenario.luck.stale:
            ways = frozenset({*ways, *step.ways})
        made = Tree(step.names, ways)
        return self._trees.setdefault(made, made)

    # -- what is believed ----------------------------------------------------------------------------------------------

    def _settle(self, state: State, actors: Any) -> tuple[State, str | None]:
        """Let actors say what they believe from now on, which takes no time, and note what there is to see."""
        at, facts, wrong = list(state.at), set(state.facts), None
        for actor in actors:
            name = self._names[actor]
            while True:
                call = self._lives[actor].nodes[at[actor]].call
                if call is None or call[0] not in _BELIEFS:
                    break
                wrong = wrong or _believe(facts, name, call, state.tree)
                at[actor] = self._lives[actor].after(at[actor], None)
            if call is None:
                facts = {fact for fact in facts if fact[0] in ("made", "dead") or fact[1] != name} | {("ended", name)}
        made = self._made.get(state.tree)
        if made is None:
            made = self._made[state.tree] = frozenset(("made", lease) for lease in visible_leases(state.tree))
        facts |= made
        frozen = frozenset(facts)
        frozen = self._beliefs.setdefault(frozen, frozen)
        return State(state.tree, tuple(at), frozen, state.absent, state.luck), wrong

    def _wrong(self, state: State) -> str | None:
        seen = (state.tree, state.facts)
        if seen not in self._fine:
            wrong = self._violated(*seen) or self._lost(state.tree)
            if wrong:
                return wrong
            self._fine.add(seen)
        return self._not_recovered(state)

    def _lost(self, tree: Tree) -> str | None:
        """What somebody wants back is deleted."""
        wanted = self._scenario.wanted
        if wanted is None:
            return None
        going = [f"{place}/{name}" for place in ("tmp", "trash") for name in tree.inside(place) if "~going" in name]
        if wanted in tree.names.values() and not any(tree.at(f"{path}/payload") == wanted for path in going):
            return None
        return "the copy that is kept for `restore` is lost"

    def _not_recovered(self, state: State) -> str | None:
        """After a power failure now, can everything be put in order?"""
        if self._scenario.recovery is None:
            return None
        made = frozenset(fact for fact in state.facts if fact[0] == "made")
        if (state.tree, made) in self._recovered:
            return None
        self._recovered.add((state.tree, made))
        tree = recover(state.tree, self._scenario.recovery)
        wrong = self._violated(tree, made)
        left = litter(tree)
        if self._scenario.wanted is not None:
            left = [path for path in left if not path.startswith("trash/")]
            wrong = wrong or self._lost(tree) or _not_to_be_had(tree)
        if left:
            wrong = f"{', '.join(left)} left"
        return f"after a power failure, and a cleaning: {wrong}" if wrong else None

    # -- the end -------------------------------------------------------------------------------------------------------

    def _stuck(self, states: list[State], backward: list[list[int]]) -> int | None:
        """A state from which the end of everybody cannot be reached."""
        good = bytearray(len(states))
        todo = [number for number, state in enumerate(states) if self._is_over(state)]
        for number in todo:
            good[number] = 1
        while todo:
            for before in backward[todo.pop()]:
                if not good[before]:
                    good[before] = 1
                    todo.append(before)
        return next((number for number, fine in enumerate(good) if not fine), None)

    def _is_over(self, state: State) -> bool:
        return all(node < 0 or self._lives[actor].nodes[node].call is None for actor, node in enumerate(state.at))

    def _trace(self, state: int, parents: array[int], moves: list[Moved]) -> tuple[str, ...]:
        lines = []
        while parents[state] >= 0:
            lines.append(self._line(moves[state]))
            state = parents[state]
        return tuple(reversed(lines))

    def _line(self, moved: Moved) -> str:
        return f"{self._names[moved.actor]:{max(len(name) for name in self._names)}}  {moved.text}"


def _believe(facts: set[Fact], name: str, call: Call, tree: Tree) -> str | None:
    kind, *words = call
    if kind == "hold":
        facts.add(("holds", name, *words))
    elif kind == "drop":
        facts.difference_update([fact for fact in facts if fact[:3] == ("holds", name, words[0])])
    elif kind == "lost":
        facts.difference_update([fact for fact in facts if fact[:2] == ("holds", name)])
    elif kind == "began":
        facts.add(("counts", name, tuple(sorted(finished(tree)))))
    elif kind == "counted":
        (before,) = [fact[2] for fact in facts if fact[:2] == ("counts", name)]
        missed = sorted(set(before) - set(words))
        if missed:
            return f"{name} did not count {', '.join(missed)}, which had ended before it began"
    return None


def _not_to_be_had(tree: Tree) -> str | None:
    """The copy is neither in the trash, whole, nor published."""
    published = [name for name in tree.inside("item") if name.startswith("g")]
    trashed = [name for name in tree.inside("trash") if tree.at(f"trash/{name}/payload")]
    if published or any(tree.at(f"trash/{name}/json") for name in trashed if not name.endswith("~going")):
        return None
    return "the copy that is kept for `restore` can neither be used nor restored"


def finished(tree: Tree) -> set[str]:
    """The names of finished leases in the history, folded ones included."""
    found: set[str] = set()
    for name in tree.inside("item/history"):
        if name.startswith("segment"):
            found.update(tree.names[tree.at(f"item/history/{name}") or "", "data"].split())
        else:
            found.add(name)
    return found


def visible_leases(tree: Tree) -> list[str]:
    """The leases in all gates that are where users look."""
    return [
        lease
        for generation in tree.inside("item")
        if generation != "history"
        for lease in tree.inside(f"item/{generation}/use")
    ]


def litter(tree: Tree) -> list[str]:
    """What nobody needs, when nobody is there."""
    holders = [f"holders/{name}" for name in tree.inside("holders") if name != "gone" and not name.startswith("probe")]
    return [*holders, *(f"{where}/{name}" for where in ("tmp", "trash") for name in tree.inside(where))]


def recover(tree: Tree, make: Make) -> Tree:
    """Let one actor do its work while everybody else is dead, and nothing goes wrong."""
    program = make()
    answer: object = None
    while True:
        try:
            call = program.throw(answer) if isinstance(answer, Refused) else program.send(answer)
        except (StopIteration, Refused):
            return tree
        if call[0] in _QUESTIONS:
            answer = {"judge": "dead", "elected": True, "choose": call[-1], "reads": None}[call[0]]
            continue
        try:
            step = disk.perform(tree, call)
            answer = step.result
            tree = tree if step.names is None else Tree(step.names, tree.ways)
        except Refused as refusal:
            answer = refusal


def _paths(call: Call) -> tuple[str, ...]:
    kind = call[0].removeprefix(IN_TREE)
    if kind == "rename":
        return call[1:3]
    if kind in ("write", *_QUESTIONS):
        return ()
    return (call[2],) if kind == "symlink" else (call[1],)


def _words(call: Call) -> str:
    kind, *words = call
    kind = kind.removeprefix(IN_TREE)
    if kind == "rename":
        return f"rename {words[0]} → {words[1]}"
    if kind == "names-on":
        return f"names {words[0]}, to the end"
    if kind == "symlink":
        return f"symlink {words[1]}"
    return " ".join((kind, *words))


def _shown(answer: object) -> str:
    if isinstance(answer, Refused):
        return f": {answer.why}"
    if isinstance(answer, tuple):
        return f": {' '.join(answer) or 'nothing'}"
    return "" if answer is None else f": {answer}"
