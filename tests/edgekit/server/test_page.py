"""The page's files as the server gives them out. What they do in a browser: tests/browser/test_page.py."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from edgekit.server.page import PAGE_PATHS, add_page

ASSETS = sorted(PAGE_PATHS - {"/"})


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    add_page(app)
    return TestClient(app)


def test_index__names_assets_that_are_there(client: TestClient) -> None:
    index = client.get("/").text
    assert "{assets}" not in index
    named = {f"/{path}" for path in re.findall(r'(?:href|src)="([^"]+)"', index)}
    assert named and named <= PAGE_PATHS


@pytest.mark.parametrize("path", ASSETS)
def test_assets__import_only_what_is_there(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    folder = path.rpartition("/")[0]
    imported = re.findall(r'from "\./([^"]+)"', response.text)
    assert {f"{folder}/{name}" for name in imported} <= PAGE_PATHS


@pytest.mark.parametrize(
    ("suffix", "media_type"),
    [
        (".js", "text/javascript; charset=utf-8"),
        (".css", "text/css; charset=utf-8"),
        (".svg", "image/svg+xml"),
    ],
)
def test_assets__have_their_type_and_may_be_kept(client: TestClient, suffix: str, media_type: str) -> None:
    # With nosniff a browser runs no script of another type.
    paths = [path for path in ASSETS if path.endswith(suffix)]
    assert paths
    for path in paths:
        headers = client.get(path).headers
        assert headers["content-type"] == media_type
        assert "immutable" in headers["cache-control"]


def test_index__is_asked_for_anew_each_time(client: TestClient) -> None:
    headers = client.get("/").headers
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
def test_headers__keep_everything_else_out(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
def test_files__need_nothing_of_elsewhere_and_nothing_inline(client: TestClient, path: str) -> None:
    text = client.get(path).text
    # The one address is a name: SVG's namespace.
    assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}
    assert not re.search(r"\bon\w+=|style=|innerHTML|insertAdjacentHTML|document\.write|\beval\(", text)


def test_routes__are_no_part_of_the_api(client: TestClient) -> None:
    assert client.get("/openapi.json").json()["paths"] == {}


def test_assets__of_another_release_are_not_there(client: TestClient) -> None:
    assert client.get("/assets/0123456789abcdef/main.js").status_code == 404
    assert client.get("/assets/../index.html").status_code == 404


def test_head__is_answered(client: TestClient) -> None:
    assert client.head("/").status_code == 200
    assert client.post("/").status_code == 405
