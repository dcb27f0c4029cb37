"""Runs a small model with an unpacked wheel. Started as a script by `export.toolchain.proof`.

usage: proof_child.py WHEEL_DIRECTORY SMALL_MODEL.gguf

Prints one JSON document: {"system_info": str, "cosines": {name: float}, "batch_difference": float}.
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


def open_model(bindings: Any, path: Path, *, repack: bool) -> Any:
    params = bindings.llama_model_default_params()
    params.use_extra_bufts = repack
    model = bindings.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise RuntimeError(f"{path.name} could not be loaded")
    return model


def logits(
    bindings: Any, model: Any, chunks: list[int], *, flash: bool = True, beside: int = 0
) -> list[float]:
    """Of the last token of each of the last two chunks.

    Args:
        chunks: how many tokens are computed at once.
        beside: so many tokens of a second sequence are computed with each chunk, and stand before it.
    """
    params = bindings.llama_context_default_params()
    params.n_ctx = 1024
    params.n_seq_max = 2
    params.kv_unified = True
    params.flash_attn_type = int(flash)
    params.n_threads = params.n_threads_batch = 2
    context = bindings.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError("no context could be made")
    size = bindings.llama_vocab_n_tokens(bindings.llama_model_get_vocab(model))
    batch = bindings.llama_batch_init(max(chunks) + beside, 0, 1)
    done = [0, 0]
    found: list[float] = []
    for number, chunk in enumerate(chunks):
        batch.n_tokens = chunk + beside
        for i in range(chunk + beside):
            sequence = int(i < beside)
            batch.token[i] = (7 * done[sequence] + 100 * sequence) % size
            batch.pos[i] = done[sequence]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i == chunk + beside - 1
            done[sequence] += 1
        if bindings.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        if number >= len(chunks) - 2:
            found += list(bindings.llama_get_logits_ith(context, -1)[:size])
    bindings.llama_batch_free(batch)
    bindings.llama_free(context)
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
    found: dict[bool, list[float]] = {}
    for name, file_type in FILE_TYPES.items():
        params = bindings.llama_model_quantize_default_params()
        params.ftype = file_type
        params.nthread = 2
        quantized = Path(model).with_name(f"small-{name}.gguf")
        if bindings.llama_model_quantize(model.encode(), str(quantized).encode(), ctypes.byref(params)) != 0:
            raise RuntimeError(f"quantizing to {name} failed")
        for repack in (True, False):
            opened = open_model(bindings, quantized, repack=repack)
            # A prompt goes through matrix times matrix, one more token through matrix times vector.
            found[repack] = logits(bindings, opened, [TOKENS, 1])
            bindings.llama_model_free(opened)
        cosines[name] = cosine(found[True], found[False])
    # In float32 nothing is rounded that a change of the last bit could turn into a greater one.
    opened = open_model(bindings, Path(model), repack=False)
    once = logits(bindings, opened, [TOKENS, 1])
    cosines["attention"] = cosine(once, logits(bindings, opened, [TOKENS, 1], flash=False))
    singly = logits(bindings, opened, [TOKENS - 9, *[1] * 10])
    beside = logits(bindings, opened, [20, 21, 22, 23, TOKENS - 86, 1], beside=3)
    difference = max(abs(x - y) for other in (singly, beside) for x, y in zip(once, other, strict=True))
    bindings.llama_model_free(opened)
    system_info = bindings.llama_print_system_info().decode()
    document = {
        "system_info": system_info.strip(" |\n"),
        "cosines": cosines,
        "batch_difference": difference / max(abs(x) for x in once),
    }
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
