"""A graph of optimum's: GPT-2, whose KV cache is given back longer with every step."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from edgekit.engine.base import Chunk, Event, Finished, Request, Sampling
from edgekit.engine.onnx.runner import OnnxRunner
from edgekit.engine.runner import Slice
from edgekit.engine.scheduler import Scheduler
from edgekit.profiles import ServeSettings

FIXTURE = Path(__file__).resolve().parents[3] / "fixtures" / "optimum_gpt2"
ServeGraph = Callable[..., AbstractContextManager[Scheduler]]


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """The fixture as a bundle has it, with a tokenizer of one token for each of its ids."""
    for name in ("model.onnx", "config.json"):
        shutil.copy(FIXTURE / name, tmp_path)
    count = json.loads((FIXTURE / "config.json").read_text())["vocab_size"]
    model = {
        "type": "WordLevel",
        "vocab": {f"t{index} ": index for index in range(count)},
        "unk_token": "t0 ",
    }
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": model})
    )
    return tmp_path


def test_run__gives_transformers_logits_in_whatever_pieces(gpt2: Path) -> None:
    settings = ServeSettings(threads=1, context_tokens=32, slots=2, kv_cells=64, ubatch_tokens=5)
    runner = OnnxRunner(gpt2 / "model.onnx", settings)
    with np.load(FIXTURE / "reference.npz") as reference:
        expected = reference["2"]
    tokens = [(11 * index) % 64 for index in range(24)]  # as in regenerate.py
    for start, end in ((0, 3), (3, 4), (4, len(tokens))):
        (row,) = runner.run([Slice(1, start, tokens[start:end], sample=True)])
        np.testing.assert_allclose(runner._logits(row), expected[end - 1], rtol=0, atol=1e-4)
    runner.share(1, 0, 3)
    runner.forget(1, 2)
    first, second = runner.run([Slice(0, 3, tokens[3:4], sample=True), Slice(1, 2, tokens[2:4], sample=True)])
    for row in (first, second):
        np.testing.assert_allclose(runner._logits(row), expected[3], rtol=0, atol=1e-4)
    runner.close()


def test_streams_together__each_says_what_it_says_alone(gpt2: Path, serve_graph: ServeGraph) -> None:
    requests = [
        Request(tuple(range(1, 3 + index)), max_tokens=12, sampling=Sampling(seed=index))
        for index in range(3)
    ]
    with serve_graph(gpt2, context_tokens=32, kv_cells=128) as engine:
        alone = [_texts(engine, [request])[0] for request in requests]
        assert _texts(engine, requests) == alone
        assert all(alone)


def _texts(engine: Scheduler, requests: list[Request]) -> list[str]:
    texts, ended = [""] * len(requests), [threading.Event() for _ in requests]

    def listen(index: int) -> Callable[[Event], None]:
        def take(event: Event) -> None:
            if isinstance(event, Chunk):
                texts[index] += event.content
            else:
                assert isinstance(event, Finished), event
                ended[index].set()

        return take

    for index, request in enumerate(requests):
        engine.submit(request, listen(index))
    for event in ended:
        assert event.wait(60)
    return texts
