"""Where the cache is, whether it is one, and setting one up by a single rename."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import stat
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import (
    CONTROL,
    DIRECTORIES,
    FORMAT_MAGIC,
    FORMAT_VERSION,
    IN_CONTROL,
    TAG_NAME,
    TAG_TEXT,
    Layout,
    unique,
)
from sccache_dtool.errors import FULL, GONE, NOT_EMPTY, CacheError, NoCache, NoSpace, UsageError, explain
from sccache_dtool.fallback import do_without

VARIABLE = "DTOOL_CACHE_DIRECTORY"
_DTOOL_CONFIG = "~/.config/dtool/dtool.json"
_DEFAULT = "~/.cache/dtool"


#: What names a cache, all its users' memories of it included.
_ID = r"[0-9a-f]{1,64}"
_ASIDE = re.escape(CONTROL) + r"\.[0-9a-f]{16}"


class Choice(NamedTuple):
    """A cache root, and who chose it."""

    path: str
    origin: str
    may_hold_data: bool  # dtool's own cache directory: set up although there are files in it
    parents: bool = False  # nobody has typed it, so what is missing above it may be made


def choose(given: str | None, environment: Mapping[str, str]) -> Choice:
    """The root that a command means: the one given, else dtool's own, found as dtool finds it.

    That is $DTOOL_CACHE_DIRECTORY, then the same name in dtool's configuration file, then ~/.cache/dtool. Unlike
    dtool, which takes such values as they stand, an empty one is refused and a leading ``~`` means the home directory.
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
    return Choice(path, "the default", True, os.path.isdir(os.path.expanduser("~")))


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
    """The cache's id. Raises NoCache if this is no cache, CacheError if it is one of another version.

    Nothing is ever written to or deleted from a root that has not passed this.
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


#: The text of a FORMAT of which the end is missing; its id, if that is complete. Other versions are left alone.
_BEGINNING = f"{FORMAT_MAGIC}\nversion: {FORMAT_VERSION}\nid: "
_CUT = rf"{_BEGINNING}(?:[0-9a-f]*|([0-9a-f]{{1,64}})\n(?!shared: (?:no|group)\Z)[^\n]*)"


def is_cut(text: str) -> bool:
    """Whether this is a FORMAT that was not written to its end, or lost it in a crash."""
    return _BEGINNING.startswith(text) or not text.strip("\0") or re.fullmatch(_CUT, text) is not None


def damage_of_format(fs: FileSystem, layout: Layout) -> str | None:
    """What is wrong with FORMAT, in words, if it can be written again; None if it is right, or nobody can tell.

    It can be where everything beside it is what this release makes: a purge of old files takes it, and a crash may
    leave it empty. Nothing is concluded from anything else.
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
    return damage if "items" in found and found <= IN_CONTROL else None


def put_format_anew(fs: FileSystem, layout: Layout) -> None:
    """Write FORMAT again, with its old id if that can be read, and appearing whole."""
    match = None
    with contextlib.suppress(OSError):
        match = re.fullmatch(_CUT, fs.read_text(layout.format_file, 4096))
    shared = fs.is_shared(layout.control)
    aside = f"{layout.root}/{CONTROL}.{unique()}"
    fs.mkdir(aside, shared=shared)
    try:
        fs.write_new(f"{aside}/FORMAT", _format(shared, match and match[1]), shared=shared)
        fs.rename(f"{aside}/FORMAT", layout.format_file)
    finally:
        fs.remove_tree(aside)


def _how_to_repair(fs: FileSystem, layout: Layout) -> str | None:
    if damage_of_format(fs, layout) is None:
        return None
    command = f"sc-dtool --cache-dir {shlex.quote(layout.root)} doctor --fix"
    return f"{layout.format_file} is lost, but the rest of the cache exists; to repair it: {command}"


def _how_to_begin(fs: FileSystem, layout: Layout) -> str | None:
    try:
        refuse_unfit(fs, layout.root)
    except UsageError as error:
        return f"{error.message}; {error.hint}"
    return f"to set one up: sc-dtool --cache-dir {shlex.quote(layout.root)} init"


def set_up(fs: FileSystem, layout: Layout, *, parents: bool = True) -> bool:
    """Make `layout.root` a cache; False if it is one already. Raises UsageError for directories that must not be.

    Everything is made aside and put in place by one rename, so that of two who do this at once one wins, and no
    half-made cache is ever seen. Without `parents`, only the last directory is made: raises NoCache if those above are
    missing, as they are if a path is mistyped or its file system is not mounted.
    """
    refuse_unfit(fs, layout.root)
    _make_root(fs, layout.root, parents)
    aside = f"{layout.root}/{CONTROL}.{unique()}"
    try:
        shared = fs.is_shared(f"{layout.root}/.")  # and not of a link that leads there
        fs.mkdir(aside, shared=shared)
        for directory in DIRECTORIES:
            fs.mkdir(f"{aside}/{directory}", shared=shared)
        fs.write_new(f"{aside}/FORMAT", _format(shared), shared=shared)
        fs.rename(aside, layout.control)
    except OSError as error:
        with contextlib.suppress(OSError):
            fs.remove_tree(aside)
        if error.errno not in NOT_EMPTY | GONE:
            raise _not_set_up(layout.root, error) from error
        try:
            check(fs, layout)  # somebody else was first, or the reply to our rename was lost
        except NoCache as refusal:
            if error.errno in GONE:  # the root is a dangling link, or was removed meanwhile
                raise _not_set_up(layout.root, error) from error
            raise NoCache(
                f"{layout.control} already exists and does not belong to a cache",
                details=[refusal.message],
                hint=_how_to_repair(fs, layout) or "nothing was changed; remove it by hand if nobody needs it",
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
                f"sc-dtool --cache-dir {shlex.quote(root)} init",
            ) from error
        raise _not_set_up(root, error) from error


def _not_set_up(root: str, error: OSError) -> CacheError:
    message = f"cannot set up a cache in {root}: {explain(error)}"
    if error.errno in FULL:
        return NoSpace(message, hint="free space on that file system, or choose another directory")
    return CacheError(message, hint="check the owner and the permissions of the directory above, or choose another")


def _format(shared: bool, id: str | None = None) -> str:
    """The text of a new cache's FORMAT. A root that its group may write in makes a cache that the group shares."""
    sharing = "group" if shared else "no"
    return f"{_BEGINNING}{id or unique(32)}\nshared: {sharing}\n"


def unfinished(fs: FileSystem, layout: Layout) -> list[str]:
    """Paths of what was begun by a `set_up` that was killed."""
    return [f"{layout.root}/{name}" for name in fs.names(layout.root) if re.fullmatch(_ASIDE, name)]


def remove_unfinished(fs: FileSystem, path: str) -> None:
    """Remove the beginnings of a cache, and nothing that anybody put into them: directories only when empty."""
    with contextlib.suppress(FileNotFoundError):
        fs.unlink(f"{path}/FORMAT")
    for directory in (*reversed(DIRECTORIES), ""):
        with contextlib.suppress(FileNotFoundError):
            fs.rmdir(f"{path}/{directory}")


def put_tag(fs: FileSystem, layout: Layout) -> None:
    """Mark the root as a cache for backup programs (https://bford.info/cachedir/)."""
    with contextlib.suppress(FileExistsError):
        fs.write_new(layout.tag_file, TAG_TEXT, shared=layout.shared)


class Tag(Enum):
    """What is in the place of the tag."""

    GOOD = "one that backup programs know"
    BEGUN = "one of ours that was not written to its end"
    OTHER = "something else"


def tag(fs: FileSystem, layout: Layout) -> Tag:
    """What is in the place of the tag; what cannot be read is taken for good."""
    try:
        text = fs.read_text(layout.tag_file)
    except OSError as error:
        return Tag.OTHER if error.errno in (errno.EINVAL, errno.ELOOP) else Tag.GOOD  # it is no file, or a link
    if text.startswith(TAG_TEXT.partition("\n")[0]):
        return Tag.GOOD
    return Tag.BEGUN if TAG_TEXT.startswith(text) else Tag.OTHER


def put_tag_anew(fs: FileSystem, layout: Layout) -> None:
    """In the place of one that was not written to its end."""
    if tag(fs, layout) is Tag.BEGUN:
        fs.unlink(layout.tag_file)
    put_tag(fs, layout)


def refuse_unfit(fs: FileSystem, root: str) -> None:
    """Raise UsageError for a root that is not to be a cache: /, a home directory, a dtool dataset."""
    real = os.path.realpath(root)
    if real == "/" or real in {os.path.realpath(home) for home in _homes()}:
        raise UsageError(
            f"{root} is {'the root directory' if real == '/' else 'a home directory'}, so it must not be a cache",
            hint=f"make a directory for it: sc-dtool --cache-dir {shlex.quote(real.rstrip('/') + '/cache')} init",
        )
    try:
        found = fs.names(root)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{root} cannot be a cache: {explain(error)}") from error
    if ".dtool" in found:
        raise UsageError(f"{root} is a dtool dataset, so it must not be a cache", hint="choose another directory")


def open_to_all(fs: FileSystem, layout: Layout) -> list[str]:
    """Directories in which every user of the machine may write: then each may delete what others use."""
    places = (layout.root, layout.control)
    return [path for path in places if fs.lstat(f"{path}/.").st_mode & stat.S_IWOTH]  # the root may be a link


def is_empty(fs: FileSystem, root: str) -> bool:
    """Whether there is nothing in `root`, or no `root` yet; our own half-made beginnings do not count."""
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
