"""A GGUF as plain data, so that tests can damage any part of it and write it to disk."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

_NUMBERS = {"U8": 0, "I8": 1, "U16": 2, "I16": 3, "U32": 4, "I32": 5, "F32": 6, "BOOL": 7, "STR": 8, "ARR": 9}
_NUMBERS |= {"U64": 10, "I64": 11, "F64": 12}
_CODES = {"U8": "B", "I8": "b", "U16": "H", "I16": "h", "U32": "I", "I32": "i", "F32": "f", "BOOL": "?"}
_CODES |= {"U64": "Q", "I64": "q", "F64": "d"}
F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
_BLOCKS = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q8_0: (32, 34)}


@dataclass
class Tensor:
    name: str
    shape: list[int]
    kind: int = F32
    data: bytes | None = None
    offset: int | None = None

    @property
    def size(self) -> int:
        length, size = _BLOCKS.get(self.kind, (1, 4))
        count = 1
        for dimension in self.shape:
            count *= dimension
        return count // length * size


@dataclass
class RawGguf:
    """`metadata` maps a key to (type, value); arrays are ("ARR", (element type, values))."""

    metadata: dict[str, tuple[str, Any]]
    tensors: list[Tensor]
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    extra_pairs: list[tuple[str, tuple[str, Any]]] = field(default_factory=list)

    def set(self, key: str, kind: str, value: Any) -> None:
        self.metadata[key] = (kind, value)

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.to_bytes())
        return path

    def to_bytes(self) -> bytes:
        pairs = [*self.metadata.items(), *self.extra_pairs]
        head = self.magic + struct.pack("<IQQ", self.version, len(self.tensors), len(pairs))
        for key, (kind, value) in pairs:
            head += _string(key) + struct.pack("<I", _NUMBERS[kind]) + _value(kind, value)
        body = b""
        for tensor in self.tensors:
            offset = len(body) if tensor.offset is None else tensor.offset
            head += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
            head += b"".join(struct.pack("<Q", length) for length in tensor.shape)
            head += struct.pack("<IQ", tensor.kind, offset)
            data = tensor.data if tensor.data is not None else bytes(tensor.size)
            body += data + bytes(-len(data) % self.alignment)
        return head + bytes(-len(head) % self.alignment) + body


def _value(kind: str, value: Any) -> bytes:
    if kind == "ARR":
        element, values = value
        return struct.pack("<IQ", _NUMBERS[element], len(values)) + b"".join(
            _value(element, one) for one in values
        )
    return _string(value) if kind == "STR" else struct.pack("<" + _CODES[kind], value)


def _string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def split(model: RawGguf, *ends: int) -> list[RawGguf]:
    """The model in several parts, as gguf-split writes them: `ends` are where all but the last part end."""
    cuts = [0, *ends, len(model.tensors)]
    parts = []
    for number, (start, end) in enumerate(pairwise(cuts)):
        part = RawGguf(dict(model.metadata) if number == 0 else {}, model.tensors[start:end])
        part.set("split.no", "U16", number)
        part.set("split.count", "U16", len(cuts) - 1)
        part.set("split.tensors.count", "I32", len(model.tensors))
        parts.append(part)
    return parts


def tiny_model(architecture: str = "llama") -> RawGguf:
    """A model that llama.cpp loads: 2 layers, width 64, 4 heads, 2 KV heads, 264 tokens, made-up weights."""
    width, ffn, heads, kv_heads, layers = 64, 96, 4, 2, 2
    tokens = [*_byte_characters(), "Ġt", "he", "Ġthe", "in", "<s>", "</s>", "<think>", "</think>"]
    types = [1] * 260 + [3, 3, 4, 4]
    a = architecture
    metadata: dict[str, tuple[str, Any]] = {
        "general.architecture": ("STR", architecture),
        "general.name": ("STR", "Tiny"),
        "general.file_type": ("U32", 0),
        f"{a}.block_count": ("U32", layers),
        f"{a}.context_length": ("U32", 2048),
        f"{a}.embedding_length": ("U32", width),
        f"{a}.feed_forward_length": ("U32", ffn),
        f"{a}.attention.head_count": ("U32", heads),
        f"{a}.attention.head_count_kv": ("U32", kv_heads),
        f"{a}.attention.layer_norm_rms_epsilon": ("F32", 1e-5),
        f"{a}.rope.freq_base": ("F32", 10000.0),
        "tokenizer.ggml.model": ("STR", "gpt2"),
        "tokenizer.ggml.pre": ("STR", "qwen2"),
        "tokenizer.ggml.tokens": ("ARR", ("STR", tokens)),
        "tokenizer.ggml.token_type": ("ARR", ("I32", types)),
        "tokenizer.ggml.merges": ("ARR", ("STR", ["Ġ t", "h e", "Ġt he", "i n"])),
        "tokenizer.ggml.bos_token_id": ("U32", 260),
        "tokenizer.ggml.eos_token_id": ("U32", 261),
        "tokenizer.ggml.add_bos_token": ("BOOL", True),
    }
    head, kv_width = width // heads, width // heads * kv_heads
    tensors = [Tensor("token_embd.weight", [width, len(tokens)]), Tensor("output_norm.weight", [width])]
    tensors.append(Tensor("output.weight", [width, len(tokens)], Q8_0))
    for index in range(layers):
        block = f"blk.{index}"
        tensors += [
            Tensor(f"{block}.attn_norm.weight", [width]),
            Tensor(f"{block}.attn_q.weight", [width, width], Q4_0),
            Tensor(f"{block}.attn_k.weight", [width, kv_width], F16),
            Tensor(f"{block}.attn_v.weight", [width, kv_width], Q8_0),
            Tensor(f"{block}.attn_output.weight", [width, width], Q4_0),
            Tensor(f"{block}.ffn_norm.weight", [width]),
            Tensor(f"{block}.ffn_gate.weight", [width, ffn], Q4_0),
            Tensor(f"{block}.ffn_up.weight", [width, ffn], Q8_0),
            Tensor(f"{block}.ffn_down.weight", [ffn, width], Q4_0),
        ]
        if architecture == "qwen2":
            tensors += [
                Tensor(f"{block}.attn_q.bias", [width]),
                Tensor(f"{block}.attn_k.bias", [kv_width]),
                Tensor(f"{block}.attn_v.bias", [kv_width]),
            ]
        if architecture == "qwen3":
            tensors += [
                Tensor(f"{block}.attn_q_norm.weight", [head]),
                Tensor(f"{block}.attn_k_norm.weight", [head]),
            ]
    for tensor in tensors:
        tensor.data = _weights(tensor)
    return RawGguf(metadata, tensors)


def _weights(tensor: Tensor) -> bytes:
    """Small finite numbers of each type: ones for norms, a repeating wave elsewhere."""
    count = tensor.size // _BLOCKS[tensor.kind][1]
    if tensor.name.endswith("norm.weight"):
        return struct.pack("<f", 1.0) * count
    wave = [((index * 7919) % 31 - 15) / 100 for index in range(count)]
    if tensor.kind == F32:
        return struct.pack(f"<{count}f", *wave)
    if tensor.kind == F16:
        return struct.pack(f"<{count}e", *wave)
    body = bytes((index * 37) % 256 for index in range(_BLOCKS[tensor.kind][1] - 2))
    return b"".join(struct.pack("<e", value / 10) + body for value in wave)


def _byte_characters() -> list[str]:
    """GPT-2's stand-ins for the 256 bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
