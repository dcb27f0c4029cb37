"""Tensor names of Hugging Face and of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from edgekit.errors import ModelFileError
from export.student.config import read_config
from export.student.gguf_names import checkpoint_tensor_name, gguf_name

FAMILIES = {"R1-Tiny-Llama-1M": "LLAMA", "R1-Tiny-Qwen2": "QWEN2", "R1-0528-Tiny-Qwen3": "QWEN3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_name__is_that_of_the_gguf_library_and_back(
    family: str, r1_family: Callable[[str], Path]
) -> None:
    config = read_config(r1_family(family) / "config.json")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[FAMILIES[family]], config.layers)
    for name in config.tensor_shapes():
        assert gguf_name(name) == names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert checkpoint_tensor_name(gguf_name(name)) == name


def test_gguf_name__of_an_unknown_tensor_is_refused() -> None:
    with pytest.raises(ModelFileError, match="visual"):
        gguf_name("model.visual.proj.weight")
    with pytest.raises(ModelFileError, match="ssm_out"):
        checkpoint_tensor_name("blk.3.ssm_out.weight")
