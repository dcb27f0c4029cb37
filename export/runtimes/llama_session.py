"""A GGUF in llama.cpp in a child process, as the server runs it: logits for every position, and answers.

A child, because llama.cpp aborts on some damage, and because its memory goes with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError, ExportError, ModelFileError
from edgekit.profiles import KvType, ServeSettings
from export.quantize import require_llama_cpp

__all__ = ["LlamaSession"]

_ERRORS: Final = MappingProxyType({"ModelFileError": ModelFileError, "EngineError": EngineError})
_SLOTS: Final = 64
"""Also the positions whose logits are had at once; see logits_child.OUTPUT_ROWS."""


class LlamaSession:
    """A GGUF file that is loaded in a child process. Use it in a `with` statement.

    Args:
        path: the file; of a sharded model the first one.
        cells: tokens that its KV cache holds: the longest sequence, or all that are decoded together.
        kv_type: type of the KV cache, as the device will have it.
        flash_attention: None: llama.cpp decides.
        threads: None takes the physical cores.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        ModelFileError: llama.cpp refuses the file.
        EngineError: llama.cpp does not run on this machine.
        ExportError: llama.cpp died on the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        cells: int = 1024,
        kv_type: KvType = "f16",
        flash_attention: bool | None = None,
        threads: int | None = None,
    ) -> None:
        require_llama_cpp("running a GGUF model")
        settings = ServeSettings(
            threads=threads,
            context_tokens=cells,
            slots=_SLOTS,
            kv_type=kv_type,
            flash_attention=flash_attention,
        )
        self._path = path
        self._said: list[str] = []
        self._child = subprocess.Popen(
            # -P: without it `-m` looks for modules in the working directory first.
            [
                sys.executable,
                "-P",
                "-m",
                "export.runtimes.logits_child",
                str(path),
                settings.model_dump_json(),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # When it aborts, ggml would attach a debugger to itself for a backtrace.
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
        assert self._child.stderr is not None
        self._listener = threading.Thread(target=_collect, args=(self._child.stderr, self._said), daemon=True)
        self._listener.start()
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LlamaSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def logits(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Logits after each token of a sequence from position 0: chunks of up to 64 positions, float32
        [positions, vocabulary]. To be read to the end before anything else is asked."""
        self._ask({"logits": [int(token) for token in tokens]})
        seen = 0
        while seen < len(tokens):
            header = self._read_header()
            rows = np.empty((header["rows"], header["columns"]), np.float32)
            self._read_into(rows)
            seen += len(rows)
            yield rows

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        answer_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """Answers to prompts that are decoded together; the token that ends an answer is left out.

        Args:
            prompts: at most 64; with their answers they must fit the KV cache.
            temperature: 0 takes the likeliest token. Otherwise prompt i draws with seed + i: the same answers
                on the same machine, build and number of threads.
        """
        sampling = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "seed": seed,
        }
        plain = [[int(token) for token in prompt] for prompt in prompts]
        self._ask({"prompts": plain, "answer_tokens": answer_tokens, "sampling": sampling})
        answers: list[list[int]] = self._read_header()["answers"]
        return answers

    def close(self) -> None:
        """End the child."""
        # On an interrupt, too: it must not go on computing for nobody.
        self._child.kill()
        self._child.wait()
        self._listener.join()
        for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def _read_header(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line.endswith(b"\n"):
            self._fail()
        header: dict[str, Any] = json.loads(line)
        if "error" in header:
            raise _ERRORS.get(header["kind"], ExportError)(header["error"], hint=header["hint"])
        return header

    def _read_into(self, values: NDArray[np.float32]) -> None:
        assert self._child.stdout is not None
        room = values.data.cast("B")
        read = 0
        while read < len(room):
            count = self._child.stdout.readinto(room[read:])  # type: ignore[attr-defined]
            if not count:
                self._fail()
            read += count

    def _fail(self) -> NoReturn:
        status = self._child.wait()
        self._listener.join()
        last = self._said[-1] if self._said else "it said nothing"
        died = f"of {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        raise ExportError(
            f"{self._path.name}: llama.cpp died {died} while running it: {last}",
            hint="memory ran out, or llama.cpp was built for another CPU: edgekit runtime install builds it "
            "for this one",
        )


def _collect(stream: IO[bytes], lines: list[str]) -> None:
    for line in stream:
        if text := line.decode("utf-8", "replace").strip():
            lines.append(text)
            del lines[:-40]
