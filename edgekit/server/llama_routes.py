"""llama-server's own routes: text to tokens and back, the prompt of a chat, and what is served."""

from __future__ import annotations

import codecs
from typing import Any

from fastapi import FastAPI, Response

from edgekit import __version__
from edgekit.server.chat_request import render_prompt
from edgekit.server.documents import answers
from edgekit.server.errors import JsonAnswer
from edgekit.server.model import LoadedModel, ModelSlot
from edgekit.server.prompts import check_tokens, prepare_text, tokenize
from edgekit.server.schemas.answers import Props
from edgekit.server.schemas.chat import ChatPromptBody
from edgekit.server.schemas.tokens import (
    DetokenizedText,
    DetokenizeRequest,
    RenderedPrompt,
    TokenizedText,
    TokenizeRequest,
)

__all__ = ["add_llama_routes"]

_FRESH_SEED = 2**32 - 1
"""LLAMA_DEFAULT_SEED: one is drawn for each request."""


def add_llama_routes(app: FastAPI, slot: ModelSlot) -> None:
    """Add POST /tokenize, /detokenize and /apply-template, and GET /props."""

    @app.post("/tokenize", response_model=None, responses=answers(TokenizedText, 400, 413))
    async def tokenize_text(body: TokenizeRequest) -> Response:
        model = slot.ready_model()
        tokens = await tokenize(
            prepare_text(body.content, model),
            model,
            add_special=bool(body.add_special),
            parse_special=body.parse_special is not False,
        )
        if not body.with_pieces:
            return JsonAnswer({"tokens": tokens})
        pieces = model.engine.pieces(tokens)
        return JsonAnswer(
            {
                "tokens": [
                    {"id": token, "piece": _piece(piece)} for token, piece in zip(tokens, pieces, strict=True)
                ]
            }
        )

    @app.post("/detokenize", response_model=None, responses=answers(DetokenizedText, 400, 413))
    async def detokenize(body: DetokenizeRequest) -> Response:
        model = slot.ready_model()
        pieces = model.engine.pieces(check_tokens(body.tokens, model, field="tokens"))
        return JsonAnswer({"content": b"".join(pieces).decode("utf-8", "replace")})

    @app.post("/apply-template", response_model=None, responses=answers(RenderedPrompt, 400, 413))
    async def apply_template(body: ChatPromptBody) -> Response:
        return JsonAnswer({"prompt": render_prompt(body, slot.ready_model())})

    @app.get("/props", response_model=None, responses=answers(Props))
    async def props() -> Response:
        return JsonAnswer(_props(slot.ready_model()))


def _piece(piece: bytes) -> str | list[int]:
    try:
        return codecs.decode(piece, "utf-8")
    except UnicodeDecodeError:
        return list(piece)


def _props(model: LoadedModel) -> dict[str, Any]:
    """As llama-server has it, without what tells of the machine: no path, no build host."""
    sampling = model.sampling
    params = {
        "n_predict": -1,
        "max_tokens": -1,
        "stream": False,
        "stop": [],
        "seed": _FRESH_SEED if sampling.seed is None else sampling.seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    return {
        "default_generation_settings": {"params": params, "n_ctx": model.engine.context_tokens},
        "total_slots": model.slots,
        "model_alias": model.name,
        "model_ftype": model.facts.quantization,
        "modalities": {"vision": False, "audio": False},
        "chat_template": model.template.source if model.template else "",
        "chat_template_caps": {
            "supports_tools": model.template is not None and model.tools.template_takes_tools,
            "supports_reasoning": model.reasoning_tags is not None,
        },
        "bos_token": model.bos_text,
        "eos_token": model.template.eos_token if model.template else "",
        "build_info": f"edgekit {__version__}",
        "is_sleeping": False,
    }
