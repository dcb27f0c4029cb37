"""The pieces that answers have in common, in OpenAI's and llama-server's shapes."""

from __future__ import annotations

import json
from json.encoder import encode_basestring
from typing import Any, Final

from edgekit.engine.base import LikelyToken, RequestRecord

__all__ = ["DONE", "dump", "event", "finite", "likely_token", "quoted", "timings", "token_text", "usage"]

DONE: Final = b"data: [DONE]\n\n"
_NO_CHANCE: Final = -9999.0
"""OpenAI's logarithm of nought: JSON has no infinity."""

quoted = encode_basestring
"""A text as JSON, without escapes for other than ASCII. In C, where Python has it."""


def event(data: str) -> bytes:
    """A server-sent event."""
    return f"data: {data}\n\n".encode("utf-8", "replace")


def dump(value: Any) -> str:
    """JSON without escapes for other than ASCII."""
    return json.dumps(value, ensure_ascii=False)


def usage(record: RequestRecord) -> dict[str, Any]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "total_tokens": record.prompt_tokens + record.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": record.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": record.reasoning_tokens},
    }


def timings(record: RequestRecord, *, streams: int = 1) -> dict[str, Any]:
    """llama-server's `timings`: prompt_n are the tokens that were computed, not those in the cache."""
    computed = record.prompt_tokens - record.cached_tokens
    # The first token of each stream comes out of the prefill, so the decode phase made one token less.
    decoded = max(0, record.completion_tokens - streams)
    return {
        "cache_n": record.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": record.prefill_s * 1e3,
        "prompt_per_token_ms": record.prefill_s * 1e3 / computed if computed else None,
        "prompt_per_second": computed / record.prefill_s if record.prefill_s else None,
        "predicted_n": record.completion_tokens,
        "predicted_ms": record.decode_s * 1e3,
        "predicted_per_token_ms": record.decode_s * 1e3 / decoded if decoded else None,
        "predicted_per_second": decoded / record.decode_s if record.decode_s else None,
        "queue_ms": record.queue_s * 1e3,
        "ttft_ms": record.ttft_s * 1e3,
    }


def token_text(piece: bytes, *, prefix: str = "") -> str:
    r"""A token's text; bytes that are no whole characters as OpenAI writes them, e.g. `\xe2\x80`."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in piece)


def likely_token(token: LikelyToken) -> dict[str, Any]:
    """A token and its log probability, as chat completions have it."""
    return {
        "token": token_text(token.piece),
        "bytes": list(token.piece),
        "logprob": finite(token.logprob),
    }


def finite(logprob: float) -> float:
    """A log probability that JSON can write."""
    return max(logprob, _NO_CHANCE)
