"""llama.cpp's names for the tensors of a Hugging Face checkpoint: see `export.student.gguf_names`."""

from export.student.gguf_names import gguf_name

__all__ = ["gguf_name"]
