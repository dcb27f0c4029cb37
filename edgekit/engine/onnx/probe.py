"""Tries an ONNX bundle in a child process first.

onnxruntime reports most damage, but not all native code that a graph may call for checks what it is given: a
server must not die of a file without a word.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekit.engine.onnx.runner import OnnxRunner
from edgekit.engine.runner import Slice
from edgekit.errors import EdgekitError, EngineError, EngineStoppedError, ModelFileError
from edgekit.profiles import ServeSettings

__all__ = ["probe_graph"]

_TIMEOUT_S = 900
"""Reading a large model from an SD card takes minutes."""
_POLL_S = 0.1
_CONTEXT_TOKENS = 128
_PROMPT_TOKENS = 24
_ERRORS: Final = MappingProxyType({"EngineError": EngineError, "ModelFileError": ModelFileError})


def probe_graph(path: Path, *, threads: int | None, stop: threading.Event | None = None) -> None:
    """Load a graph as the server will, with a small context, and compute a prompt and a batch of two.

    Costs the memory of a load until the child has ended, and leaves the files in the page cache.

    Args:
        path: the graph.
        threads: that compute; None: one for each core.
        stop: when set, the child is killed.

    Raises:
        ModelFileError: a file is damaged, or onnxruntime refuses the graph or dies of it.
        EngineError: the graph cannot be run on this machine, e.g. for lack of memory.
        EngineStoppedError: `stop` was set.
    """
    # -I: modules that lie in the working directory must not be imported.
    child = subprocess.Popen(
        [sys.executable, "-I", "-m", "edgekit.engine.onnx.probe", str(path), json.dumps(threads)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        stdout, stderr = _outcome(child, path, stop)
    finally:
        # On an interrupt, too: it must not go on loading for nobody.
        if child.poll() is None:
            child.kill()
            child.communicate()
    if child.returncode != 0:
        raise _diagnose(path, child.returncode, stdout, stderr)


def _outcome(child: subprocess.Popen[str], path: Path, stop: threading.Event | None) -> tuple[str, str]:
    """What the child printed, once it has ended."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            return child.communicate(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            if stop is not None and stop.is_set():
                raise EngineStoppedError(f"{path}: loading was stopped") from None
            if time.monotonic() >= deadline:
                raise ModelFileError(
                    f"{path}: not loaded after {_TIMEOUT_S} s",
                    hint="check the disk, and the memory that is free",
                ) from None


def _diagnose(path: Path, returncode: int, stdout: str, stderr: str) -> EdgekitError:
    """What a failed child's exit status (negative: the signal it died of) and last words mean."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    # What the child prints may come from the file: it must not steer a terminal or a log.
    said = "".join(c if c.isprintable() else "?" for c in lines[-1]) if lines else "it said nothing"
    if returncode > 0:
        try:
            report = json.loads(stdout)
            return _ERRORS[report["kind"]](report["message"], hint=report["hint"])
        except (ValueError, KeyError, TypeError):
            return EngineError(f"{path}: trying the model failed: {said}")
    died_of = signal.Signals(-returncode)
    if died_of == signal.SIGKILL:
        return EngineError(
            f"{path}: the process that loaded it was killed, most likely for lack of memory",
            hint="serve a smaller model or context, or free memory",
        )
    return ModelFileError(
        f"{path}: onnxruntime died of {died_of.name} while loading it: {said}",
        hint="the graph is damaged or of a kind that this version does not know; export the model again",
    )


def _main(path: str, threads: str) -> int:
    settings = ServeSettings(
        threads=json.loads(threads),
        context_tokens=_CONTEXT_TOKENS,
        slots=2,
        kv_cells=2 * _CONTEXT_TOKENS,
        batch_tokens=_PROMPT_TOKENS,
        ubatch_tokens=_PROMPT_TOKENS,
    )
    try:
        runner = OnnxRunner(Path(path), settings)
        text = runner.tokenize("1 + 1 = <think>", add_special=True, parse_special=True)
        length = min(_PROMPT_TOKENS, runner.context_tokens - 1)
        prompt = (text * length)[:length]
        for sequence in range(2):
            runner.run([Slice(sequence, 0, prompt, sample=True)])
        runner.run([Slice(sequence, len(prompt), prompt[:1], sample=True) for sequence in range(2)])
        runner.close()
    except EdgekitError as error:
        report = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        sys.stdout.write(json.dumps(report))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2]))
