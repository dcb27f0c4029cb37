"""Tries what was written, as a device will: it must load, decode, chat, and split text like the student."""

from __future__ import annotations

from pathlib import Path

from edgekit.engine.chat_template import ChatTemplate, ChatTemplateError
from edgekit.engine.probe import probe_model
from edgekit.errors import ModelFileError
from edgekit.facts import ModelFacts
from edgekit.gguf_header import GgufHeader, model_facts, read_gguf_header, validate_model
from export.student.base import DecoderStudent
from export.tokenizer_guard.guard import check_gguf_tokenizer, check_onnx_tokenizer

__all__ = ["try_gguf", "try_onnx"]


def try_gguf(path: Path, name: str, checkpoint: DecoderStudent | None) -> tuple[ModelFacts, tuple[str, ...]]:
    """Load a GGUF in a child process and decode with it.

    Args:
        name: what the model is called.
        checkpoint: the student whose tokenizer it must have; None where the file is the student itself.

    Returns:
        What the file is, and what its users should know.

    Raises:
        ModelFileError: it does not load, or its chat template is broken.
        ExportError: its tokenizer yields other tokens than the student's.
        EngineError: llama.cpp does not run here.
    """
    header = read_gguf_header(path)
    validate_model(header)
    notes = _chat_notes(header)
    probe_model(path)
    if checkpoint is not None:
        notes += check_gguf_tokenizer(path, checkpoint)
    return model_facts(header, name=name), notes


def try_onnx(
    directory: Path, facts: ModelFacts, name: str, checkpoint: DecoderStudent
) -> tuple[ModelFacts, tuple[str, ...]]:
    """Check the tokenizer of an ONNX export; that it computes is seen when it is compared with the student.

    Args:
        facts: what was planned.

    Raises:
        ExportError: its tokenizer yields other tokens than the student's.
    """
    notes = check_onnx_tokenizer(directory, checkpoint)
    size = sum(path.stat().st_size for path in directory.glob("*.onnx*"))
    looked_up = facts.weight_bytes - facts.bytes_per_token
    update = {"name": name, "weight_bytes": size, "bytes_per_token": max(1, size - looked_up)}
    return facts.model_copy(update=update), notes


def _chat_notes(header: GgufHeader) -> tuple[str, ...]:
    source = header.metadata.get("tokenizer.chat_template")
    if not isinstance(source, str) or not source:
        return ("the model has no chat template: it completes texts and answers no chats",)
    try:
        template = ChatTemplate(
            source, bos_token=_token(header, "bos_token_id"), eos_token=_token(header, "eos_token_id")
        )
        template.render([{"role": "user", "content": "Hello"}])
    except (ModelFileError, ChatTemplateError) as error:
        raise ModelFileError(
            f"no chat is possible with this model: {error.message}",
            hint="correct the template in the student: chat_template.jinja, or tokenizer_config.json",
        ) from error
    return ()


def _token(header: GgufHeader, key: str) -> str:
    """Text of a special token; empty where the model has none."""
    tokens, number = header.metadata["tokenizer.ggml.tokens"], header.metadata.get(f"tokenizer.ggml.{key}")
    if isinstance(tokens, tuple) and isinstance(number, int) and 0 <= number < len(tokens):
        return str(tokens[number])
    return ""
