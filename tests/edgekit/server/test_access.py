from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from live_server import http, load_student, running_server, wait_until_ready

from edgekit.errors import UsageError
from edgekit.server.access import ApiKeys, is_loopback


@pytest.fixture(scope="module")
def guarded_url(student: Path) -> Iterator[str]:
    keys = ApiKeys(frozenset({"secret-1", "sécret-2"}))
    with running_server(lambda: load_student(student), keys) as url:
        wait_until_ready(url)
        yield url


def ask(url: str, path: str, authorization: str) -> httpx.Response:
    return http.get(url + path, headers={"authorization": authorization.encode()})


def first_answer(url: str, request: str) -> str:
    """What the server says to a request whose body never comes."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=5) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        return connection.recv(4096).decode()


@pytest.mark.parametrize("authorization", ["Bearer wrong", "secret-1", "Basic secret-1", "Bearer"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/nothing"])
def test_api_keys__closed_without(guarded_url: str, path: str, authorization: str) -> None:
    response = ask(guarded_url, path, authorization)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", ["secret-1", "sécret-2"])
def test_api_keys__open_to_the_key(guarded_url: str, key: str) -> None:
    assert ask(guarded_url, "/v1/models", f"Bearer {key}").status_code == 200
    assert ask(guarded_url, "/metrics", f"bearer  {key}").status_code == 200


def test_api_keys__health_is_open_and_the_schema_is_not_there(guarded_url: str) -> None:
    assert http.get(f"{guarded_url}/health").status_code == 200
    assert ask(guarded_url, "/openapi.json", "Bearer secret-1").status_code == 404


def test_api_keys__refused_before_the_body_comes(guarded_url: str) -> None:
    request = "POST /v1/chat/completions HTTP/1.1\nHost: x\nContent-Length: 1000000\n\n"
    assert first_answer(guarded_url, request).startswith("HTTP/1.1 401")


def test_slow_body__is_given_up(student: Path) -> None:
    with running_server(lambda: load_student(student), body_timeout_s=0.3) as url:
        request = "POST /v1/chat/completions HTTP/1.1\nHost: x\nContent-Length: 1000\n\n{"
        answer = first_answer(url, request)
        assert answer.startswith("HTTP/1.1 408")
        assert "connection: close" in answer.lower()


def test_key_file__comments_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbfsecret-1\r\n# the app\n   # indented\n\n  secret-2\n")
    keys = ApiKeys.from_file(file)
    assert keys.open_to(b"Bearer secret-1")
    assert keys.open_to(b"Bearer secret-2")
    assert not keys.open_to(b"Bearer # indented")
    assert not keys.open_to(b"Bearer ")


@pytest.mark.parametrize("content", ["", "# none\n \n"])
def test_key_file__without_keys_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(UsageError, match="holds no API key"):
        ApiKeys.from_file(tmp_path / "keys")


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o640, True), (0o604, True)])
def test_key_file__readable_by_others_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warns: bool
) -> None:
    file = tmp_path / "keys"
    file.write_text("secret\n")
    file.chmod(mode)
    with caplog.at_level(logging.WARNING):
        ApiKeys.from_file(file)
    assert ("chmod 600" in caplog.text) is warns
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("127.8.8.8", True),
        ("0.0.0.0", False),
        ("::", False),
        ("pi.local", False),
    ],
)
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_key_file__new_keys_take_the_old_ones_place(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text("old-1\nold-2\n")
    keys = ApiKeys.from_file(file, clock=clock)
    (tmp_path / "new").write_text("new-key\nold-2\n")
    (tmp_path / "new").rename(file)
    assert keys.open_to(b"Bearer old-1"), "the file is looked at once a second"
    clock.now_s += 1
    assert not keys.open_to(b"Bearer old-1")
    assert keys.open_to(b"Bearer old-2")
    assert keys.open_to(b"Bearer new-key")


@pytest.mark.parametrize("content", [b"", b"# all gone\n", b"\xff\xfe", None])
def test_key_file__bad_news_leave_the_old_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text("old\n")
    keys = ApiKeys.from_file(file, clock=clock)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    for _ in range(3):
        clock.now_s += 1
        assert keys.open_to(b"Bearer old")
    # Said once, not at every look.
    assert caplog.text.count("the keys stay as they were") == 1
    file.write_text("new\n")
    clock.now_s += 1
    assert keys.open_to(b"Bearer new")


def test_key_file__reread_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    keys = ApiKeys.from_file(file, clock=Clock())
    file.write_text("new\n")
    keys.reload()
    assert keys.open_to(b"Bearer new")
    assert not keys.open_to(b"Bearer old")
