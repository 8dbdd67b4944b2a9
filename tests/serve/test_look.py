"""What the service says of the cache: health, metrics, items, sums, the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tool import Done
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from serve.client import Client

Sc = Callable[..., Done]


@pytest.fixture
def filled(layout: Layout, tmp_path: Path) -> list[str]:
    """The keys of five items in the cache, ordered."""
    keys = []
    for number in range(5):
        path = tmp_path / f"item-{number}"
        path.write_bytes(bytes(number))
        with Cache(layout.root).use(path):
            keys.append(Cache(layout.root).key_for([str(path)]))
    return sorted(keys)


def test_health(client: Client, layout: Layout) -> None:
    """A monitor would take a server whose cache is away for a healthy one."""
    reply = client.get("//healthz")
    assert (reply.code, reply.json["status"], reply.json["cache"]) == (200, "ok", Cache(layout.root).check())
    shutil.move(layout.root, f"{layout.root}-away")
    reply = client.get("//healthz")
    assert (reply.code, reply.json["exit_code"]) == (503, 10)


def test_metrics(client: Client, filled: list[str]) -> None:
    """Prometheus could not read the metrics, or they would be others than those of the command line."""
    reply = client.get("//metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE sc_dtool_items gauge" in reply.body.decode()


def test_items_in_pages(client: Client, filled: list[str]) -> None:
    """A client would get a million items in one answer, or miss one between two."""
    whole = client.get("//items").json
    assert ([one["item"] for one in whole["items"]], whole["next"]) == (filled, None)
    found: list[str] = []
    after = None
    while True:
        part = client.get("//items", limit=2, after=after).json
        assert len(part["items"]) <= 2
        found += [one["item"] for one in part["items"]]
        after = part["next"]
        if after is None:
            break
    assert found == filled
    for wrong in ({"limit": 0}, {"limit": "x"}, {"after": "../x"}):
        assert client.get("//items", **wrong).code == 400


def test_rows_are_those_of_the_command_line(
    client: Client, filled: list[str], layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program would need two ways to read one thing."""
    from sccache_dtool.cli import main

    def rows(*words: str) -> list[dict[str, object]]:
        capsys.readouterr()
        assert main.run(["-C", layout.root, "-f", "json", *words]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [{name: value for name, value in row.items() if name != "version"} for row in found]

    du = client.get("//du").json
    (total,) = [row for row in rows("du") if row.pop("type") == "total"]
    assert du["total"] == total
    assert [one["bytes"] for one in du["largest"]] == [4, 3, 2, 1, 0]
    listed = {row["item"]: row for row in rows("du") if row.pop("type") == "item"}
    for one in client.get("//items").json["items"]:
        assert one == listed[one["item"]]
    transfers = [{**row} for row in rows("transfers", "--all") if row.pop("type") == "transfer"]
    for row in transfers:
        row.pop("rate")
    served = client.get("//transfers", all="true").json
    for row in served:
        row.pop("rate")
    assert served == transfers
    assert client.get("//transfers").json == []


def test_the_page(client: Client, layout: Layout, tmp_path: Path) -> None:
    """People would have to read JSON; or a name in the cache would run a script in their browser."""
    path = tmp_path / "<script>alert(1)"
    path.write_text("x")
    with Cache(layout.root).use(path):  # which the page shows
        reply = client.get("//")
    assert (reply.code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")
    assert b"<script" not in reply.body
    assert b"&lt;script&gt;" in reply.body


def test_what_is_not_there(client: Client) -> None:
    """A client would have to tell two forms of errors apart."""
    reply = client.get("//nothing")
    assert (reply.code, set(reply.json)) == (404, {"message", "type", "hint", "details", "exit_code"})
    assert client.post("//healthz").code == 405
