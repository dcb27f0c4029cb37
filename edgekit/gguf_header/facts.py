"""What a GGUF's header says about the model, as the numbers that plans and forecasts use."""

from __future__ import annotations

from collections import Counter

from edgekit.errors import ModelFileError
from edgekit.facts import ModelFacts
from edgekit.gguf_header.reader import GgufHeader
from edgekit.gguf_header.shards import stem_without_shard
from edgekit.gguf_header.tensor_types import FILE_TYPES, file_type_of
from edgekit.gguf_header.validation import hyperparameters

__all__ = ["model_facts"]


def model_facts(header: GgufHeader, *, name: str | None = None) -> ModelFacts:
    """Facts of a model of a known architecture. `name` replaces `general.name`.

    Raises:
        ModelFileError: the architecture is not known, or a number that the facts need is missing or
            makes no sense.
    """
    shape = hyperparameters(header)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    if "token_embd.weight" not in tensors:
        raise ModelFileError(f"{header.path}: tensor 'token_embd.weight' is missing")
    tied = "output.weight" not in tensors
    weight_bytes = sum(tensor.size_bytes for tensor in header.tensors)
    return ModelFacts(
        name=name or _text(header, "general.name") or stem_without_shard(header.path),
        architecture=shape.architecture,
        parameters=sum(tensor.elements for tensor in header.tensors if not tensor.name.startswith("rope_")),
        weight_bytes=weight_bytes,
        bytes_per_token=weight_bytes - (0 if tied else tensors["token_embd.weight"].size_bytes),
        quantization=_quantization(header),
        layers=shape.layers,
        embedding_length=shape.embedding_length,
        feed_forward_length=shape.feed_forward_length,
        attention_heads=shape.heads,
        attention_kv_heads=shape.kv_heads,
        head_length=shape.head_length,
        vocabulary=tensors["token_embd.weight"].elements // shape.embedding_length,
        context_train_tokens=shape.context_train_tokens,
        tied_embeddings=tied,
        tokenizer=_text(header, "tokenizer.ggml.pre"),
        license=_text(header, "general.license"),
        base_model=_base_model(header),
    )


def _quantization(header: GgufHeader) -> str:
    """The file type as declared; without one, that of the type most tensors have, as llama.cpp guesses."""
    declared = header.metadata.get("general.file_type")
    if isinstance(declared, int) and declared in FILE_TYPES:
        return FILE_TYPES[declared]
    matrices = [tensor.type_name for tensor in header.tensors if len(tensor.shape) > 1]
    return file_type_of(Counter(matrices).most_common(1)[0][0]) if matrices else "F32"


def _base_model(header: GgufHeader) -> str | None:
    url = _text(header, "general.base_model.0.repo_url")
    if url is not None:
        return url.removeprefix("https://huggingface.co/")
    return _text(header, "general.base_model.0.name")


def _text(header: GgufHeader, key: str) -> str | None:
    value = header.metadata.get(key)
    return value if isinstance(value, str) and value else None
