"""`config`: the settings in force, and where each of them comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from sccache_dtool.cache import Cache
from sccache_dtool.cli.options import Invocation, common_options, pass_invocation
from sccache_dtool.cli.output import Column, Fields
from sccache_dtool.disk import root
from sccache_dtool.errors import Exit
from sccache_dtool.policy import config
from sccache_dtool.policy.thresholds import Mark
from sccache_dtool.units import short_duration


@click.command("config")
@click.argument("action", type=click.Choice(["show"]), default="show")
@click.option("--origin", is_flag=True, help="Show also where each value comes from.")
@common_options()
@pass_invocation
def config_command(call: Invocation, action: str, origin: bool) -> int:
    """Show the settings in config.toml, and the defaults.

    The file is .sc-dtool/config.toml in the cache's directory. The exit code is 1 if it contains an error.

    \b
    Example:
      sc-dtool config show --origin
    """
    cache = call.cache()
    cache.check()
    settings, faults = cache.settings, cache.settings.faults
    values = settings._asdict()
    shown = {
        f"{place.table}.{place.key}": str(values[name]) if isinstance(values[name], Mark) else values[name]
        for name, place in config.SETTINGS.items()
        if place.table not in faults
    }
    if origin:
        columns = [
            Column("SETTING", "setting"),
            Column("VALUE", lambda row: _text(row["value"])),
            Column("FROM", _from),
        ]
        call.out.table("setting", _with_origins(call, cache, shown), columns)
    else:
        call.out.result("config", shown, *(f"{name:34}{_text(value)}" for name, value in shown.items()))
    for error in settings.mistakes:
        call.out.error(error)
    return Exit.ERROR if faults else Exit.DONE


def _with_origins(call: Invocation, cache: Cache, shown: Fields) -> Iterator[dict[str, Any]]:
    """Each setting with its value, and with what has set it."""
    from sccache_dtool.fetch import slots

    choice = root.choose(call.cache_dir, os.environ)
    kind = "option" if choice.origin.startswith("--") else "environment" if choice.origin[0] == "$" else "dtool"
    is_default = choice.origin == root.DEFAULT_ORIGIN
    yield _row("directory", choice.path, "default" if is_default else kind, None if is_default else choice.origin)
    lines, given = cache.lines_of_settings(), cache.settings.given
    for name, own in config.SETTINGS.items():
        title = f"{own.table}.{own.key}"
        variable = config.VARIABLES.get(name, "")
        if title not in shown:
            continue
        if os.environ.get(variable):
            yield _row(title, os.environ[variable], "environment", f"${variable}")
        elif name in given:
            place = given[name]
            kind = "config.toml" if place is own else "alias"
            yield _row(title, shown[title], kind, f"{place.table}.{place.key}", lines.get((place.table, place.key)))
        else:
            yield _row(title, shown[title], "default")
    for (table, key), reason in config.IGNORED.items():
        if (table, key) in lines:
            yield {**_row(f"{table}.{key}", None, "ignored", None, lines[table, key]), "_reason": reason}
    kind = "environment" if os.environ.get(slots.VARIABLE) else "default"
    yield _row("downloads", slots.limit(), kind, f"${slots.VARIABLE}" if kind == "environment" else None)


def _row(setting: str, value: object, origin: str, name: str | None = None, line: int | None = None) -> dict[str, Any]:
    return {"setting": setting, "value": value, "origin": origin, "name": name, "line": line}


def _from(row: Fields) -> str:
    where = "config.toml" if row["line"] is None else f"config.toml, line {row['line']}"
    texts = {"config.toml": where, "alias": f"{where}, as {row['name']}", "default": "default"}
    if row["origin"] == "ignored":
        return f"{where}; {row['_reason']}"
    return texts.get(row["origin"], str(row["name"]))


def _text(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, float):
        return short_duration(value)
    return ", ".join(value) if isinstance(value, tuple) else str(value)
