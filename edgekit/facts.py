"""What there is to know about a model before it is loaded: the numbers that plans and forecasts use."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

__all__ = ["ModelFacts"]


class ModelFacts(BaseModel):
    """Shape and identity of a decoder-only language model. Unknown is None.

    Head counts and lengths follow the field names of Hugging Face's config.json; sizes are in bytes as
    stored on disk, without KV cache or compute buffers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    architecture: str
    """GGUF architecture name: "llama", "qwen2", "qwen3"."""
    parameters: PositiveInt
    """Number of weights, embeddings included; tied weights count once."""
    weight_bytes: PositiveInt
    """Bytes of all tensors as stored."""
    bytes_per_token: PositiveInt
    """Weight bytes that one decode step reads: all tensors but a token embedding that is only looked up."""
    quantization: str
    """llama.cpp file type name, e.g. "Q4_1", "Q4_K_M", "BF16"."""
    layers: PositiveInt
    embedding_length: PositiveInt
    feed_forward_length: PositiveInt
    attention_heads: PositiveInt
    attention_kv_heads: PositiveInt
    head_length: PositiveInt
    vocabulary: PositiveInt
    context_train_tokens: NonNegativeInt
    """Context length that the model was trained for, in tokens."""
    tied_embeddings: bool
    tokenizer: str | None = None
    """GGUF pre-tokenizer name, e.g. "deepseek-r1-qwen"."""
    license: str | None = None
    base_model: str | None = None
