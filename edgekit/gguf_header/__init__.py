"""GGUF headers: read them without trust, say what model they describe, refuse what llama.cpp would die of.

Pure Python: it runs wherever edgekit does, and never loads the model.
"""

from edgekit.gguf_header.facts import model_facts
from edgekit.gguf_header.reader import GgufHeader, TensorInfo
from edgekit.gguf_header.shards import (
    first_shard,
    numbered,
    read_gguf_header,
    shard_paths,
    stem_without_shard,
)
from edgekit.gguf_header.validation import KNOWN_ARCHITECTURES, validate_model

__all__ = [
    "KNOWN_ARCHITECTURES",
    "GgufHeader",
    "TensorInfo",
    "first_shard",
    "model_facts",
    "numbered",
    "read_gguf_header",
    "shard_paths",
    "stem_without_shard",
    "validate_model",
]
