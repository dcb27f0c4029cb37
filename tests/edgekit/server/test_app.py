from __future__ import annotations

import threading
from pathlib import Path

from live_server import http, load_student, running_server, wait_until_ready

from edgekit.errors import ModelFileError
from edgekit.server.model import LoadedModel


def test_health__503_while_loading_then_200(student: Path) -> None:
    may_load = threading.Event()

    def load() -> LoadedModel:
        assert may_load.wait(30)
        return load_student(student)

    with running_server(load) as url:
        loading = http.get(f"{url}/health")
        assert loading.status_code == 503
        assert loading.json()["error"]["message"] == "Loading model"
        assert "retry-after" in loading.headers
        assert (
            http.post(
                f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}
            ).status_code
            == 503
        )
        assert "edgekit_ready 0.0" in http.get(f"{url}/metrics").text
        may_load.set()
        wait_until_ready(url)
        assert http.get(f"{url}/health").json() == {"status": "ok"}


def test_health__failed_load_is_told() -> None:
    def load() -> LoadedModel:
        raise ModelFileError("model.gguf: truncated")

    with running_server(load) as url:
        for _ in range(100):
            response = http.get(f"{url}/health")
            if response.status_code != 503:
                break
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "model.gguf: truncated"


def test_models__lists_the_one_that_is_served(server_url: str) -> None:
    listed = http.get(f"{server_url}/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["smollm2"]
    assert listed["data"][0]["meta"]["n_ctx"] == 512
    assert http.get(f"{server_url}/v1/models/smollm2").json() == listed["data"][0]
    assert http.get(f"{server_url}/v1/models/other").status_code == 404


def test_unknown_path__is_an_openai_error(server_url: str) -> None:
    response = http.get(f"{server_url}/v1/nothing")
    assert response.status_code == 404
    assert "/v1/nothing" in response.json()["error"]["message"]


def test_metrics__count_what_was_done(server_url: str) -> None:
    def value(name: str) -> float:
        page = http.get(f"{server_url}/metrics").text
        return float(next(line.split()[-1] for line in page.splitlines() if line.startswith(name)))

    before = value("llamacpp:tokens_predicted_total"), value("edgekit_ttft_seconds_count")
    body = {
        "messages": [{"role": "user", "content": "Count to ten."}],
        "max_tokens": 10,
        "logit_bias": {"2": -100},
    }
    http.post(f"{server_url}/v1/chat/completions", json=body).raise_for_status()
    # The first of the ten tokens comes out of the prefill.
    assert value("llamacpp:tokens_predicted_total") == before[0] + 9
    assert value("edgekit_ttft_seconds_count") == before[1] + 1
    assert value("edgekit_ready") == 1
    assert value('edgekit_bundle_info{release="1"}') == 1
