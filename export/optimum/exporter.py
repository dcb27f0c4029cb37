"""`--exporter optimum`: decoder architectures that edgekit's own graphs do not cover.

optimum-onnx pins a transformers older than the rest of the world uses, and brings torch: it runs in a
virtual environment of its own, as a process. Its float32 graph must give transformers' logits before its
weights are made int4 by onnxruntime's quantizer.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from edgekit.errors import ExportError, ModelFileError, ToolchainError
from export.optimum.genai import write_genai_config
from export.progress import Progress, silent
from export.runtimes.optimum_decoder import OptimumDecoder
from export.student.config import read_json
from export.tool_venv import ensure_tool_venv

__all__ = [
    "ARCHITECTURES",
    "REQUIREMENTS",
    "ensure_optimum",
    "export_with_optimum",
    "refuse_unsupported",
]

REQUIREMENTS: Final = (
    "accelerate==1.15.0",
    "onnx==1.23.2",
    "onnx-ir==1.1.0",
    "onnxruntime==1.32.0",
    "optimum==2.1.0",
    "optimum-onnx==0.1.0",
    "torch==2.13.0",
    "transformers==4.57.6",
)
"""What the worker runs with: 1.1 GB where torch is built for the CPU, as `pip config` can arrange."""

ARCHITECTURES: Final = (
    *("arcee", "bloom", "codegen", "cohere", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3"),
    *("gemma3_text", "glm", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite"),
    *("helium", "internlm2", "llama", "mistral", "mpt", "nemotron", "olmo", "olmo2", "opt", "phi", "phi3"),
    *("qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm"),
)
"""`model_type` of what optimum-onnx 0.1.0 exports for text generation, encoder-decoders left out."""

GREATEST_DIFFERENCE: Final = 1e-3
"""Of any float32 logit between the graph and transformers."""

_WORKER: Final = Path(__file__).with_name("worker.py")
_IMPORTS: Final = ("optimum.exporters.onnx", "onnxruntime.quantization.matmul_nbits_quantizer")
_COPIED: Final = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json")
_COPIED_TOO: Final = ("added_tokens.json", "vocab.json", "merges.txt", "chat_template.*")
_SEQUENCE_TOKENS: Final = (1, 5, 24)
_BLOCK_COLUMNS: Final = 32


def export_with_optimum(
    model: Path,
    directory: Path,
    *,
    precision: Literal["fp32", "int4"] = "int4",
    python: Path | None = None,
    cache: Path | None = None,
    offline: bool = False,
    keep_float32: Path | None = None,
    progress: Progress = silent,
) -> bool:
    """Write model.onnx with its data, tokenizer files and genai_config.json into `directory`.

    Needs memory for the model in float32 twice, and as much room in `directory` for a while.

    Args:
        model: a checkpoint directory of float weights.
        directory: is made where it is missing; on an error, parts may be left in it.
        python: an interpreter that has REQUIREMENTS; None makes an environment in `cache` on first use.
        cache: None takes the user's.
        offline: do not fetch packages.
        keep_float32: an empty directory on the same file system, where the checked float32 graph of an int4
            export is left.

    Returns:
        Whether onnxruntime-genai can run it: whether there is a genai_config.json.

    Raises:
        ExportError: the architecture is not supported, optimum failed, or its graph computes something else.
        ModelFileError: config.json is missing or malformed.
        ToolchainError: the environment is missing and cannot be made.
        MissingExtraError: onnxruntime is not installed here.
    """
    config = read_json(model / "config.json")
    refuse_unsupported(model, config)
    if python is None:
        python = ensure_optimum(cache=cache, offline=offline, progress=progress)
    directory.mkdir(parents=True, exist_ok=True)
    sequences = _sequences(config)
    with tempfile.TemporaryDirectory(prefix=".optimum-", dir=directory) as temporary:
        floats = Path(temporary)
        ask_worker(
            python,
            {"command": "export", "model": str(model), "directory": temporary, "sequences": sequences},
            progress,
        )
        with np.load(floats / "reference.npz") as reference:
            _check(model, floats, sequences, reference)
        if precision == "int4":
            quantized = ask_worker(
                python,
                {
                    "command": "quantize",
                    "source": temporary,
                    "directory": str(directory),
                    "block_columns": _BLOCK_COLUMNS,
                    "symmetric": True,
                    "vocabulary": _vocabulary(config),
                },
                progress,
            )
            if not quantized:
                raise ExportError(f"{model}: onnxruntime's quantizer found no weight in optimum's graph")
        kept = directory if precision == "fp32" else keep_float32
        if kept is not None:
            for path in floats.glob("model.onnx*"):
                path.rename(kept / path.name)
    for path in directory.glob("model.onnx*"):
        path.chmod(0o644)  # onnx keeps its data to the user that wrote it
    for pattern in (*_COPIED, *_COPIED_TOO):
        for path in model.glob(pattern):
            shutil.copyfile(path, directory / path.name)
    decoder = OptimumDecoder(directory)
    if not np.isfinite(decoder.logits(sequences[-1])).all():
        raise ExportError(f"{model}: the {precision} graph gives NaN or infinity")
    return write_genai_config(directory, decoder, config)


def ensure_optimum(*, cache: Path | None = None, offline: bool = False, progress: Progress = silent) -> Path:
    """The interpreter of optimum's environment; see `ensure_tool_venv`."""
    return ensure_tool_venv(
        "optimum", REQUIREMENTS, imports=_IMPORTS, cache=cache, offline=offline, progress=progress
    )


def ask_worker(python: Path, request: Mapping[str, Any], progress: Progress = silent) -> Any:
    """Let the worker process do one thing; returns its result.

    Raises:
        ExportError: it failed or died.
        ToolchainError: `python` is none, or lacks packages.
    """
    # Nothing may be fetched from a hub in the middle of an export, and nothing told to one.
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory(prefix="edgekit-optimum-") as temporary:
        path, log = Path(temporary, "request.json"), Path(temporary, "stderr")
        path.write_text(json.dumps(request), encoding="utf-8")
        with log.open("wb") as errors:
            try:
                child = subprocess.Popen(
                    [str(python), "-I", str(_WORKER), str(path)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=environ,
                )
            except OSError as error:
                raise ToolchainError(f"{python} does not run: {error.strerror or error}") from error
            answer = _follow(child, progress)
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if "result" in answer:
        return answer["result"]
    reason = answer.get("error") or _ending(child.returncode, said)
    if reason.startswith(("ModuleNotFoundError", "ImportError")):
        raise ToolchainError(
            f"{python} cannot run optimum: {reason}",
            hint=f"delete {python.parent.parent} to have it made again, or install into it: "
            + " ".join(REQUIREMENTS),
        )
    raise ExportError(f"optimum failed: {reason}", hint="its last words: " + " / ".join(said[-3:]))


def _follow(child: subprocess.Popen[str], progress: Progress) -> dict[str, Any]:
    assert child.stdout is not None
    answer: dict[str, Any] = {}
    step: str | None = None
    try:
        for line in child.stdout:
            answer = json.loads(line)
            if step is not None:
                progress(step, 1, 1)
            step = answer.get("step")
            if step is not None:
                progress(step, 0, 1)
        child.wait()
    finally:
        # On an interrupt it must not go on writing into a directory that is being removed.
        child.kill()
        child.wait()
        child.stdout.close()
    return answer


def _ending(status: int, said: list[str]) -> str:
    if status == -signal.SIGKILL:
        return "it was killed, most likely for lack of memory"
    last = said[-1] if said else "it said nothing"
    return f"it died of {signal.Signals(-status).name}: {last}" if status < 0 else last


def refuse_unsupported(model: Path, config: Mapping[str, Any]) -> None:
    """Raise ExportError for an architecture that is not in the list, or a quantized checkpoint."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ModelFileError(f"{model / 'config.json'}: no 'model_type'")
    if kind not in ARCHITECTURES:
        raise ExportError(
            f"{model}: optimum-onnx 0.1.0 does not export the architecture {kind!r}",
            hint=f"it exports {', '.join(ARCHITECTURES)}",
        )
    method = config.get("quantization_config")
    if method is not None and kind != "gpt_oss":
        name = method.get("quant_method") if isinstance(method, dict) else method
        raise ExportError(
            f"{model}: the checkpoint is quantized ({name}), and optimum exports float checkpoints",
            hint="export the checkpoint that it was made from; edgekit's own exporter reads quantized ones "
            "of the Llama, Qwen2 and Qwen3 families",
        )


def _sequences(config: Mapping[str, Any]) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(0, _vocabulary(config), length).tolist() for length in _SEQUENCE_TOKENS]


def _vocabulary(config: Mapping[str, Any]) -> int:
    text = config.get("text_config") or config
    vocabulary = text.get("vocab_size") if isinstance(text, dict) else None
    if not isinstance(vocabulary, int) or vocabulary < 2:
        raise ModelFileError(f"config.json has no usable 'vocab_size': {vocabulary!r}")
    return vocabulary


def _check(model: Path, floats: Path, sequences: list[list[int]], reference: Any) -> None:
    """The float32 graph against transformers: a prompt at once, and token by token with the cache."""
    decoder = OptimumDecoder(floats)
    for index, tokens in enumerate(sequences):
        wanted = reference[str(index)]
        if not np.isfinite(wanted).all():
            raise ModelFileError(f"{model}: the checkpoint computes NaN or infinity: its weights are damaged")
        for how, step in (("at once", None), ("with its cache", 3)):
            got = decoder.logits(tokens, step_tokens=step)
            difference = float(np.abs(got - wanted).max()) if got.shape == wanted.shape else float("inf")
            if not difference <= GREATEST_DIFFERENCE:
                raise ExportError(
                    f"{model}: optimum's graph computes something else than transformers: the logits of "
                    f"{len(tokens)} tokens {how} differ by {difference:.2g} (allowed: {GREATEST_DIFFERENCE})",
                    hint="optimum-onnx 0.1.0 does not export this architecture faithfully: export a GGUF",
                )
