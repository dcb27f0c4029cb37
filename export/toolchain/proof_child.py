"""Runs a small model with an unpacked wheel. Started as a script by `export.toolchain.proof`.

usage: proof_child.py WHEEL_DIRECTORY SMALL_MODEL.gguf

Prints one JSON document: {"system_info": str, "cosines": {type: float}}.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

TOKENS = 96
# llama.h, enum llama_ftype.
FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_M": 15, "Q6_K": 18}


def load_bindings(directory: Path) -> Any:
    # Without running llama_cpp/__init__.py: it imports numpy and diskcache, which may not be installed yet.
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(directory / "llama_cpp")]
    sys.modules["llama_cpp"] = package
    sys.path.insert(0, str(directory))
    import llama_cpp.llama_cpp as bindings

    return bindings


def logits(bindings: Any, model_path: Path, *, repack: bool) -> list[float]:
    model_params = bindings.llama_model_default_params()
    model_params.use_extra_bufts = repack
    model = bindings.llama_model_load_from_file(str(model_path).encode(), model_params)
    if not model:
        raise RuntimeError(f"{model_path.name} could not be loaded")
    context_params = bindings.llama_context_default_params()
    context_params.n_ctx = 128
    context_params.n_threads = context_params.n_threads_batch = 2
    context = bindings.llama_init_from_model(model, context_params)
    if not context:
        raise RuntimeError("no context could be made")
    size = bindings.llama_vocab_n_tokens(bindings.llama_model_get_vocab(model))
    found: list[float] = []
    # A prompt goes through matrix times matrix, one more token through matrix times vector.
    for ids in ([(7 * i) % size for i in range(TOKENS)], [3]):
        tokens = (ctypes.c_int32 * len(ids))(*ids)  # the batch points into it
        batch = bindings.llama_batch_get_one(tokens, len(ids))
        if bindings.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        found += list(bindings.llama_get_logits_ith(context, -1)[:size])
    bindings.llama_free(context)
    bindings.llama_model_free(model)
    return found


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def main(wheel: str, model: str) -> None:
    bindings = load_bindings(Path(wheel))
    quiet = bindings.llama_log_callback(lambda _level, _text, _data: None)
    bindings.llama_log_set(quiet, None)
    bindings.llama_backend_init()
    cosines: dict[str, float] = {}
    for name, file_type in FILE_TYPES.items():
        params = bindings.llama_model_quantize_default_params()
        params.ftype = file_type
        params.nthread = 2
        quantized = Path(model).with_name(f"small-{name}.gguf")
        if bindings.llama_model_quantize(model.encode(), str(quantized).encode(), ctypes.byref(params)) != 0:
            raise RuntimeError(f"quantizing to {name} failed")
        fast, plain = (logits(bindings, quantized, repack=repack) for repack in (True, False))
        cosines[name] = cosine(fast, plain)
    system_info = bindings.llama_print_system_info().decode()
    sys.stdout.write(json.dumps({"system_info": system_info.strip(" |\n"), "cosines": cosines}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
