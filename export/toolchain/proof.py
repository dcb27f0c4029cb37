"""Proves a new wheel: a child process runs a small model with it, on the code for this CPU and without.

The model has random weights and is quantized by the library itself to each of several types. The plain
code paths give the reference for those that repack weights (AMX, AVX512-VNNI): a build that crashes, or
computes something else, is not used.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.errors import MissingExtraError, ToolchainError
from export.toolchain.elf import needed_libraries

__all__ = ["Proof", "prove_wheel", "require_proof", "write_small_model"]

_CHILD: Final = Path(__file__).with_name("proof_child.py")
_TIMEOUT_S: Final = 120
# On two paths the activations are rounded differently: 0.999 and more was seen, and unrelated logits give 0.
_LEAST_COSINE: Final = 0.98
# With edgekit's attention 4e-6 was seen, with llama.cpp's, which sums in half floats, 8e-4.
_MOST_BATCH_DIFFERENCE: Final = 0.01
_FOREIGN: Final = ("libgomp", "libomp", "libcurl", "libssl", "libcrypto")


@dataclass(frozen=True, slots=True)
class Proof:
    """What a wheel showed."""

    system_info: str
    """llama_print_system_info()."""
    least_cosine: float
    """Of the logits on this CPU's paths against the plain ones, over all types tried, and of flash attention
    against attention by matrix products."""
    batch_difference: float
    """How far logits move with the number of tokens computed at once, and with another sequence among them:
    the greatest change, as a part of the greatest logit."""
    libraries: tuple[str, ...]
    """Shared libraries that it needs from the system."""


def require_proof() -> None:
    """Check that `prove_wheel` can run, before minutes are spent on a build.

    Raises:
        MissingExtraError: gguf is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", extra="export", feature="building llama.cpp")


def prove_wheel(wheel: Path) -> Proof:
    """Run a small model with a wheel that need not be installed.

    Raises:
        ToolchainError: it crashed, gave wrong numbers, or needs a library that minimal systems lack.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-proof-") as temporary:
        directory = Path(temporary)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(directory / "wheel")
        libraries = _system_libraries(directory / "wheel" / "llama_cpp" / "lib")
        write_small_model(directory / "small.gguf")
        found = _run(directory)
    cosine = min(found["cosines"].values())
    if not cosine >= _LEAST_COSINE:
        raise ToolchainError(f"{wheel.name} computes wrong numbers: logits agree by {found['cosines']}")
    difference = found["batch_difference"]
    if not difference <= _MOST_BATCH_DIFFERENCE:
        raise ToolchainError(
            f"{wheel.name} computes wrong numbers: logits change by {difference:.2g} of the greatest with "
            "what is computed at once"
        )
    return Proof(found["system_info"], cosine, difference, libraries)


def _run(directory: Path) -> dict[str, Any]:
    command = [sys.executable, "-I", str(_CHILD), str(directory / "wheel"), str(directory / "small.gguf")]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ToolchainError(f"a small model gave no answer in {_TIMEOUT_S} s") from None
    if child.returncode != 0:
        how = _ending(child.returncode)
        last = child.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ToolchainError(f"running a small model ended with {how}: {last[0]}")
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def _system_libraries(directory: Path) -> tuple[str, ...]:
    own = {path.name for path in directory.iterdir()}
    needed = {name for path in directory.glob("*.so*") for name in needed_libraries(path)} - own
    foreign = sorted(name for name in needed if name.startswith(_FOREIGN))
    if foreign:
        raise ToolchainError(f"the build needs {', '.join(foreign)}, which minimal systems lack")
    return tuple(sorted(needed))


def write_small_model(path: Path) -> None:
    """A llama model of 0.9 million random float32 weights, without a tokenizer: 2 layers, 256 wide."""
    import gguf
    import numpy as np

    embedding, feed_forward, heads, kv_heads, vocabulary, layers = 256, 512, 4, 2, 256, 2
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(embedding)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(embedding // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    kv = embedding // heads * kv_heads
    matrices = {"token_embd": (vocabulary, embedding), "output": (vocabulary, embedding)}
    norms = ["output_norm"]
    for layer in range(layers):
        block = f"blk.{layer}"
        norms += [f"{block}.attn_norm", f"{block}.ffn_norm"]
        matrices |= {
            f"{block}.attn_q": (embedding, embedding),
            f"{block}.attn_k": (kv, embedding),
            f"{block}.attn_v": (kv, embedding),
            f"{block}.attn_output": (embedding, embedding),
            f"{block}.ffn_gate": (feed_forward, embedding),
            f"{block}.ffn_up": (feed_forward, embedding),
            f"{block}.ffn_down": (embedding, feed_forward),
        }
    for name, shape in matrices.items():
        weights = random.normal(scale=shape[1] ** -0.5, size=shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", weights)
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(embedding, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
