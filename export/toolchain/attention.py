"""Puts edgekit's attention into llama.cpp's sources, for the wheel alone.

The tools are built from the released sources as they are: a benchmark against them compares with what others
run. What the kernel does, and why, stands in `edgekit_attention.h`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgekit.errors import ToolchainError

__all__ = ["ATTENTION_FILES", "add_attention", "wants_attention"]

_HERE: Final = Path(__file__).resolve().parent
ATTENTION_FILES: Final = (
    "edgekit_simd.h",
    "edgekit_attention_block.h",
    "edgekit_attention.h",
    "edgekit_attention_ggml.h",
)
_OPS: Final = "ggml/src/ggml-cpu/ops.cpp"
_EDITS: Final = (
    (
        "static void ggml_compute_forward_flash_attn_ext_f16(\n",
        f'#include "{ATTENTION_FILES[-1]}"\n\nstatic void ggml_compute_forward_flash_attn_ext_f16(\n',
    ),
    (
        "                ggml_compute_forward_flash_attn_ext_f16(params, dst);\n",
        "                if (!edgekit_flash_attn_ext(params, dst)) {\n"
        "                    ggml_compute_forward_flash_attn_ext_f16(params, dst);\n"
        "                }\n",
    ),
)


def wants_attention(arguments: Sequence[str]) -> bool:
    """False where a profile's `build.cmake` has GGML_EDGEKIT_ATTENTION: false, to measure against."""
    return "-DGGML_EDGEKIT_ATTENTION=OFF" not in arguments


def add_attention(llama_cpp: Path) -> None:
    """Change the unpacked source of llama.cpp: the headers beside ops.cpp, and two edits in it.

    Raises:
        ToolchainError: ops.cpp does not read as that of the pinned release.
    """
    ops = llama_cpp / _OPS
    try:
        text = ops.read_text(encoding="utf-8")
    except OSError as error:
        raise ToolchainError(f"{ops}: {error.strerror or error}") from error
    for old, new in _EDITS:
        if (count := text.count(old)) != 1:
            raise ToolchainError(
                f"{_OPS} of llama.cpp has {count} times, and not once: {old.strip()}",
                hint="export/toolchain/attention.py was written for another release of llama-cpp-python",
            )
        text = text.replace(old, new)
    for name in ATTENTION_FILES:
        shutil.copyfile(_HERE / name, ops.with_name(name))
    ops.write_text(text, encoding="utf-8")
