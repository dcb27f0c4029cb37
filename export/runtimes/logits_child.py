"""The child process that runs a GGUF: `python -m export.runtimes.logits_child GGUF SETTINGS`.

SETTINGS is a ServeSettings as JSON. Reads a request a line from stdin, each a JSON object:

    {"logits": [token, …]}                    answered by one frame for each OUTPUT_ROWS positions
    {"prompts": [[token, …], …], …}           answered by a line {"answers": [[token, …], …]}

A frame is a line {"rows": R, "columns": V} and R * V float32 in the machine's order of bytes. A request that
fails is answered by {"error": message, "hint": text or null, "kind": class}.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.engine.base import Sampling
from edgekit.engine.llama import LlamaRunner
from edgekit.engine.runner import CacheFullError, Slice
from edgekit.errors import EdgekitError, EngineError
from edgekit.profiles import ServeSettings

OUTPUT_ROWS: Final = 64
"""Positions whose logits are had at once: 39 MB for a vocabulary of 152,000."""


class LogitsRunner(LlamaRunner):
    """The engine that serves, shown from the inside. `settings.slots` bounds what it gives at once."""

    def logits(self, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """Logits float32 [tokens, vocabulary] after each of some tokens of sequence 0, from position `start`.
        Valid until the next call."""
        self.run([Slice(0, start + index, [token], sample=True) for index, token in enumerate(tokens)])
        columns = int(self._api.llama_vocab_n_tokens(self._vocab))
        # One row after another lies in the context's memory.
        rows = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(rows, shape=(len(tokens), columns))

    def answers(
        self, prompts: Sequence[list[int]], answer_tokens: int, sampling: dict[str, Any]
    ) -> list[list[int]]:
        """Answers to prompts that are decoded together, without the token that ends them."""
        answers: list[list[int]] = [[] for _ in prompts]
        with contextlib.ExitStack() as stack:
            samplers = []
            for index, prompt in enumerate(prompts):
                seed = (sampling.get("seed") or 0) + index
                sampler = self.open_sampler(Sampling(**{**sampling, "seed": seed}), prompt)
                stack.callback(sampler.close)
                samplers.append(sampler)
            running = []
            for index, prompt in enumerate(prompts):
                row = self._prefill(index, prompt)
                if self._take(samplers[index].sample(row), answers[index], answer_tokens):
                    running.append(index)
            while running:
                slices = []
                for index in running:
                    start = len(prompts[index]) + len(answers[index]) - 1
                    slices.append(Slice(index, start, answers[index][-1:], sample=True))
                rows = self.run(slices)
                drawn = [samplers[index].sample(row) for index, row in zip(running, rows, strict=True)]
                running = [
                    index
                    for index, token in zip(running, drawn, strict=True)
                    if self._take(token, answers[index], answer_tokens)
                ]
        self.clear()
        return answers

    def clear(self) -> None:
        """Forget all sequences."""
        self._api.llama_memory_clear(self._memory, False)

    def _prefill(self, sequence: int, prompt: list[int]) -> int:
        """The row of the logits after a prompt."""
        rows: list[int] = []
        for start in range(0, len(prompt), self.batch_tokens):
            part = prompt[start : start + self.batch_tokens]
            last = start + len(part) == len(prompt)
            rows = self.run([Slice(sequence, start, part, sample=last)])
        return rows[-1]

    def _take(self, token: int, answer: list[int], most: int) -> bool:
        """Append a token; whether the answer goes on."""
        if self.ends_generation(token):
            return False
        answer.append(token)
        return len(answer) < most


def main(arguments: list[str]) -> int:
    # What C prints must not get between the frames.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        try:
            settings = ServeSettings.model_validate_json(arguments[1])
            runner = LogitsRunner(Path(arguments[0]), settings)
        except EdgekitError as error:
            _say_error(out, error)
            return 1
        _say(out, {"ready": True})
        for line in sys.stdin:
            try:
                _answer(runner, json.loads(line), out)
            except CacheFullError:
                runner.clear()
                _say_error(out, EngineError(f"the tokens do not fit a KV cache of {runner.kv_cells}"))
            except EdgekitError as error:
                runner.clear()
                _say_error(out, error)
        runner.close()
    return 0


def _answer(runner: LogitsRunner, request: dict[str, Any], out: IO[bytes]) -> None:
    if "prompts" in request:
        found = runner.answers(request["prompts"], request["answer_tokens"], request["sampling"])
        _say(out, {"answers": found})
        return
    tokens = request["logits"]
    for start in range(0, len(tokens), OUTPUT_ROWS):
        rows = runner.logits(tokens[start : start + OUTPUT_ROWS], start)
        _say(out, {"rows": rows.shape[0], "columns": rows.shape[1]}, np.ascontiguousarray(rows))
    runner.clear()


def _say(out: IO[bytes], header: dict[str, Any], values: NDArray[np.float32] | None = None) -> None:
    out.write(json.dumps(header).encode() + b"\n")
    if values is not None:
        out.write(values.data.cast("B"))
    out.flush()


def _say_error(out: IO[bytes], error: EdgekitError) -> None:
    _say(out, {"error": error.message, "hint": error.hint, "kind": type(error).__name__})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
