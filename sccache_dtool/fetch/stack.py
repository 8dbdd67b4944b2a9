"""A loader stack: where an item comes from, and what is done with it, as words that all users write alike.

The first word is a source, and steps follow: ``https://example.org/ref.tar sha256:… tar``. Several sources make one
item, too: a digest checks the source before it, and other steps are done with each of the sources that stand right
before them. A word may name mirrors, ``URL|URL``: the next is asked when one fails. What is written in different ways
and means the same gets one canonical form, because that is what identifies an item in the cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence

from sccache_dtool.disk.names import shortened
from sccache_dtool.errors import UsageError
from sccache_dtool.fetch.reasons import plain
from sccache_dtool.fetch.request import OBJECT_SCHEMES, Chain, Source, Stack, Step
from sccache_dtool.fetch.words import (
    check_characters,
    is_digest,
    is_source,
    parse_sources,
    parse_step,
)


class _Block:
    """Sources in a row, each with its own digests, and the steps that are done with every one of them."""

    def __init__(self, mirrors: tuple[Source, ...]) -> None:
        # An object is named by its digest, which is checked as if it were given once more as a step.
        digests = [Step(mirrors[0].canonical)] if mirrors[0].scheme in OBJECT_SCHEMES else []
        self.sources: list[tuple[tuple[Source, ...], list[Step]]] = [(mirrors, digests)]
        self.steps: list[Step] = []

    def add(self, step: Step) -> None:
        digest = is_digest(step.canonical)
        before = next((earlier.canonical for earlier in self.steps if earlier.unpacks), None)
        if before is not None:
            raise UsageError(
                f"{plain(step.canonical)} cannot come after {before}, which produces a directory",
                hint=f"a digest checks a file: put it before {before}, and give {before} only once",
            )
        if digest and not self.steps:
            self.sources[-1][1].append(step)
        elif digest and len(self.sources) > 1:
            raise UsageError(
                f"{plain(step.canonical)} could apply to any of {len(self.sources)} sources",
                hint="put each digest right after its source",
            )
        else:
            self.steps.append(step)

    def chains(self) -> list[Chain]:
        made = []
        for mirrors, digests in self.sources:
            steps = (*digests, *self.steps)
            name = _name(mirrors[0].name, steps)
            made.append(Chain(mirrors, tuple(step.canonical for step in steps), shortened(name)))
        return made


def parse_stack(words: Sequence[str], *, cwd: str | None = None, credentials: Collection[str] = ()) -> Stack:
    """The stack that `words` mean; paths in it are relative to `cwd` (default: the working directory).

    `credentials`: names of parameters in URLs that are credentials, besides `credentials.NAMES`. No words are an empty
    stack. Nothing is looked up: whether the source exists, fetching tells. Raises UsageError for words that mean
    nothing.
    """
    if not words:
        return Stack()
    for word in words:
        check_characters(word)
    where = os.getcwd if cwd is None else lambda: cwd
    first = parse_sources(words[0], where, credentials)
    blocks, canonical = [_Block(first)], [_join(first)]
    for word in words[1:]:
        if is_source(word):
            mirrors = parse_sources(word, where, credentials)
            canonical.append(_join(mirrors))
            if blocks[-1].steps:
                blocks.append(_Block(mirrors))
            else:
                blocks[-1].sources.append((mirrors, []))
        else:
            step = parse_step(word)
            canonical.append(step.canonical)
            blocks[-1].add(step)
    chains = tuple(chain for block in blocks for chain in block.chains())
    name = _name(first[0].name, [*blocks[0].sources[0][1], *blocks[0].steps])
    if len(chains) > 1:
        _check_labels(chains)
        name = f"{name}+{len(chains) - 1}"
    return Stack(tuple(canonical), shortened(name), chains, name)


def stack_of(source: Source, steps: Sequence[str]) -> Stack:
    """The stack of one source that no word stands for, and the words of its steps. Raises UsageError."""
    block = _Block((source,))
    for word in steps:
        block.add(parse_step(word))
    (chain,) = block.chains()
    name = _name(source.name, [parse_step(step) for step in chain.steps])
    return Stack((source.canonical, *chain.steps), chain.label, (chain,), name)


def label_for(name: str, steps: Sequence[str]) -> str:
    """The name of a payload that was called `name` before canonical `steps` were done."""
    return shortened(_name(name, [parse_step(step) for step in steps]))


def _join(mirrors: tuple[Source, ...]) -> str:
    return "|".join(mirror.canonical for mirror in mirrors)


def _check_labels(chains: tuple[Chain, ...]) -> None:
    seen: dict[str, Chain] = {}
    for chain in chains:
        other = seen.setdefault(chain.label, chain)
        if other is not chain:
            raise UsageError(
                f"two sources of one item have the same name: {plain(chain.label)}",
                details=[other.source, chain.source],
                hint="use them as two separate items, such as with `use --from`",
            )


def _name(name: str, steps: Sequence[Step]) -> str:
    """An item's name from its source's; fixed rules only, because all hosts must come to the same."""
    for step in steps:
        if step.suffix:
            name = re.sub(rf"{step.suffix}\Z", "", name, flags=re.ASCII | re.IGNORECASE) or name
    return "data" if name in ("", ".", "..") else name
