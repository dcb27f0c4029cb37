"""Quantizes a GGUF file with llama.cpp's own quantizer, in a child process."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ExportError, MissingExtraError
from edgekit.gguf_header.tensor_types import FILE_TYPES
from export.progress import Progress, silent

__all__ = ["quantize_gguf", "require_llama_cpp"]


def require_llama_cpp(feature: str) -> None:
    """Raise MissingExtraError if llama-cpp-python is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingExtraError("llama-cpp-python", extra="llama", feature=feature)


def quantize_gguf(
    source: Path,
    target: Path,
    quantization: str,
    *,
    threads: int | None = None,
    allow_requantize: bool = False,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    progress: Progress = silent,
) -> None:
    """Write `target` with the tensors of `source` quantized.

    Args:
        quantization: file type as llama-quantize spells it, e.g. "Q4_K_M".
        threads: None takes all processors that this process may use.
        allow_requantize: take quantized tensors as input, too.
        importance: by tensor name, float32 [columns]: the mean square of what the matrix is multiplied with.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        ExportError: the quantizer refused or died. A part of the file may be left at `target`.
    """
    require_llama_cpp(f"quantizing to {quantization}")
    numbers = {name: number for number, name in FILE_TYPES.items()}
    arguments = [
        str(source),
        str(target),
        str(numbers[quantization]),
        str(threads or len(os.sched_getaffinity(0))),
        str(int(allow_requantize)),
    ]
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        if importance:
            arguments.append(str(Path(scratch) / "importance.npz"))
            with Path(arguments[-1]).open("wb") as file:
                np.savez(file, **dict(importance))  # type: ignore[arg-type]
        status, said = _run(arguments, f"quantizing to {quantization}", progress)
    if status:
        raise ExportError(f"{source.name} cannot be quantized to {quantization}: {_reason(status, said)}")


def _run(arguments: list[str], what: str, progress: Progress) -> tuple[int, list[str]]:
    """The worker's exit status, and what it said."""
    child = subprocess.Popen(
        # -P: without it `-m` looks for modules in the working directory first.
        [sys.executable, "-P", "-m", "export.quantize_worker", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert child.stdout is not None and child.stderr is not None
    said: list[str] = []
    listener = threading.Thread(target=_collect, args=(child.stderr, said), daemon=True)
    listener.start()
    try:
        for line in child.stdout:
            done, _, total = line.partition(" ")
            if done.isdigit():
                progress(what, int(done), int(total))
        status = child.wait()
    finally:
        # On an interrupt the child must not go on writing into a directory that is being removed.
        child.kill()
        child.wait()
        listener.join()
        child.stdout.close()
        child.stderr.close()
    return status, said


def _collect(stream: IO[str], lines: list[str]) -> None:
    lines.extend(line.strip() for line in stream if line.strip())


def _reason(status: int, said: list[str]) -> str:
    last = said[-1] if said else "it said nothing"
    if status < 0:
        return f"llama.cpp's quantizer died of {signal.Signals(-status).name}: {last}"
    return last
