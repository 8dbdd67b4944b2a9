"""Finds the root of a cache, checks it, and sets it up by one rename."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Mapping
from enum import Enum

from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import (
    CONTROL,
    DIRECTORIES,
    FORMAT_MAGIC,
    FORMAT_NAME,
    FORMAT_VERSION,
    IN_CONTROL,
    TAG_NAME,
    TAG_TEXT,
    Layout,
    aside,
    is_aside,
    unique,
)
from sccache_dtool.errors import FULL, GONE, NOT_EMPTY, CacheError, NoCache, NoSpace, UsageError, explain
from sccache_dtool.fallback import do_without
from sccache_dtool.tuples import NamedTuple

VARIABLE = "DTOOL_CACHE_DIRECTORY"
UPSTREAM = "SC_DTOOL_UPSTREAM"
_DTOOL_CONFIG = "~/.config/dtool/dtool.json"
_DEFAULT = "~/.cache/dtool"


#: Form of a cache's id, which also names the files of a user's state directory.
_ID = r"[0-9a-f]{1,64}"


#: What has selected the root if nobody has.
DEFAULT_ORIGIN = "the default"


class Choice(NamedTuple):
    """A cache root, and the setting that selected it."""

    path: str
    origin: str
    may_hold_data: bool  # dtool's own cache directory, which is set up even if it contains files
    parents: bool = False  # the default path, whose parents may be created because it cannot be mistyped


def choose(given: str | None, environment: Mapping[str, str]) -> Choice:
    """The root for a command: `given`, or else dtool's cache directory, determined as in dtool.

    That is $DTOOL_CACHE_DIRECTORY, then the same name in dtool's configuration file, then ~/.cache/dtool. Unlike in
    dtool, an empty value is refused, and a leading ``~`` means the home directory.
    """
    if given is not None:
        return Choice(_absolute(given, "--cache-dir"), "--cache-dir", False)
    if VARIABLE in environment:
        return Choice(_absolute(environment[VARIABLE], f"${VARIABLE}"), f"${VARIABLE}", True)
    configured = _dtool_setting()
    if configured is not None:
        return Choice(_absolute(configured, _DTOOL_CONFIG), _DTOOL_CONFIG, True)
    path = os.path.expanduser(_DEFAULT)
    if not os.path.isabs(path):
        raise UsageError(
            "no cache is given, and you have no home directory for the default cache",
            hint="give a directory with --cache-dir",
        )
    return Choice(path, DEFAULT_ORIGIN, True, os.path.isdir(os.path.expanduser("~")))


def choose_upstream(given: str | None, environment: Mapping[str, str], path: str) -> str | None:
    """The upstream of the cache at `path`: `given`, or else $SC_DTOOL_UPSTREAM; empty: none; None: as the cache says.

    The variable does not concern the cache that it names: one value is right for the commands on both tiers.
    """
    text = environment.get(UPSTREAM) if given is None else given
    if not text:
        return text
    upstream = _absolute(text, f"${UPSTREAM}" if given is None else "--upstream")
    return None if given is None and upstream == path else upstream


def _absolute(text: str, origin: str) -> str:
    if not text.strip() or "\0" in text or "\n" in text:
        raise UsageError(f"{origin} is empty or not a path", hint="name the cache's directory, such as /scratch/cache")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise UsageError(
            f"{origin} is {text}, but there is no such user", hint=f"to name a directory {text}, write ./{text}"
        )
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise UsageError(
            f"cannot resolve {text}: the working directory was removed", hint="give an absolute path"
        ) from None


def _dtool_setting() -> str | None:
    try:
        with open(os.path.expanduser(_DTOOL_CONFIG), encoding="utf-8") as file:
            text = file.read()
    except OSError:
        return None
    import json

    try:
        value = json.loads(text).get(VARIABLE)
    except (ValueError, AttributeError):
        return None
    return value if isinstance(value, str) else None


def check(fs: FileSystem, layout: Layout) -> str:
    """The cache's id. Raises NoCache if the root is not a cache, and CacheError if it has another format version.

    The program never writes or deletes anything in a root that has not passed this check.
    """
    try:
        text = fs.read_text(layout.format_file, 4096)
    except FileNotFoundError:
        hint = _how_to_repair(fs, layout) or _how_to_begin(fs, layout)
        raise NoCache(f"no cache in {layout.root}", hint=hint) from None
    except OSError as error:
        raise NoCache(
            f"cannot tell whether {layout.root} is a cache: {explain(error)}",
            hint="nothing was changed; check the path, its permissions and its owner",
        ) from error
    fields = dict(line.partition(": ")[::2] for line in text.splitlines()[1:])
    if not text.startswith(f"{FORMAT_MAGIC}\n") or not fields.get("id") or is_cut(text):
        hint = "nothing was changed; check the path, or restore this file from a backup"
        raise NoCache(
            f"{layout.format_file} is not the FORMAT file of a cache", hint=_how_to_repair(fs, layout) or hint
        )
    if fields.get("version") != str(FORMAT_VERSION):
        raise CacheError(
            f"{layout.root} has format {fields.get('version') or '?'}, but this release supports only "
            f"format {FORMAT_VERSION}",
            hint="nothing was changed; use the release of sc-dtool that set up the cache, or a newer one",
        )
    if re.fullmatch(_ID, fields["id"]) is None:  # it becomes part of a path in the user's own directory
        raise NoCache(
            f"{layout.format_file} contains an invalid cache id",
            hint="nothing was changed; restore this file from a backup",
        )
    layout.shared = fields.get("shared") == "group"
    return fields["id"]


#: Forms of a truncated FORMAT file of this version, with its id if that is complete.
_BEGINNING = f"{FORMAT_MAGIC}\nversion: {FORMAT_VERSION}\nid: "
_CUT = rf"{_BEGINNING}(?:[0-9a-f]*|([0-9a-f]{{1,64}})\n(?!shared: (?:no|group)\Z)[^\n]*)"


def is_cut(text: str) -> bool:
    """Whether this is the text of a FORMAT file that a crash truncated."""
    return _BEGINNING.startswith(text) or not text.strip("\0") or re.fullmatch(_CUT, text) is not None


def damage_of_format(fs: FileSystem, layout: Layout) -> str | None:
    """The damage of FORMAT, in words, if it can be repaired; None if it is intact or cannot be repaired.

    FORMAT may be removed by a purge of old files, or truncated by a crash. It is repaired only if this release
    creates everything else that is in the control directory.
    """
    try:
        text = fs.read_text(layout.format_file, 4096)
    except FileNotFoundError:
        damage = "missing"
    except OSError:
        return None
    else:
        if not is_cut(text):
            return None
        damage = "incomplete" if text.strip("\0") else "empty"
    try:
        found = set(fs.names(layout.control))
    except OSError:
        return None
    return damage if DIRECTORIES[0] in found and found <= IN_CONTROL else None


def rewrite_format(fs: FileSystem, layout: Layout) -> None:
    """Write FORMAT again atomically, with its old id if that can be read."""
    match = None
    with contextlib.suppress(OSError):
        match = re.fullmatch(_CUT, fs.read_text(layout.format_file, 4096))
    shared = fs.is_shared(layout.control)
    beside = f"{layout.root}/{aside()}"
    fs.mkdir(beside, shared=shared)
    try:
        fs.write_new(f"{beside}/{FORMAT_NAME}", _format(shared, match and match[1]), shared=shared)
        fs.rename(f"{beside}/{FORMAT_NAME}", layout.format_file)
    finally:
        fs.remove_tree(beside)


def _how_to_repair(fs: FileSystem, layout: Layout) -> str | None:
    if damage_of_format(fs, layout) is None:
        return None
    command = f"sc-dtool --cache-dir {_quoted(layout.root)} doctor --fix"
    return f"{layout.format_file} is lost, but the rest of the cache exists; to repair it: {command}"


def _how_to_begin(fs: FileSystem, layout: Layout) -> str | None:
    try:
        refuse_unfit(fs, layout.root)
    except UsageError as error:
        return f"{error.message}; {error.hint}"
    return f"to set one up: sc-dtool --cache-dir {_quoted(layout.root)} init"


def set_up(fs: FileSystem, layout: Layout, *, parents: bool = True) -> bool:
    """Set up a cache in `layout.root`. Returns False if it is one already.

    Everything is created in a temporary directory and published by one rename. Of two concurrent calls, one wins, and
    no incomplete cache is ever visible. Without `parents`, only the last directory of the path is created. If those
    above are missing, the path is probably mistyped or its file system is not mounted, and NoCache is raised. Raises
    UsageError for a directory that must not be a cache.
    """
    refuse_unfit(fs, layout.root)
    _make_root(fs, layout.root, parents)
    beside = f"{layout.root}/{aside()}"
    try:
        shared = fs.is_shared(f"{layout.root}/.")  # of the directory, not of a link to it
        fs.mkdir(beside, shared=shared)
        for directory in DIRECTORIES:
            fs.mkdir(f"{beside}/{directory}", shared=shared)
        fs.write_new(f"{beside}/{FORMAT_NAME}", _format(shared), shared=shared)
        fs.rename(beside, layout.control)
    except OSError as error:
        with contextlib.suppress(OSError):
            fs.remove_tree(beside)
        if error.errno not in NOT_EMPTY | GONE:
            raise _not_set_up(layout.root, error) from error
        try:
            check(fs, layout)  # another process was first, or the reply to the rename was lost
        except NoCache as refusal:
            if error.errno in GONE:  # the root is a dangling link, or was removed meanwhile
                raise _not_set_up(layout.root, error) from error
            raise NoCache(
                f"{layout.control} already exists and does not belong to a cache",
                details=[refusal.message],
                hint=_how_to_repair(fs, layout)
                or "nothing was changed; restore FORMAT from a backup, or remove the directory if it is not a cache",
            ) from error
        return False
    layout.shared = shared
    try:
        put_tag(fs, layout)
    except OSError as error:
        do_without(f"cannot write {TAG_NAME}, so backup programs include the cache ({error.strerror})")
    return True


def _make_root(fs: FileSystem, root: str, parents: bool) -> None:
    try:
        if parents:
            fs.make_dirs(root)
        else:
            fs.mkdir(root)
    except FileExistsError:
        return
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not parents:
            raise NoCache(
                f"no cache in {root}, and its parent directory does not exist",
                hint="correct the path, or mount its file system; to create all directories: "
                f"sc-dtool --cache-dir {_quoted(root)} init",
            ) from error
        raise _not_set_up(root, error) from error


def _not_set_up(root: str, error: OSError) -> CacheError:
    message = f"cannot set up a cache in {root}: {explain(error)}"
    if error.errno in FULL:
        return NoSpace(message, hint="free space on that file system, or choose another directory")
    return CacheError(message, hint="check the owner and the permissions of the directory above, or choose another")


def _format(shared: bool, id: str | None = None) -> str:
    """The text of a FORMAT file. `shared`: the group of the root can write in it, and so shares the cache."""
    sharing = "group" if shared else "no"
    return f"{_BEGINNING}{id or unique(32)}\nshared: {sharing}\n"


def unfinished(fs: FileSystem, layout: Layout) -> list[str]:
    """Paths of the temporary directories of killed `set_up` calls."""
    return [f"{layout.root}/{name}" for name in fs.names(layout.root) if is_aside(name)]


def remove_unfinished(fs: FileSystem, path: str) -> None:
    """Remove the temporary directory of a killed `set_up`, unless it contains other files."""
    with contextlib.suppress(FileNotFoundError):
        fs.unlink(f"{path}/{FORMAT_NAME}")
    for directory in (*reversed(DIRECTORIES), ""):
        with contextlib.suppress(FileNotFoundError):
            fs.rmdir(f"{path}/{directory}")


def put_tag(fs: FileSystem, layout: Layout) -> None:
    """Mark the root as a cache for backup programs (https://bford.info/cachedir/)."""
    with contextlib.suppress(FileExistsError):
        fs.write_new(layout.tag_file, TAG_TEXT, shared=layout.shared)


class Tag(Enum):
    """The state of CACHEDIR.TAG."""

    GOOD = "valid"
    BEGUN = "incomplete"
    OTHER = "something else"


def tag(fs: FileSystem, layout: Layout) -> Tag:
    """The state of CACHEDIR.TAG. A file that cannot be read counts as valid."""
    try:
        text = fs.read_text(layout.tag_file)
    except OSError as error:
        return Tag.OTHER if error.errno in (errno.EINVAL, errno.ELOOP) else Tag.GOOD  # not a regular file, or a link
    if text.startswith(TAG_TEXT.partition("\n")[0]):
        return Tag.GOOD
    return Tag.BEGUN if TAG_TEXT.startswith(text) else Tag.OTHER


def rewrite_tag(fs: FileSystem, layout: Layout) -> None:
    """Write CACHEDIR.TAG again if it is missing or incomplete."""
    if tag(fs, layout) is Tag.BEGUN:
        fs.unlink(layout.tag_file)
    put_tag(fs, layout)


def refuse_unfit(fs: FileSystem, root: str) -> None:
    """Raise UsageError for a root that must not be a cache: /, a home directory, a dtool dataset."""
    real = os.path.realpath(root)
    if real == "/" or real in {os.path.realpath(home) for home in _homes()}:
        raise UsageError(
            f"{root} is {'the root directory' if real == '/' else 'a home directory'}, so it must not be a cache",
            hint=f"make a directory for it: sc-dtool --cache-dir {_quoted(real.rstrip('/') + '/cache')} init",
        )
    try:
        found = fs.names(root)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(
            f"{root} cannot be a cache: {explain(error)}", hint="check the path, its owner and its permissions"
        ) from error
    if ".dtool" in found:
        raise UsageError(f"{root} is a dtool dataset, so it must not be a cache", hint="choose another directory")


def open_to_all(fs: FileSystem, layout: Layout) -> list[str]:
    """The directories of the cache in which every user of the host can write, and so delete what others use."""
    # `/.`, because the root may be a link
    return [path for path in (layout.root, layout.control) if fs.lstat(f"{path}/.").st_mode & stat.S_IWOTH]


def is_empty(fs: FileSystem, root: str) -> bool:
    """Whether `root` is missing or empty, apart from temporary directories of `set_up`."""
    try:
        return all(name.startswith(f"{CONTROL}.") or name == TAG_NAME for name in fs.names(root))
    except FileNotFoundError:
        return True


def _homes() -> set[str]:
    import pwd

    homes = {os.path.expanduser("~")}
    try:
        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
        homes.update(entry.pw_dir for entry in pwd.getpwall() if entry.pw_uid >= 1000)
    except KeyError:
        pass
    return homes - {"/", "/nonexistent", ""}


def _quoted(path: str) -> str:
    """A path as a word of a shell command."""
    import shlex

    return shlex.quote(path)
