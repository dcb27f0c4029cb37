"""Requests as browsers send them on behalf of strange pages."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from front_server import WHOLE, FrontServer, front_server

from edgekit.errors import UsageError
from edgekit.server.front import Manners
from edgekit.server.sites import check_origins

CHAT = "https://chat.example.org"


def answering(server: FrontServer) -> FrontServer:
    def answer(stream: object) -> None:
        stream.give("ok")  # type: ignore[attr-defined]
        stream.end()  # type: ignore[attr-defined]

    server.engine.on_submit = answer
    return server


@pytest.fixture(scope="module")
def server() -> Iterator[FrontServer]:
    with front_server(hosts=("127.0.0.1", "pi.local")) as running:
        yield answering(running)


@pytest.fixture(scope="module")
def open_server() -> Iterator[FrontServer]:
    with front_server(Manners(allow_origins=(CHAT,)), hosts=()) as running:
        yield answering(running)


def post(server: FrontServer, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=WHOLE, headers=headers)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080", "pi.local"]
)
def test_host__our_own_names(server: FrontServer, host: str) -> None:
    assert post(server, host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "10.0.0.1", "a@localhost", "x:y", ""],
)
def test_host__rebound_names_are_refused(server: FrontServer, host: str) -> None:
    asked = len(server.engine.streams)
    refused = post(server, host=host)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "host_not_allowed"
    assert httpx.get(f"{server.url}/v1/models", headers={"host": host}).status_code == 403
    assert httpx.get(f"{server.url}/health", headers={"host": host}).status_code == 200
    assert len(server.engine.streams) == asked


def test_host__none_is_no_browser(server: FrontServer) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_host__server_that_asks_for_keys_takes_any() -> None:
    with front_server(hosts=None) as server:
        assert post(answering(server), host="pi.example.org").status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example", "file://", "x"],
)
def test_origin__pages_of_others_may_not_post(server: FrontServer, origin: str) -> None:
    asked = len(server.engine.streams)
    refused = post(server, origin=origin)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in refused.headers
    assert len(server.engine.streams) == asked


def test_origin__own_page_may_post(server: FrontServer) -> None:
    assert post(server, origin=server.url).status_code == 200
    assert post(server, host="pi.local", origin="http://pi.local").status_code == 200
    # Behind a proxy that speaks TLS.
    assert post(server, host="pi.local", origin="https://pi.local").status_code == 200
    assert post(server, host="pi.local:8080", origin="http://pi.local").status_code == 403


def test_cors__is_off(server: FrontServer) -> None:
    asked = {"origin": CHAT, "access-control-request-method": "POST"}
    answer = httpx.options(f"{server.url}/v1/chat/completions", headers=asked)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_cors__an_allowed_site_may_ask_and_read(open_server: FrontServer) -> None:
    asked = {
        "origin": CHAT,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    preflight = httpx.options(f"{open_server.url}/v1/chat/completions", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == CHAT
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    answer = post(open_server, origin=CHAT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == CHAT
    assert post(open_server, origin="https://evil.example").status_code == 403


def test_cors__errors_can_be_read_too(open_server: FrontServer) -> None:
    wrong = httpx.post(f"{open_server.url}/v1/chat/completions", json={}, headers={"origin": CHAT})
    assert wrong.status_code == 400
    assert wrong.headers["access-control-allow-origin"] == CHAT


def test_check_origins__what_is_one() -> None:
    check_origins(["*", CHAT, "http://localhost:3000"])


@pytest.mark.parametrize(
    "origin", ["chat.example.org", f"{CHAT}/", "https://", "ftp://x", "HTTPS://X", "null"]
)
def test_check_origins__what_is_none(origin: str) -> None:
    with pytest.raises(UsageError, match="no origin"):
        check_origins([origin])
