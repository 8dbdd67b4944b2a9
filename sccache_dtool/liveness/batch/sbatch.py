"""The command line of Slurm's `sbatch`: which words are its options, and where the script begins.

`sbatch` stops at the first word that is not an option, so it must be known which options take a value. Its options may
also be in the script, in lines that begin with ``#SBATCH``, and some are in the environment. The command line overrides
the environment, and that overrides the script.

The tables are those of Slurm 20.11 to 26.11, `src/common/slurm_opt.c`.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from sccache_dtool.errors import UsageError

#: Options whose value may be the next word.
_WITH_VALUE = frozenset(
    """
    account acctg-freq array autocomplete batch bb bbf begin chdir cluster cluster-constraint clusters comment
    constraint container container-id context core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task
    deadline delay-boot dependency distribution error exclude export export-file extra extra-node-info gid
    gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint input job-name
    kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mem-update
    mincpus network nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node
    ntasks-per-socket ntasks-per-tres open-mode output partition power prefer priority profile qos reservation
    resources runtime segment signal sockets-per-node switches tasks-per-node thread-spec threads-per-core time
    time-min tmp tres-bind tres-per-task uid wait-all-nodes wait4switch wckey wrap
    """.split()
)
_LETTERS_WITH_VALUE = frozenset("ABCDFGJLMNSabcdeimnopqtwx")

#: Options without a value, or whose value is part of the same word.
_ALONE = frozenset(
    """
    consolidate-segments contiguous exclusive external get-user-env help hold ignore-pbs nice no-kill no-requeue
    oom-kill-step overcommit oversubscribe parsable propagate quiet reboot requeue resv-ports spread-job spread-segments
    stepmgr test-only usage use-min-nodes verbose version wait
    """.split()
)

#: The letters of options that matter here.
_LETTERS = {"D": "chdir", "H": "hold", "Q": "quiet", "W": "wait", "V": "version", "h": "help"}

#: Options with which no job is submitted.
_NO_JOB = frozenset({"help", "test-only", "usage", "version"})

#: How a line of a script begins that names an item.
_ITEM = re.compile(r"#SC(?=\s)")


class Words(NamedTuple):
    """The words of a command line, taken apart."""

    own: list[str]  # options that are not sbatch's, with their values
    others: list[str]  # all other words, as they were
    options: list[list[str]]  # of each component of a heterogeneous job; of every other job, of one
    rest: list[str]  # the script and its arguments; empty: the script is the value of --wrap, or on standard input
    given: dict[str, str]  # sbatch's options by long name (some by letter), with the value that was given last

    @property
    def script(self) -> str | None:
        """The script, as it is named; None if it is on standard input, or in --wrap."""
        rest = self.rest[self.rest[:1] == ["--"] :]
        return rest[0] if rest else None

    def line(self, *more: str) -> list[str]:
        """The command line, with further options for the first component."""
        first, *others = self.options
        words = ["sbatch", *first, *more]
        for options in others:
            words += [":", *options]
        return words + self.rest


def submits(given: Mapping[str, str]) -> bool:
    """Whether `sbatch` submits a job at all with these options, wherever they are given."""
    return not _NO_JOB & given.keys()


def parse(words: Sequence[str], own: Mapping[str, bool] = MappingProxyType({})) -> Words:
    """Take a command line of `sbatch` apart, which may contain options of the caller's own.

    `own`: these, and whether they take a value. --quiet is in `given` alone: with it, `sbatch` prints no id.
    """
    mine: list[str] = []
    others: list[str] = []
    options: list[list[str]] = [[]]
    given: dict[str, str] = {}
    left = list(words)
    while left and re.match(r":$|-(?!-?$)", left[0]):
        before = list(left)
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name in own:
            mine += [word, *_value(left, own[name] and not equals)]
            continue
        if word == ":":
            options.append([])
        elif word.startswith("--"):
            option = _full_name(name[2:])
            if option not in _ALONE | _WITH_VALUE and not equals and left and not left[0].startswith("-"):
                raise UsageError(
                    f"{name} is not known, so it is unclear whether {left[0]} is its value or the job's script",
                    hint=f"write {name}=VALUE; an option without a value can be in the script, as #SBATCH {name}",
                )
            further = _value(left, option in _WITH_VALUE and not equals)
            given[option] = further[0] if further else value
            options[-1] += [word, *further] if option != "quiet" else []
        else:
            options[-1] += _letters(word, left, given)
        others += before[: len(before) - len(left)]
    return Words(mine, [*others, *left], options, left, given)


def _value(left: list[str], is_next: bool) -> list[str]:
    """The value of an option, if it is the next word."""
    return [left.pop(0)] if is_next and left else []


def _letters(word: str, left: list[str], given: dict[str, str]) -> list[str]:
    """A word of options with one letter, such as ``-HJname``, without ``Q``."""
    kept = "-"
    for place, letter in enumerate(word[1:], 1):
        value = word[place + 1 :]
        if letter in _LETTERS_WITH_VALUE:
            further = _value(left, not value)
            given[_LETTERS.get(letter, letter)] = value or "".join(further)
            return [f"{kept}{word[place:]}", *further]
        given[_LETTERS.get(letter, letter)] = ""
        if letter == "k":  # its value can only be part of the word
            return [f"{kept}{word[place:]}"]
        kept += letter if letter != "Q" else ""
    return [kept] if kept != "-" else []


def _full_name(name: str) -> str:
    """The option that a name or the beginning of one means; the name itself if `sbatch` would refuse it."""
    known = _ALONE | _WITH_VALUE
    found = [name] if name in known else [one for one in known if one.startswith(name)]
    return found[0] if len(found) == 1 else name


# -- the script --------------------------------------------------------------------------------------------------------


def find(words: Words, environ: Mapping[str, str]) -> str:
    """The path of the job's script, where `sbatch` looks for it: here, then in $PATH. Raises UsageError."""
    script = words.script or ""
    places = [words.given.get("chdir", ""), "", *environ.get("PATH", "").split(os.pathsep)]
    if script.startswith((".", "/")):
        places = [""]
    for place in places:
        path = os.path.join(place, script)
        if os.path.isfile(path):
            return path
        if place == "" and os.path.exists(path) and not os.path.isdir(path):  # such as bash's <(…), read only once
            raise UsageError(f"{script} is not a regular file", hint="give the script on standard input")
    raise UsageError(
        f"there is no script {script}",
        hint="give the job's script after the options of sbatch, or the script on standard input",
    )


def items(text: str) -> tuple[list[tuple[int, str]], list[int]]:
    """What the lines ``#SC …`` of a script say, with their numbers; and the numbers of lines that come too late.

    As those of ``#SBATCH``, they count up to the first command.
    """
    lines, late = [], []
    is_head = True
    for number, line in enumerate(_lines(text), 1):
        is_head = is_head and _is_comment(line)
        match = _ITEM.match(line)
        if match is None:
            continue
        if is_head:
            lines.append((number, line[match.end() :]))
        else:
            late.append(number)
    return lines, late


def options_in(text: str) -> dict[str, str]:
    """The options in the lines ``#SBATCH …`` of a script."""
    given: dict[str, str] = {}
    for line in itertools.takewhile(_is_comment, _lines(text)):
        if line.startswith("#SBATCH"):
            try:
                given |= parse(shlex.split(line[len("#SBATCH") :], comments=True)).given
            except (ValueError, UsageError):
                continue  # an unclosed quotation mark, which `sbatch` reports; or a plugin's option
    return given


def _lines(text: str) -> list[str]:
    """The lines as `sbatch` and the shell see them: a form feed, for example, does not end one."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def _is_comment(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


# -- a variable for the job --------------------------------------------------------------------------------------------


def export(given: Mapping[str, str], in_script: Mapping[str, str], environ: Mapping[str, str], name: str) -> list[str]:
    """The options with which the variable `name` of `environ` reaches the job. Raises UsageError if none does that."""
    asked = given.get("export", environ.get("SBATCH_EXPORT", in_script.get("export")))
    from_file = "export-file" in given or "export-file" in in_script
    words = [] if asked is None else asked.upper().split(",")
    if words == ["NIL"]:
        raise UsageError(f"with --export=NIL, the job does not get ${name}", hint="give --export=NONE instead")
    if (asked is None or "ALL" in words) and not from_file:
        return []
    others = [] if asked is None or words == ["NONE"] else [asked]
    return [f"--export={','.join([*others, f'{name}={environ[name]}' if from_file else name])}"]
