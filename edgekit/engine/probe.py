"""Tries a model file in a child process first.

llama.cpp reports some damage and aborts the process on other; a wheel built for another CPU dies of an
illegal instruction. A server must not die of either without a word: the child does, and we report it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from edgekit.errors import EdgekitError, EngineError, ModelFileError

__all__ = ["diagnose", "probe_model"]

_TIMEOUT_S = 900
"""Reading a large model from an SD card takes minutes."""
_CONTEXT_TOKENS = 256


def probe_model(path: Path) -> None:
    """Load a GGUF file and decode one token, in a child process.

    The weights are mapped and not rearranged, so this costs little memory, and leaves the file in the page
    cache for the real load.

    Raises:
        ModelFileError: llama.cpp refuses the file or aborts on it.
        EngineError: llama.cpp itself does not run on this machine.
    """
    command = [sys.executable, "-m", "edgekit.engine.probe", str(path)]
    # When it aborts, ggml would attach a debugger to itself for a backtrace.
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise ModelFileError(
            f"{path}: not loaded after {_TIMEOUT_S} s", hint="check the disk, and the memory that is free"
        ) from error
    if child.returncode != 0:
        raise diagnose(path, child.returncode, child.stderr)


def diagnose(path: Path, returncode: int, stderr: str) -> EdgekitError:
    """What a failed child's exit status (negative: the signal it died of) and last words mean."""
    lines = stderr.strip().splitlines()
    said = lines[-1] if lines else "it said nothing"
    if returncode > 0:
        # The child has named the file.
        return ModelFileError(said, hint="verify the bundle; if it is whole, export the model again")
    died_of = signal.Signals(-returncode)
    if died_of == signal.SIGILL:
        return EngineError(
            "llama.cpp died of an illegal instruction: it was built for another CPU",
            hint="build it for this machine with: edgekit runtime build --profile host",
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


def _main(path: str) -> int:
    from edgekit.engine.llama import LlamaRunner
    from edgekit.profiles import ServeSettings

    settings = ServeSettings(
        threads=None, context_tokens=_CONTEXT_TOKENS, slots=1, batch_tokens=64, ubatch_tokens=64
    )
    try:
        runner = LlamaRunner(Path(path), settings, repack=False)
        runner.tokenize("1 + 1 = <think>", add_special=True, parse_special=True)
        runner.close()
    except EdgekitError as error:
        sys.stderr.write(error.message + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
