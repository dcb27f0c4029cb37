"""GGUF headers: read them without trust, say what model they describe, refuse what llama.cpp would die of.

Pure Python: it runs wherever edgekit does, and never loads the model.
"""

from edgekit.gguf_header.facts import model_facts
from edgekit.gguf_header.reader import GgufHeader, TensorInfo, read_gguf_header
from edgekit.gguf_header.validation import KNOWN_ARCHITECTURES, validate_model

__all__ = [
    "KNOWN_ARCHITECTURES",
    "GgufHeader",
    "TensorInfo",
    "model_facts",
    "read_gguf_header",
    "validate_model",
]
