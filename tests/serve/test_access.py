"""Who may read, who may change, and whose sessions are whose."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable

import pytest

from httpserver import Server
from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.serve.access import Allowed
from sccache_dtool.serve.app import App
from serve.client import Client
from waiting import wait_until

Making = Callable[..., App]

OTHER = 65534
NAME = pwd.getpwuid(OTHER).pw_name

TOKEN = "a-token-of-some-length"
OVER_TCP = Allowed(changes=True, token=TOKEN.encode(), hosts=frozenset({"localhost", "127.0.0.1", "::1"}))


def test_nothing_is_changed_unless_it_is_allowed(make_app: Making, source: str) -> None:
    """A server that was started to look at a cache would let others change it."""
    client = Client(make_app(Allowed()))
    assert client.get("//healthz").code == 200
    key = "0" * 32 + "-x"
    for method, path in (
        ("POST", "/session"), ("PUT", "/session/x"), ("DELETE", "/session/x"), ("POST", "/lock"), ("DELETE", "/lock/x"),
        ("DELETE", f"/fs/{key}"), ("PUT", "/clearCache"), ("POST", "//api/v1.0/lots"), ("PATCH", "//api/v1.0/lots/x"),
        ("DELETE", "//api/v1.0/lots/x"), ("POST", "//api/v1.0/lots/x/reclaim"), ("PUT", f"//objects/{'0' * 64}"),
        ("POST", f"//index/{'0' * 64}"),
    ):  # fmt: skip
        more = {"json": {}} if "lots" in path else {}
        reply = client.ask(method, path, sessionId="x", itemId="x", dataSet="[]", **more)
        assert (reply.code, "--allow-changes" in reply.json["hint"]) == (403, True), (method, path, reply)


def test_every_change_is_guarded(make_app: Making) -> None:
    """A new route would change something although that was not allowed."""
    client = Client(make_app(Allowed()))
    for path, operations in client.get("//openapi.json").json["paths"].items():
        for method in operations.keys() - {"get", "head"}:
            url = "/" + path.replace("{sha256}", "0" * 64).replace("{", "").replace("}", "")
            body = {"paths": [{"path": "/a"}], "managementPolicyAttrs": {}}
            given = {"sessionId": "x", "itemId": "x", "dataSet": "[]"}
            assert client.ask(method.upper(), url, json=body if "lots" in path else {}, **given).code == 403, (
                method,
                path,
            )


def test_another_user_is_refused(make_app: Making) -> None:
    """Whoever can reach the socket would use the cache as the user who runs the server."""
    for path in ("//healthz", "/session", "//openapi.json", "//nothing"):
        reply = Client(make_app(), OTHER).get(path)
        assert (reply.code, reply.json["type"]) == (403, "forbidden"), path


def test_a_reader_only_reads(make_app: Making) -> None:
    """A user who may look could change something."""
    client = Client(make_app(Allowed(changes=True, readers=frozenset({NAME}))), OTHER)
    assert client.get("//items").code == 200
    assert client.post("/session", dataSet="[]").code == 403


def test_a_writer_has_sessions_of_their_own(make_app: Making, source: str) -> None:
    """A user could end the session of another one, or remove items."""
    app = make_app(Allowed(changes=True, writers=frozenset({"*"})))
    owner, other = Client(app), Client(app, OTHER)
    data_set = f'[{{"itemId": "{source}", "mountPath": "/a"}}]'
    theirs = owner.post("/session", dataSet=data_set).json
    lock = owner.post("/lock", sessionId=theirs["_id"], itemId="/a").json["_id"]
    wait_until(lambda: owner.get(f"/lock/{lock}").json["state"] == "held", "not fetched")
    own = other.post("/session", dataSet=data_set).json  # it is in the cache
    assert (own["ownerId"], own["_accessLevel"]) == (NAME, 2)
    assert [one["_id"] for one in other.get("/session").json] == [own["_id"]]
    assert {one["_id"] for one in owner.get("/session").json} == {own["_id"], theirs["_id"]}
    mine = other.post("/lock", sessionId=own["_id"], itemId="/a").json
    assert (mine["userId"], mine["state"]) == (NAME, "held")
    assert [one["_id"] for one in other.get("/lock").json] == [mine["_id"]]
    for method, path in (
        ("DELETE", f"/session/{theirs['_id']}"), ("PUT", f"/session/{theirs['_id']}"), ("DELETE", f"/lock/{lock}"),
        ("DELETE", f"/fs/{mine['itemId']}"), ("PUT", "/clearCache"),
    ):  # fmt: skip
        assert other.ask(method, path, dataSet="[]").code == 403, path
    assert other.post("/lock", sessionId=theirs["_id"], itemId="/a").code == 403
    assert other.delete(f"/lock/{mine['_id']}").code == 200
    assert other.delete(f"/session/{own['_id']}").code == 200
    assert owner.get(f"/lock/{lock}").json["state"] == "held"


@pytest.mark.parametrize("source", ["/etc/shadow", "file:///etc/shadow", "local:/etc/shadow", "s3://bucket/x", "a/b"])
def test_a_writer_cannot_read_what_only_the_server_can(make_app: Making, source: str) -> None:
    """A user would have the server put a private file of its user into the cache, and download it."""
    client = Client(make_app(Allowed(changes=True, writers=frozenset({NAME}))), OTHER)
    reply = client.post("/session", dataSet=f'[{{"itemId": "{source}", "mountPath": "/a"}}]')
    assert reply.code == 403, reply
    assert client.get("/session").json == []
    made = client.post("/session", dataSet='[{"itemId": "https://example.org/x", "mountPath": "/a"}]')
    assert made.code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"girder-token": TOKEN[:-1]},
        {"girder-token": ""},
        {"cookie": f"girderToken={TOKEN}"},
        {"x-sc-dtool-uid": "0"},
    ],
)
def test_a_wrong_token_over_tcp(make_app: Making, headers: dict[str, str]) -> None:
    """Every user of a host would use the cache as the user who runs the server."""
    client = Client(make_app(OVER_TCP), None)
    for path in ("//healthz", "/session", "//openapi.json", "//nothing"):
        reply = client.get(path, headers=headers)
        assert (reply.code, reply.headers["www-authenticate"]) == (401, "Bearer"), path
        assert TOKEN not in str(reply)
    assert client.get("//healthz", token=TOKEN).code == 401  # it would be in logs


@pytest.mark.parametrize("name", ["authorization", "girder-token"])
def test_the_token_over_tcp(make_app: Making, name: str) -> None:
    """Nobody could use the server over TCP, or a client of the data manager would have to be changed."""
    value = f"Bearer {TOKEN}" if name == "authorization" else TOKEN
    client = Client(make_app(OVER_TCP), None)
    assert client.get("/session", headers={name: value}).code == 200
    assert client.post("/session", dataSet="[]", headers={name: value}).code == 200


def test_without_a_token_nobody_gets_in_over_tcp(make_app: Making) -> None:
    """A server whose token is not set would take an empty one."""
    client = Client(make_app(OVER_TCP._replace(token=None)), None)
    assert client.get("//healthz", headers={"authorization": "Bearer "}).code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8080", "", "127.0.0.1.evil.example", "[::2]:80"]
)
def test_another_host_name(make_app: Making, host: str) -> None:
    """A page of another site could have its name lead to this server, and read it with a user's browser (rebinding)."""
    client = Client(make_app(OVER_TCP), None, girder_token=TOKEN)
    assert client.get("//healthz", headers={"host": host}).code == 400
    for right in ("localhost:8080", "127.0.0.1:8080", "LOCALHOST", "[::1]:8080", "[::1]"):
        assert client.get("//healthz", headers={"host": right}).code == 200, right


def test_no_site_may_read_answers(make_app: Making) -> None:
    """A page of another site could read what a user's browser gets."""
    app, origin = make_app(OVER_TCP), {"origin": "https://evil.example"}
    client = Client(app, None, girder_token=TOKEN)
    for method, code in (("GET", 403), ("OPTIONS", 403)):
        reply = client.ask(method, "/session", headers=origin)
        assert reply.code == code
        assert not [name for name in reply.headers if name.startswith("access-control")]
    assert client.ask("OPTIONS", "/session").code == 405


@pytest.mark.parametrize("uid", [os.getuid(), None])
def test_a_page_of_another_site(make_app: Making, uid: int | None) -> None:
    """A socket that ssh forwards to a port would be open to each page that the user's browser shows."""
    client = Client(make_app(OVER_TCP), uid, girder_token=TOKEN)
    assert client.get("//items", headers={"host": "evil.example:8080"}).code == 400
    for origin in ("https://evil.example", "http://localhost:3000", "null"):
        headers = {"host": "localhost:8080", "origin": origin}
        assert client.post("/session", dataSet="[]", headers=headers).code == 403, origin
    assert client.get("/session").json == []
    own = {"host": "localhost:8080", "origin": "http://localhost:8080"}
    assert client.post("/session", dataSet="[]", headers=own).code == 200


def test_a_lock_that_waits_is_released_by_its_owner_alone(make_app: Making, server: Server) -> None:
    """A user could end the download of another one, who would then wait for ever."""
    app = make_app(Allowed(changes=True, writers=frozenset({NAME})))
    owner, other = Client(app), Client(app, OTHER)
    url = server.page("/x", bytes(1000), stall_after=10)
    made = owner.post("/session", dataSet=f'[{{"itemId": "{url}", "mountPath": "/a"}}]').json
    lock = owner.post("/lock", sessionId=made["_id"], itemId="/a").json["_id"]
    server.wait_for_gets("/x")
    assert other.delete(f"/lock/{lock}").code == 403
    server.release()
    wait_until(lambda: owner.get(f"/lock/{lock}").json["state"] == "held", "it was released")


def test_a_session_made_beside_the_server_reads_nothing_for_others(
    make_app: Making, layout: Layout, source: str
) -> None:
    """A user would write a session with a private file of the server's user, and have the server fetch it."""
    cache = Cache(layout.root)
    entries = cache.entries_used([source], "/a")
    made = cache.create_session(entries, owner=cache.owner("theirs"), user=NAME)
    other = Client(make_app(Allowed(changes=True, writers=frozenset({NAME}))), OTHER)
    reply = other.post("/lock", sessionId=made.id, itemId="/a")
    assert (reply.code, other.get("/lock").json, cache.has(entries[0].item)) == (403, [], False), reply
    with cache.use(source):  # whoever may read it has put it there
        assert other.post("/lock", sessionId=made.id, itemId="/a").json["state"] == "held"


def test_writers_are_limited_to_some_sources(make_app: Making) -> None:
    """A user could have the server ask services that only its host can reach."""
    top = "https://data.example.org/public"
    allowed = Allowed(changes=True, writers=frozenset({NAME}), sources=(top,))
    other = Client(make_app(allowed), OTHER)
    for url, code in (
        (f"{top}/x", 200),
        (f"{top}/x sha256:{'0' * 64}", 200),
        (top, 200),
        (f"{top}er/x", 403),
        (f"{top}/../private/x", 403),
        (f"{top}/%2e%2e/private/x", 403),
        ("https://data.example.org:444/public/x", 403),
        ("https://data.example.org.evil.example/public/x", 403),
        ("https://data.example.org@evil.example/public/x", 403),
        ("http://169.254.169.254/latest", 403),
        (f"{top}/x|http://169.254.169.254/latest", 403),
        (f"{top}/x http://169.254.169.254/latest", 403),
    ):
        reply = other.post("/session", json={"dataSet": [{"itemId": url, "mountPath": "/a"}]})
        assert reply.code == code, (url, reply)
