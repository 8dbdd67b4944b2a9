"""What the actors do: each operation of the product, call by call.

A program is a generator: it yields a call and is sent the result, or Refused is thrown into it. The names of the
functions are those of the product where it has a function for it; `test_steps.py` runs both and compares their calls.

So that a paused program can be told from another by where it stands and what its variables are, there is nothing else
to it: no loop holds an iterator across a `yield`, and no exception is on its way while one is waited for.

Some calls are no calls on the server but questions to the world, answered in all ways that are possible:

- ("elected",): whether this actor won an election. Any answer at any time: locks save work and guard nothing.
- ("judge", holder): "dead" once the holder's actor has crashed, or where its lifetime may have lapsed; else "alive".
- ("choose", option, option …): any of them.
- ("reads",): somebody reads what he holds; time goes by.
- ("hold", lease, generation), ("drop", lease), ("lost",), ("began",), ("counted", names): not answered; what the
  actor believes from now on, and what the invariants are about.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from model.disk import EEXIST, EIO, ENOENT, ENOTEMPTY, GONE, IN_TREE, WHOLE, Call, Refused

Program = Generator[Call, Any, Any]

HISTORY = "item/history"
_HALF = "first"

#: Listings after which a directory that never keeps still is taken as it was last seen.
_MOST_LISTINGS = 20


# -- gate.py -----------------------------------------------------------------------------------------------------------


def enter(gate: str, lease: str) -> Program:
    try:
        yield "symlink", lease, f"{gate}/{lease}"
    except Refused as refusal:
        if refusal.why == EEXIST:
            text = yield "readlink", f"{gate}/{lease}"
            return text == lease
        if refusal.why not in GONE:
            raise
        return False
    return True


def leave(gate: str, lease: str, ended: str) -> Program:
    try:
        yield "rename", f"{gate}/{lease}", f"{HISTORY}/{ended}"
        return True
    except Refused as refusal:
        if refusal.why not in GONE:
            raise
    try:
        yield "lstat", "item"
        yield from _suppressing((EEXIST,), "mkdir", HISTORY)
        yield "rename", f"{gate}/{lease}", f"{HISTORY}/{ended}"
        return True
    except Refused as refusal:
        if refusal.why not in GONE:
            raise
    return (yield from _suppressing(GONE, "lstat", f"{HISTORY}/{ended}"))


def close(gate: str) -> Program:
    """How it is closed: "now" or "before"; "" if a lease is in it."""
    try:
        yield "rmdir", gate
    except Refused as refusal:
        if refusal.why == ENOTEMPTY:
            return ""
        if refusal.why != ENOENT:
            raise
        return "before"
    return "now"


# -- leases.py, items.py -----------------------------------------------------------------------------------------------


def take_existing(lease: str) -> Program:
    """The generation on which we have the lease now, or None.

    The product draws another number for each attempt. Here one that was not taken is tried again, so that there is no
    end of states: a name that was never made is nowhere to be seen.
    """
    found = yield from generations()
    while found:
        generation, found = found[0], found[1:]
        if (yield from enter(f"item/{generation}/use", lease)):
            yield "hold", lease, generation
            return generation
    return None


def generations() -> Program:
    try:
        found = yield "names", "item"
    except Refused as refusal:
        if refusal.why not in GONE:
            raise
        return ()
    return tuple(name for name in found if name != "history")


def end(me: str, generation: str, lease: str, how: str) -> Program:
    return leave(f"item/{generation}/use", lease, f"{lease}~{me}~{how}")


def release(me: str, generation: str, lease: str) -> Program:
    yield "drop", lease
    return (yield from end(me, generation, lease, "released"))


# -- holders.py --------------------------------------------------------------------------------------------------------


def appear(holder: str) -> Program:
    yield from _suppressing((EEXIST,), "symlink", holder, f"holders/{holder}.0")


def retire(holder: str, beats: int) -> Program:
    yield from _suppressing((*GONE, EIO), "unlink", f"holders/{holder}.{beats}")


def beat(me: str, beats: int) -> Program:
    """The next number of beats, or None if we were revoked."""
    try:
        yield "rename", f"holders/{me}.{beats}", f"holders/{me}.{beats + 1}"
        return beats + 1
    except Refused as refusal:
        if refusal.why not in GONE:
            raise
    present, _ = yield from list_holders(me, 9)
    mine = tuple(name for name in present if name.startswith(f"{me}."))
    if not mine:
        yield ("lost",)
        return None
    return int(mine[0].rpartition(".")[2])


def prove(me: str, generation: str, lease: str, beats: int) -> Program:
    """After a fetch: the next number of beats, or None if we were revoked, and have given the lease back."""
    after = yield from beat(me, beats)
    if after is None:
        yield from release(me, generation, lease)
    return after


def list_holders(me: str, number: int) -> Program:
    """(names in holders/, names in holders/gone/), after a create of our own."""
    probe = f"holders/probe-{me}{number}"
    yield from _suppressing((EEXIST,), "symlink", "probe", probe)
    yield "lstat", probe
    present = yield from list_without_a_snapshot("holders")
    gone = yield "names", "holders/gone"
    yield from _suppressing((ENOENT,), "unlink", probe)
    return _of_holders(present), gone


def call_in_silence(me: str, number: int) -> Program:
    """Names in holders/, listed while nothing changed there; None if there was no such moment."""
    probe = f"holders/probe-{me}{number}"
    yield from _suppressing((EEXIST,), "symlink", "probe", probe)
    yield "lstat", probe
    first = yield "names", "holders"
    present = yield "names-still", "holders", *first
    yield "names", "holders/gone"
    yield from _suppressing((ENOENT,), "unlink", probe)
    return None if present is None else _of_holders(present)


def _of_holders(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name != "gone" and not name.startswith("probe-"))


def list_without_a_snapshot(path: str) -> Program:
    """A listing takes time, and what comes or goes meanwhile may be in it or not (readdir(3))."""
    first = yield "names", path
    return (yield "names-on", path, *first)


def revoke(name: str) -> Program:
    try:
        yield "rename", f"holders/{name}", f"holders/gone/{name}"
    except Refused as refusal:
        if refusal.why not in GONE:
            raise
        return False
    return True


# -- reaping.py --------------------------------------------------------------------------------------------------------


def scan() -> Program:
    """((generation, whether it is closed, leases) …)."""
    seen: tuple[tuple[str, bool, tuple[str, ...]], ...] = ()
    found = yield from generations()
    while found:
        generation, found = found[0], found[1:]
        try:
            leases = yield "names", f"item/{generation}/use"
            seen = (*seen, (generation, False, leases))
        except Refused as refusal:
            if refusal.why != ENOENT:
                raise
            seen = (*seen, (generation, True, ()))
    return seen


class Judge(NamedTuple):
    """What a reaping has found out about holders, by their ids."""

    present: tuple[str, ...]
    gone: tuple[str, ...]
    dead: tuple[str, ...]
    second: tuple[str, ...] | None = None  # who was there while nobody came or went; None: there was no such moment
    asked: bool = False  # whether a second listing was made


def reap(me: str, seen: tuple[tuple[str, bool, tuple[str, ...]], ...]) -> Program:
    """End the leases of the dead; the Judge is for others to ask."""
    names, gone = yield from list_holders(me, 1)
    dead = yield from _judge_all(names)
    judge = Judge(_ids(names), _ids(gone), dead)
    leases = tuple((generation, lease) for generation, _, held in seen for lease in held)
    while leases:
        (generation, lease), leases = leases[0], leases[1:]
        yield from _suppressing(GONE, "readlink", f"item/{generation}/use/{lease}")
        is_dead, judge = yield from ask(me, judge, lease.rpartition(".")[0])
        if is_dead:
            yield from end(me, generation, lease, "reaped")
    return judge


def ask(me: str, judge: Judge, holder: str) -> Program:
    """Whether a holder is dead; and the judge, which may have learned something."""
    if holder in judge.gone:
        return True, judge
    if holder in judge.present:
        return holder in judge.dead, judge
    if not judge.asked:
        names = yield from call_in_silence(me, 2)
        judge = judge._replace(second=names if names is None else _ids(names), asked=True)
    return judge.second is not None and holder not in judge.second, judge


def _ids(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.rpartition(".")[0] for name in names)


def _judge_all(present: tuple[str, ...]) -> Program:
    """The ids of the dead, all of them revoked by us: one that has beaten meanwhile is not dead."""
    dead: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    unread = present
    while unread:
        name, unread = unread[0], unread[1:]
        if (yield from _suppressing(GONE, "readlink", f"holders/{name}")):
            readable = (*readable, name)
    while present:
        name, present = present[0], present[1:]
        if name not in readable and not (yield from _suppressing(GONE, "readlink", f"holders/{name}")):
            continue
        verdict = yield "judge", name.rpartition(".")[0]
        if verdict == "dead" and (yield from revoke(name)):
            dead = (*dead, name.rpartition(".")[0])
    return dead


# -- evict/trash.py ----------------------------------------------------------------------------------------------------


def evict(generation: str, *, keep: bool = False) -> Program:
    """`keep`: for who wants it back; else its removal has begun with that."""
    if keep and not (yield from noted(f"item/{generation}/kept")):
        return False
    closing = yield from close(f"item/{generation}/use")
    if not closing:
        if keep:
            yield from _unlinked(f"item/{generation}/kept")
        return False
    if closing == "before":
        keep = (yield from kept(f"item/{generation}")) or keep
    name = generation if keep else f"{generation}~going"
    return (yield from _suppressing(GONE, "rename", f"item/{generation}", f"trash/{name}"))


def noted(note: str) -> Program:
    try:
        yield "symlink", "-", note
    except Refused as refusal:
        if refusal.why in GONE:
            return False
        if refusal.why != EEXIST:
            raise
    return True


def _unlinked(path: str) -> Program:
    try:
        yield "unlink", path
    except Refused:
        return


def kept(directory: str) -> Program:
    try:
        found = yield "names", directory
    except Refused as refusal:
        if refusal.why not in GONE:
            raise
        return False
    return "kept" in found


def purge() -> Program:
    found = yield "names", "trash"
    while found:
        name, found = found[0], found[1:]
        going = f"{name.removesuffix('~going')}~going"
        try:
            if name != going:
                yield "rename", f"trash/{name}", f"trash/{going}"
            yield from remove_tree(f"trash/{going}")
        except Refused as refusal:
            if refusal.why not in (*GONE, ENOTEMPTY):
                raise


def remove_tree(path: str) -> Program:
    try:
        found = yield f"{IN_TREE}names", path
    except Refused as refusal:
        if refusal.why != ENOENT:
            raise
        return
    while found:
        name, found = found[0], found[1:]
        if name == "use":
            yield from remove_tree(f"{path}/{name}")
        else:
            yield from _suppressing((ENOENT,), f"{IN_TREE}unlink", f"{path}/{name}")
    yield from _suppressing((ENOENT,), f"{IN_TREE}rmdir", path)


def discard_work(work: str) -> Program:
    """Remove a work area whose holder is gone."""
    going = f"{work.partition('~')[0]}~going"
    if work != going:
        try:
            yield "rename", f"tmp/{work}", f"tmp/{going}"
        except Refused as refusal:
            if refusal.why not in (*GONE, EEXIST, ENOTEMPTY):
                raise
            return
    yield from remove_tree(f"tmp/{going}")


def restore(me: str, name: str) -> Program:
    """The new generation, or None."""
    work, emptied, generation = f"{me}.1~restore~{name}", f"tmp/{me}.2~emptied", f"g-{me}"
    refusal = None
    done = False
    try:
        done = yield from _restored(f"tmp/{work}", name, emptied, f"item/{generation}")
    except Refused as caught:
        refusal = caught
    if not done:
        try:
            yield from give_back(work)
        except Refused as caught:
            refusal = refusal or caught
    yield from _discard(emptied)
    if refusal is not None:
        raise refusal
    return generation if done else None


def _restored(area: str, name: str, emptied: str, target: str) -> Program:
    yield "mkdir", area
    yield "mkdir", f"{area}/use"
    yield from _suppressing((EEXIST,), "mkdir", HISTORY)
    if not (yield from moved(f"trash/{name}", f"{area}/trashed")):
        return False
    if not (yield from moved(f"{area}/trashed/payload", f"{area}/payload")):
        raise Refused(ENOENT)
    if not (yield from moved(f"{area}/trashed/json", f"{area}/json")):
        raise Refused(ENOENT)
    yield from moved(f"{area}/trashed", emptied)
    refusal = None
    try:
        if (yield from moved(area, target)):
            return True
        raise Refused(ENOENT)
    except Refused as caught:
        refusal = caught
    if refusal.why in GONE:
        raise refusal
    found = yield "names", "item"
    if target.partition("/")[2] in found:
        return True
    raise refusal


def give_back(work: str) -> Program:
    """Return to the trash what a restorer took from there, under its old name."""
    lease, purpose, name = work.split("~")
    area = f"tmp/{lease}~return~{name}"
    if purpose != "return":
        yield from _suppressing(GONE, "rename", f"tmp/{work}", area)
    yield from _suppressing((*GONE, ENOTEMPTY), "rmdir", f"{area}/use")
    try:
        yield "rmdir", area
        return False
    except Refused as refusal:
        if refusal.why in GONE:
            return False
        if refusal.why != ENOTEMPTY:
            raise
    yield from _suppressing(GONE, "rename", f"{area}/trashed/payload", f"{area}/payload")
    yield from _suppressing(GONE, "rename", f"{area}/trashed/json", f"{area}/json")
    yield from _suppressing((*GONE, ENOTEMPTY), "rmdir", f"{area}/trashed")
    return (yield from _suppressing(GONE, "rename", area, f"trash/{name}"))


def moved(source: str, target: str) -> Program:
    try:
        yield "rename", source, target
    except Refused as refusal:
        if refusal.why not in GONE:
            raise
        directory, _, name = target.rpartition("/")
        found = yield "names", directory
        return name in found
    return True


def _discard(area: str) -> Program:
    try:
        yield from remove_tree(area)
    except Refused:
        return


# -- history.py --------------------------------------------------------------------------------------------------------


def is_segment(name: str) -> bool:
    return name.startswith("segment")


def gather() -> Program:
    """(finished leases that were found, segments that were read)."""
    texts: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    turn = 0
    while turn < _MOST_LISTINGS:
        listing = yield from list_without_a_snapshot(HISTORY)
        vanished, fresh = False, False
        todo = tuple(name for name in listing if not is_segment(name) and name not in texts)
        while todo:
            name, todo = todo[0], todo[1:]
            text = yield from _suppressing((ENOENT,), "readlink", f"{HISTORY}/{name}")
            texts = _with(texts, (name,))
            vanished = vanished or not text
        todo = tuple(name for name in listing if is_segment(name) and name not in read)
        while todo:
            name, todo = todo[0], todo[1:]
            read, fresh = _with(read, (name,)), True
            try:
                lines = yield "read_text", f"{HISTORY}/{name}"
                texts = _with(texts, tuple(lines.split()))
            except Refused as refusal:
                if refusal.why != ENOENT:
                    raise
        if turn and not fresh and not vanished:
            break
        turn = min(turn + 1, 1)  # how many turns it has been makes no difference but for the first
    return texts, read


def _with(names: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({*names, *more}))


def fold(me: str) -> Program:
    listing = yield from list_without_a_snapshot(HISTORY)
    if len(listing) < 2:
        return
    texts, segments = yield from gather()
    tmp = f"tmp/{me}~fold"
    try:
        yield from write_new(tmp, " ".join(texts))
        yield "rename", tmp, f"{HISTORY}/segment-{me}"
    except Refused as refusal:
        yield from _suppressing((*GONE, EIO), "unlink", tmp)
        raise Refused(refusal.why) from None
    covered = (*(name for name in listing if name in texts), *segments)
    while covered:
        name, covered = covered[0], covered[1:]
        yield from _suppressing((ENOENT,), "unlink", f"{HISTORY}/{name}")


def write_new(path: str, text: str) -> Program:
    file = yield "create", path
    yield "write", file, text


def read_history() -> Program:
    yield ("began",)
    texts, _ = yield from gather()
    yield "counted", *texts


# -- fetch/populate.py, fetch/transfers.py -----------------------------------------------------------------------------


def fetch(me: str, name: str, attempt: int) -> Program:
    """The generation, with the lease `name` on it; None if the work area was taken from us."""
    area, taken = f"tmp/{me}.{attempt}~fetch", f"tmp/{me}.{attempt}~taken"
    refusal = generation = None
    mine = False
    try:
        mine = yield from find_abandoned(taken)
        yield "mkdir", area
        yield from download(area, taken if mine else None)
        generation = yield from publish(f"g-{me}{attempt}", area, name)
    except Refused as caught:
        refusal = caught
    gone = refusal is not None and (yield from _is_gone(area))
    if generation is None:
        yield from _discard(area)
    if mine:
        yield from _discard(taken)
    if generation is not None:
        yield "hold", name, generation
        return generation
    if gone:
        return None
    assert refusal is not None
    raise refusal


def find_abandoned(target: str) -> Program:
    """Whether somebody's work area is ours now. Which is abandoned, nobody knows for sure: any may seem to be."""
    try:
        found = yield "names", "tmp"
        areas = tuple(name for name in found if name.endswith("~fetch"))
        area = yield "choose", "", *areas
        return bool(area) and (yield from _suppressing(GONE, "rename", f"tmp/{area}", target))
    except Refused:
        return False


def download(area: str, taken: str | None) -> Program:
    """Two halves; the source may say in between that it has changed, and then it is begun again."""
    half = False
    file = yield "create", f"{area}/payload"
    if taken is not None:
        text = yield from _reading(f"{taken}/payload")
        half = bool(text)
        if half:
            yield "write", file, _HALF
    if not half:
        yield "write", file, _HALF
        if (yield "choose", "goes on", "begins again") == "begins again":
            yield "write", file, ""
            yield "write", file, _HALF
    yield "write", file, WHOLE


def _reading(path: str) -> Program:
    try:
        return (yield "read_text", path)
    except Refused:
        return ""


def publish(generation: str, area: str, lease: str) -> Program:
    yield from write_new(f"{area}/json", "facts")
    yield "mkdir", f"{area}/use"
    yield "symlink", lease, f"{area}/use/{lease}"
    yield from _suppressing((EEXIST,), "mkdir", HISTORY)
    try:
        yield "rename", area, f"item/{generation}"
    except Refused as refusal:
        if refusal.why not in GONE:
            raise
        found = yield "names", f"item/{generation}/use"
        if lease not in found:
            raise
    return generation


def _is_gone(area: str) -> Program:
    return not (yield from _suppressing(GONE, "names", area))


# -- whole lives -------------------------------------------------------------------------------------------------------


def user(me: str, uses: int, beats: int = 0, fetches: int = 0) -> Program:
    """Enter a holder; use the item so often, from memory after the first time; beat while holding it; go."""
    yield from appear(me)
    attempt, beaten = 0, 0
    known: str | None = None
    while uses:
        uses -= 1
        lease = f"{me}.{uses}"
        if known is not None:
            if (yield from enter(f"item/{known}/use", lease)):
                yield "hold", lease, known
            else:
                known = None
        while known is None:
            lease = f"{me}.{uses}{attempt}"
            known = yield from take_existing(lease)
            if known is not None or attempt == fetches:
                break
            if (yield ("elected",)):
                attempt += 1
                lease = f"{me}.{uses}{attempt}f"
                known = yield from fetch(me, lease, attempt)
                if known is not None:
                    beaten = yield from prove(me, known, lease, beaten)
                    if beaten is None:
                        return  # and begin again, as another holder
        if known is None:
            break
        yield ("reads",)
        todo = beats
        while todo:
            todo -= 1
            after = yield from beat(me, beaten)
            if after is None:
                yield from release(me, known, lease)
                return
            beaten = after
        yield from release(me, known, lease)
    yield from retire(me, beaten)


def slow_fetcher(me: str) -> Program:
    """Fetch, beat meanwhile, publish, use, go."""
    area = f"tmp/{me}.1~fetch"
    yield from appear(me)
    yield "mkdir", area
    file = yield "create", f"{area}/payload"
    beaten = yield from beat(me, 0)
    if beaten is not None:
        yield "write", file, WHOLE
        lease = f"{me}.0"
        generation = yield from publish(f"g-{me}", area, lease)
        yield "hold", lease, generation
        beaten = yield from prove(me, generation, lease, beaten)
        if beaten is None:
            return  # and begin again, as another holder
        yield ("reads",)
        yield from release(me, generation, lease)
        yield from retire(me, beaten)
    else:
        yield from _discard(area)


def evictor(*wanted: str) -> Program:
    """Evict the copies that a listing shows, or those named, and empty the trash."""
    found = wanted or (yield from generations())
    while found:
        generation, found = found[0], found[1:]
        yield from evict(generation)
    yield from purge()


def put_away(work: str) -> Program:
    """What a cleaner does with the work area of somebody who is gone."""
    if "~restore~" in work or "~return~" in work:
        yield from give_back(work)
    else:
        yield from discard_work(work)


def finish(generation: str) -> Program:
    """Go on with an eviction that was interrupted, as a cleaner does that finds no gate."""
    try:
        found = yield "names", f"item/{generation}"
    except Refused:
        return
    if "use" not in found:
        yield from evict(generation)


def finisher(me: str, generation: str) -> Program:
    yield from finish(generation)
    yield from returner(me)


def reap_and_tidy(me: str, seen: tuple[tuple[str, bool, tuple[str, ...]], ...]) -> Program:
    """Reap the leases of what was seen, and put away what the dead were at work on."""
    works = yield "names", "tmp"
    judge = yield from reap(me, seen)
    while works:
        work, works = works[0], works[1:]
        is_dead = work.endswith("~going") or "~return~" in work
        if not is_dead:
            is_dead, judge = yield from ask(me, judge, work.partition(".")[0])
        if is_dead:
            yield from put_away(work)


def returner(me: str) -> Program:
    """A cleaning that finds nothing to evict, and nothing in the trash that is not to be kept."""
    yield from appear(me)
    yield from reap_and_tidy(me, ())
    yield from retire(me, 0)


def reaper(me: str) -> Program:
    seen = yield from scan()
    yield from reap(me, seen)


def cleaner(me: str) -> Program:
    """`clean --all` from end to end."""
    yield from appear(me)
    seen = yield from scan()
    yield from reap_and_tidy(me, seen)
    while seen:
        (generation, _, _), seen = seen[0], seen[1:]
        yield from evict(generation)
    yield from purge()
    yield from retire(me, 0)


def restorer(me: str) -> Program:
    yield from appear(me)
    found = yield "names", "trash"
    whole = tuple(name for name in found if not name.endswith("~going"))
    if whole:
        yield from restore(me, whole[0])
    yield from retire(me, 0)


def alone(steps: Callable[[], Program]) -> Program:
    """An operation as a whole life."""
    yield from steps()


def _suppressing(expected: tuple[str, ...], *call: str) -> Program:
    """Do a call; False if it is refused for one of the expected reasons."""
    try:
        yield call
    except Refused as refusal:
        if refusal.why not in expected:
            raise
        return False
    return True
