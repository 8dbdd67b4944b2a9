"""The documentation of the interface: what it says is so. Tried with random requests by schemathesis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sccache_dtool.cache import Cache
from sccache_dtool.disk.names import Layout
from sccache_dtool.serve.access import Allowed
from sccache_dtool.serve.app import App
from serve.client import Client

ROOT = Path(__file__).parents[2]

OVER_TCP = Allowed(changes=True, clearing=True, token=b"token", hosts=frozenset({"localhost"}))


def test_every_route_is_documented(client: Client) -> None:
    """A user would find a route in the page that is not there, or not find one that is."""
    page = (ROOT / "docs" / "reference" / "rest.md").read_text(encoding="utf-8")
    paths = client.get("//openapi.json").json["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert f"`{method.upper()} {path}`" in page, (method, path)
            assert operation["summary"]
            assert operation["description"]
            assert "422" not in operation["responses"] or path.startswith(("/objects", "/index"))
    assert page.count("| `GET /") + page.count("`HEAD /") + page.count("| `P") + page.count("| `DELETE") == sum(
        len(operations) for operations in paths.values()
    )


@pytest.fixture
def filled(layout: Layout, tmp_path: Path, source: str, make_app: Callable[..., App]) -> App:
    """The application of a cache with an item, an archive, a session and a lot."""
    (tmp_path / "archive").mkdir()
    Path(layout.config_file).write_text(f'[archive]\nurl = "{tmp_path}/archive"\n')
    cache = Cache(layout.root)
    cache.archive.init()
    cache.create_session({"/a": source}).lock("/a")
    return make_app(OVER_TCP)


def test_random_requests(filled: App) -> None:
    """A client would meet an answer that is not documented, or the server would fail on a request that is odd."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", filled, headers={"Girder-Token": "token", "Host": "localhost"}
    )
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=6,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            response = case.call(headers={"Girder-Token": "token", "Host": "localhost"})
            assert response.status_code < 500, (case, response.text)
            case.validate_response(
                response, checks=[status_code_conformance, content_type_conformance, response_schema_conformance]
            )

        ask()
        tried += 1
    assert tried > 35
