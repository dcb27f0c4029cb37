from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from live_server import http
from scripted_engine import ScriptedEngine

Serve = Callable[..., str]


def test_tokenize__and_back(server_url: str) -> None:
    text = "Hello w\xf6rld \U0001f600"
    tokens = http.post(f"{server_url}/tokenize", json={"content": text}).json()["tokens"]
    assert all(isinstance(token, int) for token in tokens)
    assert http.post(f"{server_url}/detokenize", json={"tokens": tokens}).json() == {"content": text}


def test_tokenize__pieces_that_are_no_characters_are_bytes(server_url: str) -> None:
    body = {"content": "Hello \U0001f600", "with_pieces": True}
    tokens = http.post(f"{server_url}/tokenize", json=body).json()["tokens"]
    assert tokens[0]["piece"] == "Hello"
    rest = [
        part for token in tokens[1:] for part in (token["piece"] if isinstance(token["piece"], list) else [])
    ]
    assert bytes(rest) == " \U0001f600".encode()


def test_tokenize__special_texts_as_asked(server_url: str) -> None:
    def count(**options: bool) -> int:
        body = {"content": "<|im_end|>", **options}
        return len(http.post(f"{server_url}/tokenize", json=body).json()["tokens"])

    assert count() == 1
    assert count(parse_special=False) > 1


def test_detokenize__token_that_is_none_is_refused(server_url: str) -> None:
    response = http.post(f"{server_url}/detokenize", json={"tokens": [1, 49152]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tokens"


def test_apply_template__is_the_prompt_of_the_chat(server_url: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    prompt = http.post(f"{server_url}/apply-template", json={"messages": messages}).json()["prompt"]
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    tokens = http.post(f"{server_url}/tokenize", json={"content": prompt}).json()["tokens"]
    body = {"messages": messages, "max_tokens": 1}
    usage = http.post(f"{server_url}/v1/chat/completions", json=body).json()["usage"]
    assert usage["prompt_tokens"] == len(tokens)


def test_props__tell_of_the_model_and_not_of_the_machine(server_url: str, student: Path) -> None:
    response = http.get(f"{server_url}/props")
    props = response.json()
    assert props["default_generation_settings"]["n_ctx"] == 512
    assert props["default_generation_settings"]["params"]["temperature"] == 0.6
    assert props["model_alias"] == "smollm2"
    assert "<|im_start|>" in props["chat_template"]
    assert (props["bos_token"], props["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert props["build_info"].startswith("edgekit ")
    assert str(student.parent) not in response.text
    assert student.name not in response.text


def test_model_name__may_have_slashes(serve_script: Serve) -> None:
    name = "deepseek-ai/R1 distill/1.5B"
    url = serve_script(ScriptedEngine(), name=name)
    assert http.get(f"{url}/v1/models").json()["data"][0]["id"] == name
    for path in ("deepseek-ai/R1%20distill/1.5B", "deepseek-ai%2FR1%20distill%2F1.5B"):
        assert http.get(f"{url}/v1/models/{path}").json()["id"] == name
    assert http.get(f"{url}/v1/models/deepseek-ai").status_code == 404
    body = {"model": name, "messages": [{"role": "user", "content": "Hi"}]}
    assert http.post(f"{url}/chat/completions", json=body).json()["model"] == name
