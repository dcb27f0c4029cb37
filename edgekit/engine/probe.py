"""Tries a model file in a child process first.

llama.cpp reports some damage and aborts the process on other; a wheel built for another CPU dies of an
illegal instruction. A server must not die of either without a word: the child does, and we report it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekit.engine.llama_library import require_library
from edgekit.errors import EdgekitError, EngineError, EngineStoppedError, ModelFileError
from edgekit.profiles import ServeSettings

__all__ = ["diagnose", "probe_model"]

_TIMEOUT_S = 900
"""Reading a large model from an SD card takes minutes."""
_POLL_S = 0.1
_CONTEXT_TOKENS = 256
_PROMPT_TOKENS = 48
"""Enough to take the kernels that compute several tokens at once as well as those for one."""
_ERRORS: Final = MappingProxyType({"EngineError": EngineError, "ModelFileError": ModelFileError})


def probe_model(
    path: Path, settings: ServeSettings | None = None, *, stop: threading.Event | None = None
) -> None:
    """Load a GGUF file as the server will, with a small context, and decode a prompt and a token.

    Costs the memory of a load until the child has ended, and leaves the file in the page cache.

    Args:
        path: the file, or the first of a model's shards.
        settings: threads and GPU layers to try it with; None takes the CPU.
        stop: when set, the child is killed.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        ModelFileError: llama.cpp refuses the file or aborts on it.
        EngineError: llama.cpp itself does not run on this machine.
        EngineStoppedError: `stop` was set.
    """
    require_library()
    threads, gpu_layers = (None, 0) if settings is None else (settings.threads, settings.gpu_layers)
    # -I: modules that lie in the working directory must not be imported.
    command = [
        sys.executable,
        "-I",
        "-m",
        "edgekit.engine.probe",
        str(path),
        json.dumps([threads, gpu_layers]),
    ]
    # When it aborts, ggml would attach a debugger to itself for a backtrace.
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
    )
    try:
        stdout, stderr = _outcome(child, path, stop)
    finally:
        # On an interrupt, too: it must not go on loading for nobody.
        if child.poll() is None:
            child.kill()
            child.communicate()
    if child.returncode != 0:
        raise diagnose(path, child.returncode, stdout, stderr)


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


def diagnose(path: Path, returncode: int, stdout: str, stderr: str) -> EdgekitError:
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
    if died_of == signal.SIGILL:
        return EngineError(
            "llama.cpp died of an illegal instruction: it was built for another CPU",
            hint="build it for this machine with: edgekit runtime install",
        )
    if died_of == signal.SIGKILL:
        return EngineError(
            f"{path}: the process that loaded it was killed, most likely for lack of memory",
            hint="serve a smaller model or context, or free memory",
        )
    return ModelFileError(
        f"{path}: llama.cpp died of {died_of.name} while loading it: {said}",
        hint="the file is damaged or of a kind that this version does not know; export the model again",
    )


def _main(path: str, options: str) -> int:
    from edgekit.engine.llama import LlamaRunner
    from edgekit.engine.runner import Slice

    threads, gpu_layers = json.loads(options)
    settings = ServeSettings(
        threads=threads,
        context_tokens=_CONTEXT_TOKENS,
        slots=1,
        batch_tokens=_PROMPT_TOKENS,
        ubatch_tokens=_PROMPT_TOKENS,
        gpu_layers=gpu_layers,
    )
    try:
        runner = LlamaRunner(Path(path), settings)
        text = runner.tokenize("1 + 1 = <think>", add_special=True, parse_special=True)
        prompt = (text * _PROMPT_TOKENS)[:_PROMPT_TOKENS]
        runner.run([Slice(0, 0, prompt, sample=True)])
        runner.run([Slice(0, len(prompt), prompt[:1], sample=True)])
        runner.close()
    except EdgekitError as error:
        report = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        sys.stdout.write(json.dumps(report))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2]))
