"""The child that tokenizes as a runtime does: `python -m export.tokenizer_guard.worker RUNTIME MODEL`.

RUNTIME is "llama.cpp" and MODEL a GGUF file, or "onnxruntime-genai" and the directory of its files. A
runtime may die of a damaged model; this process then dies, and not the command line.

Reads {"texts": [str], "conversations": [[message]]} from stdin. Writes to stdout:
{"ids": [[int]]               of each text, special tokens in it recognised, nothing added
 "begun_ids": [int]           of BEGUN_TEXT with what the model wants around a prompt
 "prompts": [{"text", "ids"}] of each conversation as the server would compute it, {"refused": str} where the
                              template refuses it, null without a chat template
 "bos": int | null
 "control": [int]}            llama.cpp only: tokens that it takes for control tokens
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.engine.chat_template import ChatTemplate, ChatTemplateError
from edgekit.engine.text import adds_special
from edgekit.errors import EdgekitError, ModelFileError

__all__ = ["BEGUN_TEXT"]

BEGUN_TEXT = "Hello"

_Encode = Callable[[str, bool], list[int]]
_Answer = dict[str, Any]


def main(arguments: list[str]) -> int:
    runtime, model = arguments
    asked = json.loads(sys.stdin.buffer.read())
    try:
        answer = {"llama.cpp": _with_llama_cpp, "onnxruntime-genai": _with_genai}[runtime](Path(model), asked)
    except EdgekitError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(json.dumps(answer))
    return 0


def _with_llama_cpp(path: Path, asked: _Answer) -> _Answer:
    from edgekit.engine.llama_library import forget_reasons, load_library, reason_of_failure

    api = load_library()
    params = api.llama_model_default_params()
    params.vocab_only = True
    forget_reasons()
    model = api.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise ModelFileError(f"llama.cpp does not load the vocabulary: {reason_of_failure()}")
    vocabulary = api.llama_model_get_vocab(model)

    def encode(text: str, add_special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 2
        tokens = (ctypes.c_int32 * room)()
        count = int(
            api.llama_tokenize(vocabulary, data, len(data), tokens, room, add_special, True)  # parse_special
        )
        if count < 0:
            raise ModelFileError(f"llama.cpp makes {-count} tokens of {len(data)} bytes: {text[:80]!r}")
        return tokens[:count]

    def text_of(token: int) -> str:
        text = api.llama_vocab_get_text(vocabulary, token) if token >= 0 else None
        return text.decode("utf-8", "replace") if text else ""

    count = int(api.llama_vocab_n_tokens(vocabulary))
    bos, eos = int(api.llama_vocab_bos(vocabulary)), int(api.llama_vocab_eos(vocabulary))
    source = api.llama_model_chat_template(model, None)
    template = None
    if source:
        template = ChatTemplate(
            source.decode("utf-8", "replace"), bos_token=text_of(bos), eos_token=text_of(eos)
        )
    return {
        "ids": [encode(text, False) for text in asked["texts"]],
        "begun_ids": encode(BEGUN_TEXT, True),
        "prompts": _prompts(template, text_of(bos), encode, asked),
        "bos": bos if bos >= 0 else None,
        "control": [token for token in range(count) if api.llama_vocab_is_control(vocabulary, token)],
    }


def _prompts(
    template: ChatTemplate | None, bos_text: str, encode: _Encode, asked: _Answer
) -> list[_Answer] | None:
    if template is None:
        return None
    prompts: list[_Answer] = []
    for messages in asked["conversations"]:
        try:
            text = template.render(messages)
        except ChatTemplateError as error:
            prompts.append({"refused": error.message})
            continue
        prompts.append({"text": text, "ids": encode(text, adds_special(text, bos_text))})
    return prompts


def _with_genai(directory: Path, asked: _Answer) -> _Answer:
    genai = importlib.import_module("onnxruntime_genai")
    try:
        tokenizer = genai.Tokenizer(str(directory))
    except Exception as error:
        raise ModelFileError(f"onnxruntime-genai does not load the tokenizer: {error}") from error

    def encode(text: str, _add_special: bool = False) -> list[int]:
        return [int(token) for token in tokenizer.encode(text)]

    def prompt(messages: Any) -> _Answer:
        try:
            text = tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
        except Exception as error:
            return {"refused": str(error)}
        return {"text": text, "ids": encode(text)}

    return {
        "ids": [encode(text) for text in asked["texts"]],
        "begun_ids": encode(BEGUN_TEXT),
        "prompts": [prompt(messages) for messages in asked["conversations"]],
        "bos": tokenizer.bos_token_id,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
