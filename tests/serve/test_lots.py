"""Lots over HTTP, in Pelican's shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.liveness.caller import user_name
from sccache_dtool.lots.model import Claim, Lot
from sccache_dtool.serve.access import Allowed
from sccache_dtool.serve.app import App
from serve.client import Client, Reply

LOTS = "//api/v1.0/lots"


def create(client: Client, name: str | None, path: str, **limits: Any) -> Reply:
    attributes = {"dedicatedGB": 1.0, **limits}
    body: dict[str, Any] = {"paths": [{"path": path, "recursive": True}], "managementPolicyAttrs": attributes}
    return client.post(LOTS, json=body if name is None else {"lotName": name, **body})


def test_the_life_of_a_lot(client: Client) -> None:
    """A program that was written for Pelican would have to be changed."""
    made = create(client, "physics", "/data/physics", expirationTimeMs=32503680000000)
    assert made.code == 201
    assert made.json == {
        "reservationId": "physics",
        "paths": [{"path": "/data/physics", "recursive": True, "lotName": "physics"}],
        "owner": user_name(),
        "parents": ["physics"],
        "status": "active",
        "dedicatedGB": 1.0,
        "creationTimeMs": made.json["creationTimeMs"],
        "expirationTimeMs": 32503680000000,
    }
    child = create(client, None, "/data/physics/atlas", maxNumObjects=5).json
    assert (child["parents"], child["maxNumObjects"]) == (["physics"], 5)
    id = child["reservationId"]
    assert client.get(LOTS).json == {"lots": sorted(["default", "physics", id])}
    assert client.get(LOTS, recursive="false").json == {"lots": ["default", "physics"]}
    assert client.get(f"{LOTS}/physics/children").json == {"lotName": "physics", "children": [id]}
    assert client.get(f"{LOTS}/{id}").json == child
    assert [one["reservationId"] for one in client.get(f"{LOTS}/by-path", path="/data/physics/atlas/x").json] == [id]
    below = client.get(f"{LOTS}/by-path", path="/data/physics", recursive="true").json
    assert [one["reservationId"] for one in below] == ["physics", id]
    policy = client.get(f"{LOTS}/{id}/policy").json
    assert policy["expirationTimeMs"] == {"lotName": "physics", "value": 32503680000000}
    assert policy["opportunisticGB"]["value"] == -1
    changed = client.ask("PATCH", f"{LOTS}/physics", json={"managementPolicyAttrs": {"dedicatedGB": 3}})
    assert changed.json == {"status": "success", "msg": "lot updated"}
    capacity = client.get(f"{LOTS}/by-path/capacity", path="/data/physics/x").json
    assert (capacity["availableDedicatedGB"], capacity["peakDedicatedGB"]) == (2.0, 1.0)
    assert client.delete(f"{LOTS}/physics").json == {"status": "success", "msg": "lot deleted"}
    assert client.get(LOTS).json == {"lots": ["default"]}
    assert client.get(f"{LOTS}/physics").code == 404


def test_what_a_lot_uses(client: Client, layout: Layout, tmp_path: Path) -> None:
    """A data manager would be shown other figures than by the command line; or data in use would be reclaimed."""
    path = tmp_path / "data"
    path.write_bytes(bytes(1000))
    create(client, "physics", str(tmp_path))
    lease = Cache(layout.root).use(path)
    usage = client.get(f"{LOTS}/physics/usage").json
    assert usage["totalGB"] == {"selfContrib": 1e-6, "childrenContrib": 0.0, "total": 1e-6}
    assert "totalGB" not in client.get(f"{LOTS}/physics/usage", totalGB="false").json
    reclaimed = client.post(f"{LOTS}/physics/reclaim", json={"reason": "the project is over"}).json
    assert (reclaimed["status"], reclaimed["reason"]) == ("alreadyReclaimed", "the project is over")
    lease.release()
    assert client.post(f"{LOTS}/physics/reclaim").json["status"] == "reclaimed"
    assert client.get(f"{LOTS}/physics/usage").json == {}


def test_a_reclamation_is_in_the_log_of_the_lots(client: Client, layout: Layout, tmp_path: Path) -> None:
    """Nobody could tell later why the data of a group is gone."""
    (tmp_path / "data").write_bytes(b"x")
    create(client, "physics", str(tmp_path))
    Cache(layout.root).use(tmp_path / "data").release()
    client.post(f"{LOTS}/physics/reclaim")
    assert Cache(layout.root).lots_log()[0].why == "reclaim physics"


def test_what_comes_from_which_parent(client: Client, layout: Layout) -> None:
    """Reservations of a lot with several parents would count for each of them in equal parts only."""
    for name in ("site", "campus"):
        create(client, name, f"/{name}", dedicatedGB=10.0)
    cache = Cache(layout.root)
    lot = Lot("physics", user_name(), frozenset({"site", "campus"}), (Claim("/physics"),), 4 * 10**9)
    cache.change_lots(lambda lots: lots.add(lot, caller=None))
    given = {"site": {"dedicatedGB": 1}}
    assert client.ask("PATCH", f"{LOTS}/physics", json={"parentAttributions": given}).code == 200
    assert client.get(f"{LOTS}/physics").json["parentAttributions"] == given
    capacity = [client.get(f"{LOTS}/by-path/capacity", path=path).json for path in ("/site", "/campus")]
    assert [one["availableDedicatedGB"] for one in capacity] == [9.0, 7.0]
    limits = {"managementPolicyAttrs": {"dedicatedGB": 2}}
    assert client.ask("PATCH", f"{LOTS}/physics", json=limits).code == 200
    assert client.get(f"{LOTS}/physics").json["parentAttributions"] == given
    body = {"paths": [{"path": "/site/x", "recursive": True}], "managementPolicyAttrs": {"dedicatedGB": 2}}
    made = client.post(LOTS, json={**body, "parentAttributions": {"site": {"dedicatedGB": 2}}})
    assert (made.code, made.json["parentAttributions"]) == (201, {"site": {"dedicatedGB": 2}})


@pytest.mark.parametrize("wrong", [{"x": {"dedicatedGB": 1}}, {"site": {"dedicatedGB": 3}}, {"site": {"x": 3}}])
def test_what_cannot_come_from_a_parent_is_refused(client: Client, wrong: dict[str, Any]) -> None:
    """A lot would get more from its parents than it has, or something from a lot that is not its parent."""
    create(client, "site", "/site", dedicatedGB=10.0)
    body = {"paths": [{"path": "/site/x"}], "managementPolicyAttrs": {"dedicatedGB": 2}, "parentAttributions": wrong}
    assert client.post(LOTS, json=body).code == 400
    assert client.get(LOTS).json == {"lots": ["default", "site"]}
    assert client.ask("PATCH", f"{LOTS}/site", json={"parentAttributions": wrong}).code == 400


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"paths": [], "managementPolicyAttrs": {"dedicatedGB": 1}},
        {"paths": [{"path": "/a"}], "managementPolicyAttrs": {}},
        {"paths": [{"path": "/a"}], "managementPolicyAttrs": {"dedicatedGB": -1}},
        {"paths": [{"path": "/a"}], "managementPolicyAttrs": {"dedicatedGB": "x"}},
        {"paths": [{"path": "/a"}], "managementPolicyAttrs": {"dedicatedGB": 1e300}},
        {"paths": [{"path": "a"}], "managementPolicyAttrs": {"dedicatedGB": 1}},
        {"paths": [{"path": "/a/.."}], "managementPolicyAttrs": {"dedicatedGB": 1}},
        {"lotName": "a/b", "paths": [{"path": "/a"}], "managementPolicyAttrs": {"dedicatedGB": 1}},
        {"lotName": "default", "paths": [{"path": "/a"}], "managementPolicyAttrs": {"dedicatedGB": 1}},
        {"paths": [{"path": "/a"}], "managementPolicyAttrs": {"dedicatedGB": 1}, "owner": "eve"},
        {
            "paths": [{"path": "/a"}],
            "managementPolicyAttrs": {"dedicatedGB": 1, "expirationTimeMs": 9, "deletionTimeMs": 1},
        },
    ],
)
def test_lots_that_are_refused(client: Client, body: dict[str, Any]) -> None:
    """A lot would be made of nonsense, or belong to somebody else."""
    assert client.post(LOTS, json=body).code == 400
    assert client.get(LOTS).json == {"lots": ["default"]}


def test_others_change_their_own_lots_only(make_app: Callable[..., App]) -> None:
    """A user could take the share of another one."""
    app = make_app(Allowed(changes=True, writers=frozenset({"*"})))
    owner, other = Client(app), Client(app, 65534)
    create(owner, "physics", "/data/physics")
    create(other, "theirs", "/data/theirs")
    assert owner.get(f"{LOTS}/theirs").json["owner"] != user_name()
    patch = {"managementPolicyAttrs": {"dedicatedGB": 3}}
    assert other.ask("PATCH", f"{LOTS}/physics", json=patch).code == 403
    assert other.delete(f"{LOTS}/physics").code == 403
    assert other.post(f"{LOTS}/theirs/reclaim").code == 403
    assert other.ask("PATCH", f"{LOTS}/theirs", json=patch).code == 200
    assert create(other, "below", "/data/physics/x").code == 403
