"""A new cache: where a command makes one, what it says, and where it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import Done, call, environment, one_line_error

Sc = Callable[..., Done]

pytestmark = pytest.mark.no_cache


def ways(place: Path, home: Path) -> dict[str, tuple[list[str], dict[str, str | None]]]:
    """Each way to say where the cache is: options, and the environment."""
    (home / ".config" / "dtool").mkdir(parents=True, exist_ok=True)
    (home / ".config" / "dtool" / "dtool.json").write_text(json.dumps({"DTOOL_CACHE_DIRECTORY": str(place)}))
    return {
        "-C": (["-C", str(place)], {}),
        "-d": (["-d", str(place)], {}),
        "variable": ([], {"DTOOL_CACHE_DIRECTORY": str(place)}),
        "dtool's file": ([], {"DTOOL_CACHE_DIRECTORY": None}),
    }


@pytest.mark.parametrize("way", ["-C", "-d", "variable", "dtool's file"])
@pytest.mark.parametrize("command", ["use", "run"])
def test_directories_above_are_not_made(source: str, tmp_path: Path, way: str, command: str) -> None:
    """A mistyped path, or a file system that is not mounted, would get a cache that nobody finds, or a full disk."""
    place = tmp_path / "not" / "mounted" / "cache"
    options, env = ways(place, tmp_path / "home")[way]
    rest = ["--", "touch", str(tmp_path / "started")] if command == "run" else []
    holder = ["--holder", "h", "--ttl", "1h"] if command == "use" else []
    done = call(command, *options, *holder, source, *rest, env=environment(**env))
    assert (done.code, done.out) == (10, "")
    assert one_line_error(done).startswith(f"Error: no cache in {place}, and its parent directory does not exist")
    assert f"sc-dtool --cache-dir {place} init" in done.err
    assert not (tmp_path / "not").exists()
    assert not (tmp_path / "started").exists()
    assert call(command, "--parents", *options, *holder, source, *rest, env=environment(**env)).code == 0
    assert (place / ".sc-dtool").is_dir()


@pytest.mark.parametrize("way", ["-C", "-d", "variable", "dtool's file"])
def test_a_new_cache_is_told_of_once(source: str, tmp_path: Path, way: str) -> None:
    """A mistyped last part of a path would become a cache, and nobody would notice."""
    place = tmp_path / "scratch"
    options, env = ways(place, tmp_path / "home")[way]
    words = ["use", *options, "--holder", "h", "--ttl", "1h", source]
    first = call(*words, env=environment(**env))
    assert (first.code, first.err) == (0, f"set up a new cache in {place}\n")
    assert call(*words, env=environment(**env)) == Done(0, first.out, "")


def test_the_default_is_made_whole(source: str, tmp_path: Path) -> None:
    """A new account, which has no ~/.cache, could not be used without a further command."""
    without = environment(DTOOL_CACHE_DIRECTORY=None)
    place = tmp_path / "home" / ".cache" / "dtool"
    assert call("run", source, "--", "true", env=without) == Done(0, "", f"set up a new cache in {place}\n")


def test_the_first_directory_that_is_there_is_used(source: str, tmp_path: Path) -> None:
    """Where a node has no scratch file system, its jobs could not fall back on another; or would use none, unheard."""
    both = f"{tmp_path}/not/cache:{tmp_path}/scratch"
    done = call("use", "-d", both, "--holder", "h", "--ttl", "1h", source)
    assert done.path.is_relative_to(tmp_path / "scratch")
    neither = call("use", "-d", f"{tmp_path}/a/b:{tmp_path}/c/d", "--holder", "h", "--ttl", "1h", source)
    assert neither.code == 10
    assert f"{tmp_path}/a/b" in neither.err
    assert f"{tmp_path}/c/d" in neither.err
    assert not (tmp_path / "a").exists()


def test_init_makes_what_it_is_told_to(sc: Sc, tmp_path: Path) -> None:
    """Who says in so many words that a cache is to be made would have to make directories first."""
    assert sc("init", tmp_path / "a" / "b").code == 0
    assert (tmp_path / "a" / "b" / ".sc-dtool").is_dir()


def test_other_commands_make_nothing(sc: Sc, tmp_path: Path, root: Path) -> None:
    """Who only looks would make a cache at a mistyped path."""
    for words in (["du"], ["ls"], ["status"], ["clean", "--all", "-y"], ["unuse", "x"], ["doctor"], ["reap"]):
        assert sc(*words).code == 10
    assert not root.exists()
    assert os.listdir(tmp_path / "home") == []


@pytest.mark.parametrize(
    "words", [["use", "/no/such/file"], ["use", "--from", "-"], ["run", "/no/such/file", "--", "true"]]
)
def test_a_mistyped_path_sets_up_no_cache(tmp_path: Path, words: list[str]) -> None:
    """A typing error would leave a cache behind in dtool's own directory, or in a new one."""
    env = {**os.environ, "DTOOL_CACHE_DIRECTORY": str(tmp_path / "cache")}
    done = call(*words, env=env, input="/no/such/file @x\n")
    assert done.code == 12, done
    assert not (tmp_path / "cache").exists()
