"""A checkpoint's names, licence, rope settings and tokenizer as GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from edgekit.errors import MissingExtraError, ModelFileError
from export.student.base import DecoderStudent
from export.student.config import CheckpointConfig

try:
    import gguf
except ImportError as error:
    raise MissingExtraError("gguf", extra="export", feature="writing a GGUF") from error

__all__ = ["add_metadata", "add_rope", "add_tokenizer"]

# Kinds of special tokens that GGUF has a key for, and those it has an add_…_token key for.
_ID_KINDS: Final = frozenset({"bos", "eos", "unk", "sep", "pad", "mask", "eot", "eom"})
_ADDED_KINDS: Final = frozenset({"bos", "eos", "sep"})


def add_metadata(writer: Any, student: DecoderStudent) -> None:
    """The general.* keys, from the model card, generation_config.json and the directory's name."""
    total_parameters, shared, experts, expert_count = writer.get_total_parameter_count()
    try:
        metadata = gguf.Metadata.load(None, student.path.resolve(), None, total_parameters)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{student.path}: the model card or config cannot be read: {error}") from error
    if metadata.sampling_penalty_repeat is None:
        # Hugging Face's name for it; gguf 0.19 knows only llama.cpp's.
        metadata.sampling_penalty_repeat = _generation_config(student.path).get("repetition_penalty")
    if metadata.name is None:
        metadata.name = student.path.resolve().name
    if metadata.size_label is None and total_parameters > 0:
        metadata.size_label = gguf.size_label(total_parameters, shared, experts, expert_count)
    metadata.set_gguf_meta_model(writer)


def add_rope(writer: Any, config: CheckpointConfig) -> None:
    """Base frequency and scaling. llama3 scaling has no keys: it is a tensor."""
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
        writer.add_rope_scaling_factor(scaling.number("factor", 1.0))
    if scaling is not None and scaling.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(scaling.number("original_max_position_embeddings", 0)))
        attention_keys = ("attention_factor", "attn_factor")
        for keys, add in (
            (("extrapolation_factor",), writer.add_rope_scaling_yarn_ext_factor),
            (attention_keys, writer.add_rope_scaling_yarn_attn_factor),
            (("beta_fast",), writer.add_rope_scaling_yarn_beta_fast),
            (("beta_slow",), writer.add_rope_scaling_yarn_beta_slow),
        ):
            value = next((scaling.parameters[key] for key in keys if key in scaling.parameters), None)
            if value is not None:
                add(value)
    writer.add_rope_freq_base(config.rope_theta)


def add_tokenizer(writer: Any, student: DecoderStudent) -> None:
    """The tokenizer.* keys."""
    tokenizer = student.tokenizer
    if tokenizer.add_space_prefix is not None and student.config.architecture == "llama":
        writer.add_add_space_prefix(tokenizer.add_space_prefix)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    writer.add_token_merges(tokenizer.merges)
    for kind, index in tokenizer.special.ids.items():
        if kind in _ID_KINDS:
            getattr(writer, f"add_{kind}_token_id")(index)
    for kind, added in tokenizer.special.added.items():
        if kind in _ADDED_KINDS:
            getattr(writer, f"add_add_{kind}_token")(added)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _generation_config(directory: Path) -> dict[str, Any]:
    try:
        value = json.loads((directory / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
