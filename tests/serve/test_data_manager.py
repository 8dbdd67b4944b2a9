"""The calls of the Whole Tale data manager, as its clients make them, with its codes and fields."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.tool import Disk
from httpserver import Page, Server
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.serve.access import Allowed
from sccache_dtool.serve.app import App
from serve.client import Client
from waiting import wait_until

Making = Callable[..., dict[str, Any]]

#: A user who is not the server's.
OTHER = 65534


def held(client: Client, lock: str) -> dict[str, Any]:
    """A lock once it is held."""

    def ready() -> dict[str, Any] | None:
        found = client.get(f"/lock/{lock}").json
        assert found.get("state") in ("waiting", "transferring", "held"), found
        return found if found["state"] == "held" else None

    return wait_until(ready, "the item is not fetched") or {}


def test_the_flow_of_the_predecessor(client: Client, app: App, item: str, source: str) -> None:
    """A program that was written for the data manager would have to be changed."""
    data_set = json.dumps([{"itemId": item, "mountPath": "/one"}, {"itemId": source, "mountPath": "/fa.txt"}])
    made = client.post("/session", dataSet=data_set, taleId="tale 1").json
    assert set(made) >= {"_id", "_modelType", "_accessLevel", "ownerId", "dataSet", "seq", "taleId"}
    assert (made["_modelType"], made["_accessLevel"], made["seq"], made["taleId"]) == ("session", 2, 1, "tale 1")
    id = made["_id"]
    assert [one["_id"] for one in client.get("/session").json] == [id]
    loaded = client.get(f"/session/{id}", loadObjects="true").json["dataSet"]
    assert [(one["mountPath"], one["type"], one["obj"]["state"]) for one in loaded] == [
        ("/one", None, "absent"),
        ("/fa.txt", None, "absent"),
    ]
    assert client.get(f"/session/{id}/object", path="/nowhere").code == 400
    assert client.get(f"/session/{id}/object", path="/one/../x").code == 400

    locked = client.post("/lock", sessionId=id, itemId=made["dataSet"][0]["itemId"], ownerId="viewer").json
    assert set(locked) >= {"_id", "_modelType", "userId", "sessionId", "itemId", "ownerId"}
    assert (locked["sessionId"], locked["ownerId"], locked["itemId"]) == (id, "viewer", made["dataSet"][0]["itemId"])
    assert held(client, locked["_id"])["_id"] == locked["_id"]

    found = client.get(f"/session/{id}/object", path="/one", children="").json
    assert found["object"]["type"] == "folder"
    assert [(one["name"], one["type"], one["size"]) for one in found["children"]] == [
        ("out", None, None),
        ("sub", "folder", None),
        ("x", "item", 10),
    ]
    state = client.get(f"/fs/item/{locked['itemId']}").json["dm"]
    assert (state["cached"], state["lockCount"], state["transferInProgress"]) == (True, 1, False)
    assert Path(state["psPath"], "x").read_bytes() == b"0123456789"

    for query in ({"sessionId": id}, {"itemId": locked["itemId"]}, {"ownerId": "viewer"}, {}):
        assert [one["_id"] for one in client.get("/lock", **query).json] == [locked["_id"]], query
    assert client.get("/lock", ownerId="nobody").json == []
    assert [one["_id"] for one in client.get(f"/session/{id}/lock").json] == [locked["_id"]]

    (transfer,) = client.get(f"/session/{id}/transfer").json
    assert (transfer["status"], transfer["size"], transfer["transferred"], transfer["path"]) == (3, 11, 11, "/one")
    assert transfer["startTime"] <= transfer["endTime"]
    assert client.get("/transfer", sessionId=id).json == [transfer]

    changed = client.put(f"/session/{id}", dataSet=data_set.replace("/fa.txt", "/fb.txt")).json
    assert (changed["seq"], changed["dataSet"][1]["mountPath"]) == (2, "/fb.txt")

    assert client.get(f"/lock/{locked['_id']}/download", path="x").body == b"0123456789"
    assert client.delete(f"/lock/{locked['_id']}").code == 200
    assert client.get(f"/lock/{locked['_id']}").json["state"] == "released"
    assert client.delete(f"/lock/{locked['_id']}").code == 200  # a second time

    other = Client(app, OTHER)
    assert other.delete(f"/session/{id}").code == 403
    assert client.delete(f"/session/{id}").code == 200
    assert client.delete(f"/session/{id}").code == 200
    assert client.get(f"/session/{id}").code == 404


def test_a_lock_ends_with_its_session(client: Client, session: Making, source: str, layout: Layout) -> None:
    """An item would stay locked for ever once its container is gone (as in the predecessor)."""
    made = session(a=source)
    lock = client.post("/lock", sessionId=made["_id"], itemId="/a").json["_id"]
    held(client, lock)
    client.delete(f"/session/{made['_id']}")
    assert client.get("/lock").json == []
    assert Disk(Path(layout.root)).leases() == []
    assert client.get(f"/lock/{lock}/download").code == 410


def test_a_lock_is_given_before_the_item_is_there(client: Client, session: Making, server: Server) -> None:
    """A client would wait for a whole download, and run into a time limit."""
    url = server.page("/x", bytes(1000), stall_after=10)
    made = session(a=url)
    lock = client.post("/lock", sessionId=made["_id"], itemId=url).json
    assert lock["state"] in ("waiting", "transferring")
    server.wait_for_gets("/x")
    early = client.get(f"/lock/{lock['_id']}/download")
    assert (early.code, early.json["type"], early.headers["retry-after"]) == (409, "not-ready", "1")
    wait_until(lambda: client.get(f"/fs/item/{lock['itemId']}").json["dm"]["transferInProgress"], "not shown")
    (transfer,) = client.get("/transfer", sessionId=made["_id"]).json
    assert (transfer["status"] in (0, 1, 2), transfer["endTime"], transfer["itemId"]) == (True, None, lock["itemId"])
    server.release()
    held(client, lock["_id"])
    assert (
        hashlib.sha256(client.get(f"/lock/{lock['_id']}/download").body).digest()
        == hashlib.sha256(bytes(1000)).digest()
    )


def test_many_locks_on_an_item_are_one_download(client: Client, session: Making, server: Server) -> None:
    """Each container of a tale would download the same file."""
    url = server.page("/x", bytes(1000), stall_after=10)
    made = session(a=url, b=url)
    locks = [
        client.post("/lock", sessionId=made["_id"], itemId=path, ownerId=path).json["_id"] for path in ("/a", "/b") * 4
    ]
    server.wait_for_gets("/x")
    server.release()
    for lock in locks:
        held(client, lock)
    assert server.gets["/x"] == 1
    assert len(client.get("/lock", sessionId=made["_id"]).json) == 8


def test_why_a_lock_failed(client: Client, session: Making, server: Server) -> None:
    """A client would poll for ever, and its user never learn what is wrong with the source (as in the predecessor)."""
    url = server.page("/x", bytes(9), announced=10)
    made = session(a=url)
    lock = client.post("/lock", sessionId=made["_id"], itemId="/a").json["_id"]
    wait_until(lambda: client.get(f"/lock/{lock}").json["state"] == "failed", "it does not fail")
    assert "9 of 10 bytes" in client.get(f"/lock/{lock}").json["error"]
    assert client.get(f"/lock/{lock}/download").code == 502
    (transfer,) = client.get("/transfer", sessionId=made["_id"]).json
    assert (transfer["status"], transfer["transferred"], transfer["size"]) == (4, 9, 10)
    assert "9 of 10 bytes" in transfer["error"]
    state = client.get(f"/fs/item/{made['dataSet'][0]['itemId']}").json["dm"]
    assert (state["cached"], state["errorCount"], state["transferError"]) == (False, 1, True)
    assert "9 of 10 bytes" in state["transferErrorMessage"]
    assert client.get("/lock").json == []


@pytest.mark.parametrize("item_id", ["nope", "https://example.org/other", "/b", "a" * 32 + "-x", "\0"])
def test_an_item_that_is_not_in_the_session(
    client: Client, session: Making, source: str, layout: Layout, item_id: str
) -> None:
    """A lock on nothing would be left behind (as in the predecessor, which also never answered)."""
    made = session(a=source)
    before = sorted(os.listdir(layout.holders))
    assert client.post("/lock", sessionId=made["_id"], itemId=item_id).code in (400, 404)
    assert sorted(os.listdir(layout.holders)) == before


@pytest.mark.parametrize(
    "data_set",
    [
        "[",
        "{}",
        "null",
        '[{"itemId": "x"}]',
        '[{"itemId": 1, "mountPath": "/a"}]',
        '[{"itemId": "", "mountPath": "/a"}]',
        '[{"itemId": "SOURCE", "mountPath": "a"}]',
        '[{"itemId": "SOURCE", "mountPath": "/../a"}]',
        '[{"itemId": "SOURCE", "mountPath": "/a"}, {"itemId": "SOURCE", "mountPath": "/a/"}]',
        '[{"itemId": "gopher://x/y", "mountPath": "/a"}]',
        "[" * 5000,
    ],
)
def test_data_sets_that_are_refused(client: Client, source: str, layout: Layout, data_set: str) -> None:
    """A session would be made of nonsense, or of half of what was asked for."""
    reply = client.post("/session", dataSet=data_set.replace("SOURCE", source))
    assert reply.code in (400, 404), reply
    assert set(reply.json) == {"message", "type", "hint", "details", "exit_code"}
    assert client.get("/session").json == []
    assert [name for name in os.listdir(layout.holders) if name != "gone"] == []


def test_an_empty_session_is_fine(client: Client) -> None:
    """A session could not be created before it is known what it will hold (the predecessor crashed)."""
    made = client.post("/session", json={"dataSet": []}).json
    assert made["dataSet"] == []
    assert client.get(f"/session/{made['_id']}/object", path="/", children="").json["children"] == []


def test_a_locked_item_stays_in_its_session(client: Client, session: Making, source: str, item: str) -> None:
    """An item could be taken out of a session while it is read, and nobody be told who reads it."""
    made = session(a=source, b=item)
    held(client, client.post("/lock", sessionId=made["_id"], itemId="/a", ownerId="viewer").json["_id"])
    reply = client.put(f"/session/{made['_id']}", json={"dataSet": [{"itemId": item, "mountPath": "/b"}]})
    assert (reply.code, reply.json["exit_code"]) == (409, 14)
    assert "viewer" in reply.json["details"][0]
    assert client.get(f"/session/{made['_id']}").json["seq"] == 1


def test_parts_of_a_file(client: Client, session: Making, source: str) -> None:
    """A client could not continue a download, or show the end of a large file."""
    made = session(a=source)
    path = f"/lock/{client.post('/lock', sessionId=made['_id'], itemId='/a').json['_id']}/download"
    wait_until(lambda: client.get(path).code == 200, "not fetched")
    whole = client.get(path)
    assert (whole.body, whole.headers["content-length"], whole.headers["accept-ranges"]) == (b"ACGT\n", "5", "bytes")
    tag = whole.headers["etag"]

    def part(text: str, **more: str) -> tuple[int, bytes, str | None]:
        reply = client.get(path, headers={"range": text, **more})
        return reply.code, reply.body, reply.headers.get("content-range")

    assert part("bytes=1-2") == (206, b"CG", "bytes 1-2/5")
    assert part("bytes=3-") == (206, b"T\n", "bytes 3-4/5")
    assert part("bytes=-2") == (206, b"T\n", "bytes 3-4/5")
    assert part("bytes=0-99") == (206, b"ACGT\n", "bytes 0-4/5")
    assert part("bytes=0-1,3-4") == (200, b"ACGT\n", None)
    assert part("lines=0-1") == (200, b"ACGT\n", None)
    assert part("bytes=1-2", **{"if-range": tag}) == (206, b"CG", "bytes 1-2/5")
    assert part("bytes=1-2", **{"if-range": '"other"'}) == (200, b"ACGT\n", None)
    code, _, span = part("bytes=5-")
    assert (code, span) == (416, "bytes */5")
    assert client.get(path, headers={"if-none-match": tag}).code == 304


def test_a_folder_as_an_archive(client: Client, session: Making, item: str) -> None:
    """A folder could not be downloaded; or a link in it would send what it points to."""
    made = session(a=item)
    path = f"/lock/{client.post('/lock', sessionId=made['_id'], itemId='/a').json['_id']}/download"
    wait_until(lambda: client.get(path, tar="").code == 200, "not fetched")
    assert client.get(path).code == 400
    with tarfile.open(fileobj=io.BytesIO(client.get(path, tar="").body)) as archive:
        assert sorted(archive.getnames()) == ["tree", "tree/out", "tree/sub", "tree/sub/y", "tree/x"]
        assert archive.getmember("tree/out").issym()
    assert client.get(path, path="sub/y").body == b"y"
    for inner in ("out/passwd", "nope", "../../item.json", "x/y"):
        assert client.get(path, path=inner).code in (400, 404), inner


def test_folders_by_their_ids(client: Client, session: Making, item: str) -> None:
    """A file system that is mounted for a container could not be navigated by the ids that are shown."""
    made = session(a=item)
    held(client, client.post("/lock", sessionId=made["_id"], itemId="/a").json["_id"])
    key = made["dataSet"][0]["itemId"]
    listing = client.get(f"/fs/{key}/listing").json
    assert {kind: [one["name"] for one in found] for kind, found in listing.items()} == {
        "folders": ["sub"],
        "files": ["x"],
        "links": ["out"],
    }
    below = client.get(f"/fs/{listing['folders'][0]['_id']}/listing").json
    (file,) = below["files"]
    assert client.get(f"/fs/{file['_id']}/raw").body == b"y"
    children = client.get(f"/session/{made['_id']}/object", path="/a/sub", children="").json["children"]
    assert children == [file]
    assert client.get(f"/fs/{listing['links'][0]['_id']}/raw").code == 400
    assert client.get(f"/fs/{listing['links'][0]['_id']}/listing").code == 400
    for id in ("nope", f"{key[:32]}.Li4vLi4", f"{key[:32]}.-", f"{'0' * 32}-x"):
        assert client.get(f"/fs/{id}/raw").code in (400, 404), id
        assert client.get(f"/fs/{id}/listing").code in (400, 404), id


def test_an_item_is_removed_by_delete_alone(client: Client, session: Making, source: str) -> None:
    """A browser that follows a link would remove an item, or a locked item would go (as in the predecessor)."""
    made = session(a=source)
    key = made["dataSet"][0]["itemId"]
    lock = client.post("/lock", sessionId=made["_id"], itemId="/a", ownerId="viewer").json["_id"]
    held(client, lock)
    assert client.get(f"/fs/{key}/evict").code == 405
    assert client.put(f"/fs/{key}/setProperties", json={}).code == 405
    reply = client.delete(f"/fs/{key}")
    assert (reply.code, "viewer" in str(reply.json)) == (409, True)
    assert client.get(f"/lock/{lock}/download").code == 200
    client.delete(f"/lock/{lock}")
    assert client.delete(f"/fs/{key}").code == 200
    assert client.get(f"/fs/item/{key}").json["dm"]["cached"] is False
    assert client.delete(f"/fs/{key}").code == 404


def test_clearing_the_cache(make_app: Callable[..., App], source: str, item: str) -> None:
    """All that nobody uses would be removed by whoever finds the address; or what somebody reads."""
    client = Client(make_app(Allowed(changes=True, clearing=True)))
    entries = [{"itemId": source, "mountPath": "/a"}, {"itemId": item, "mountPath": "/b"}]
    made = client.post("/session", json={"dataSet": entries}).json
    locks = [client.post("/lock", sessionId=made["_id"], itemId=path).json["_id"] for path in ("/a", "/b")]
    for lock in locks:
        held(client, lock)
    client.delete(f"/lock/{locks[0]}")
    assert client.put("/clearCache", force="true").json == {"copies": 1, "bytes": 5, "kept": 1}
    assert Client(make_app(Allowed(changes=True))).put("/clearCache").code == 403


def test_old_transfers_are_left_out(client: Client, session: Making, source: str, layout: Layout) -> None:
    """A list of transfers would grow all day."""
    made = session(a=source)
    held(client, client.post("/lock", sessionId=made["_id"], itemId="/a").json["_id"])
    for directory in Path(layout.transfers).iterdir():
        for one in directory.iterdir():
            key, lease, end, how = one.name.split("~")
            one.rename(directory / f"{key}~{lease}~{int(end) - 61_000}~{how}")
    assert client.get("/transfer").json == []
    assert len(client.get("/transfer", discardOld="false").json) == 1


def test_a_get_changes_nothing(client: Client, session: Making, item: str, layout: Layout) -> None:
    """A crawler, a prefetching browser or a monitor would change the cache."""
    with Cache(layout.root).use(item):
        pass  # so that nothing of the fetch goes on after the lock is there
    made = session(a=item)
    lock = client.post("/lock", sessionId=made["_id"], itemId="/a").json["_id"]
    held(client, lock)
    key, id = made["dataSet"][0]["itemId"], made["_id"]

    def everything() -> list[str]:
        return sorted(f"{path}/{name}" for path, _, names in os.walk(layout.root) for name in names)

    before = everything()
    for path in (
        f"/session/{id}", f"/session/{id}/lock", f"/session/{id}/transfer", f"/session/{id}/item/{key}", "/session",
        "/lock",
        f"/lock/{lock}", "/transfer", f"/fs/item/{key}", f"/fs/{key}/raw", f"/fs/{key}/listing", f"/fs/{key}/evict",
        "//healthz", "//metrics", "//items", "//du", "//transfers", "//api/v1.0/lots", "//openapi.json",
    ):  # fmt: skip
        assert client.get(path).code in (200, 400, 405), path
    assert client.get(f"/lock/{lock}/download", path="x").code == 200
    assert everything() == before


def test_nothing_is_kept_in_the_server(
    client: Client, make_app: Callable[..., App], session: Making, source: str
) -> None:
    """A session or a lock would be lost if the server is started again."""
    made = session(a=source)
    lock = held(client, client.post("/lock", sessionId=made["_id"], itemId="/a").json["_id"])
    again = Client(make_app())
    assert again.get(f"/session/{made['_id']}").json == made
    assert again.get(f"/lock/{lock['_id']}").json == lock
    assert again.get(f"/lock/{lock['_id']}/download").body == b"ACGT\n"


def test_stopping_the_server_leaves_the_download_to_others(
    make_app: Callable[..., App], server: Server, layout: Layout
) -> None:
    """What has come of a large file would be lost when the server is stopped, or block the next use of the file."""
    url = server.pages("/x", Page(bytes(1 << 20), drip=1 << 18, etag='"1"'), Page(bytes(1 << 20), etag='"1"'))
    app = make_app()
    client = Client(app)
    made = client.post("/session", json={"dataSet": [{"itemId": url, "mountPath": "/a"}]}).json
    client.post("/lock", sessionId=made["_id"], itemId="/a")
    server.let_drop()
    wait_until(lambda: [one for one in client.get("//transfers").json if one["bytes"]], "nothing comes")
    stopped = wait_for_stop(app, server)
    assert stopped
    with Cache(layout.root).use(url) as path:
        assert path.stat().st_size == 1 << 20


def wait_for_stop(app: App, server: Server) -> bool:
    """Stop the fetches of an application while bytes come; True once they have stopped."""
    thread = threading.Thread(target=app.close)
    thread.start()
    while thread.is_alive():
        server.let_drop()
        thread.join(0.01)
    return True
