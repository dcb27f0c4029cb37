"""The runner alone: what it computes, against the exporter's own decoder and against itself."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.engine.base import Constraint, Sampling
from edgekit.engine.onnx.runner import OnnxRunner
from edgekit.engine.runner import Slice
from edgekit.errors import ConstraintError, EngineError, ModelFileError
from edgekit.profiles import ServeSettings
from export.runtimes.onnx_session import OnnxDecoder

WriteTiny = Callable[..., Path]
FAMILIES = ("R1-Tiny-Llama-1M", "R1-Tiny-Qwen2", "R1-0528-Tiny-Qwen3")
ROOT = Path(__file__).resolve().parents[4]


def open_runner(directory: Path, **settings: Any) -> OnnxRunner:
    chosen = {"threads": 2, "context_tokens": 256, "slots": 4, "kv_cells": 1024, **settings}
    return OnnxRunner(directory / "model.onnx", ServeSettings(**chosen))


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(256), k=length)


def logits(runner: OnnxRunner, *slices: Slice) -> list[Any]:
    """Copies of the rows that a step gives."""
    return [runner._logits(row).copy() for row in runner.run(slices)]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_run__computes_what_the_exporters_decoder_does(
    family: str, precision: str, write_tiny: WriteTiny
) -> None:
    directory = write_tiny(family, precision=precision)
    runner, decoder = open_runner(directory), OnnxDecoder(directory, all_positions=False)
    prompts = [prompt_of(length, length) for length in (40, 1, 17, 130)]
    found = [logits(runner, Slice(index, 0, prompt, sample=True))[0] for index, prompt in enumerate(prompts)]
    for _ in range(6):
        expected = []
        for prompt in prompts:
            expected.append(decoder.logits(prompt)[-1])
            prompt.append(int(expected[-1].argmax()))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 if precision == "fp32" else 0.05)
        found = logits(
            runner,
            *(
                Slice(index, len(prompt) - 1, prompt[-1:], sample=True)
                for index, prompt in enumerate(prompts)
            ),
        )
    runner.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_run__prompt_comes_out_the_same_in_whatever_pieces(family: str, write_tiny: WriteTiny) -> None:
    runner, prompt = open_runner(write_tiny(family)), prompt_of(131)
    (whole,) = logits(runner, Slice(0, 0, prompt, sample=True))
    for seed in range(12):
        world = random.Random(seed)
        sizes = [world.choice((1, 1, 2, 3, 16, 17, 33)) for _ in range(131)]
        ends = [end for end in accumulate(sizes) if end < 131]
        runner.forget(0, 0)
        for start, end in zip([0, *ends], [*ends, 131], strict=True):
            found = logits(runner, Slice(0, start, prompt[start:end], sample=end == 131))
        assert np.array_equal(found[0], whole), (seed, ends)
    runner.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_run__row_of_a_batch_comes_out_as_it_does_alone(family: str, write_tiny: WriteTiny) -> None:
    runner = open_runner(write_tiny(family), slots=8)
    prompts = [prompt_of(5 + 9 * index, index) for index in range(8)]

    def start() -> None:
        for index, prompt in enumerate(prompts):
            runner.forget(index, 0)
            runner.run([Slice(index, 0, prompt, sample=True)])

    start()
    steps = [Slice(index, len(prompt), [index], sample=True) for index, prompt in enumerate(prompts)]
    alone = [logits(runner, step)[0] for step in steps]
    for count in range(2, 9):
        start()
        order = random.Random(count).sample(range(8), count)
        together = logits(runner, *(steps[index] for index in order))
        for index, found in zip(order, together, strict=True):
            assert np.array_equal(found, alone[index])
    runner.close()


def test_run__decodes_and_prefills_in_one_step(tiny_onnx: Path) -> None:
    runner, first, second = open_runner(tiny_onnx), prompt_of(20, 1), prompt_of(30, 2)
    runner.run([Slice(0, 0, first, sample=True)])
    (expected_second,) = logits(runner, Slice(1, 0, second, sample=True))
    (expected_first,) = logits(runner, Slice(0, 20, [7], sample=True))
    runner.forget(0, 20)
    runner.forget(1, 0)
    runner.run([Slice(0, 19, first[19:], sample=True), Slice(1, 0, second[:11], sample=False)])
    found = logits(runner, Slice(0, 20, [7], sample=True), Slice(1, 11, second[11:], sample=True))
    assert np.array_equal(found[0], expected_first)
    assert np.array_equal(found[1], expected_second)
    runner.close()


def test_share__copy_goes_on_like_its_source_and_apart_from_it(tiny_onnx: Path) -> None:
    runner, prompt = open_runner(tiny_onnx), prompt_of(50)
    runner.run([Slice(0, 0, prompt, sample=True)])
    expected = logits(runner, Slice(0, 50, [1, 2, 3], sample=True))[0]
    assert runner.share(0, 5, 50) is False
    runner.forget(0, 0)
    runner.run([Slice(0, 0, prompt_of(60, 9), sample=True)])
    assert np.array_equal(logits(runner, Slice(5, 50, [1, 2, 3], sample=True))[0], expected)
    runner.close()


def test_forget__what_is_left_is_as_if_the_rest_had_never_been(tiny_onnx: Path) -> None:
    runner, prompt = open_runner(tiny_onnx), prompt_of(90)
    (expected,) = logits(runner, Slice(0, 0, [*prompt[:20], 5, 6], sample=True))
    runner.forget(0, 0)
    runner.run([Slice(0, 0, prompt, sample=True)])
    runner.forget(0, 20)
    assert np.array_equal(logits(runner, Slice(0, 20, [5, 6], sample=True))[0], expected)
    runner.close()


def test_runner__full_length_of_the_context_can_be_used(tiny_onnx: Path) -> None:
    runner = open_runner(tiny_onnx, context_tokens=4096, kv_cells=8192)
    assert runner.context_tokens == 256
    prompt = prompt_of(255)
    runner.run([Slice(0, 0, prompt, sample=True), Slice(1, 0, prompt, sample=True)])
    first, second = logits(runner, Slice(0, 255, [1], sample=True), Slice(1, 255, [1], sample=True))
    assert np.array_equal(first, second)
    runner.close()


def test_runner__says_what_it_has(tiny_onnx: Path) -> None:
    runner = open_runner(tiny_onnx, slots=3, kv_cells=700, batch_tokens=64, ubatch_tokens=32)
    assert (runner.kv_cells, runner.streams, runner.batch_tokens) == (700, 3, 64)
    assert runner.sequences > runner.streams
    assert runner.vocabulary == 272
    assert runner.keeps_prefixes
    assert runner.ends_generation(260)
    assert not runner.ends_generation(5)
    assert runner.text.eos == "<｜end▁of▁sentence｜>"
    assert "<｜Assistant｜>" in (runner.text.chat_template or "")
    runner.close()


def test_open_matcher__answers_have_the_form_asked_for(tiny_onnx: Path) -> None:
    runner = open_runner(tiny_onnx)
    sampler = runner.open_sampler(Sampling(seed=1), [])
    sampler.constrain(runner.open_matcher(Constraint("regex", "[ab]{5}")))
    tokens, text, start = [0, 1], b"", 0
    while True:
        (row,) = runner.run([Slice(0, start, tokens, sample=True)])
        start += len(tokens)
        tokens = [sampler.sample(row)]
        if runner.ends_generation(tokens[0]):
            break
        text += runner.piece(tokens[0])
    assert len(text) == 5
    assert set(text) <= set(b"ab")
    with pytest.raises(ConstraintError):
        runner.open_matcher(Constraint("regex", "("))
    runner.close()


def test_embedding__is_refused_with_a_way_out(tiny_onnx: Path) -> None:
    runner = open_runner(tiny_onnx)
    (row,) = runner.run([Slice(0, 0, [1, 2, 3], sample=False, embed=True)])
    with pytest.raises(EngineError, match="cannot embed") as caught:
        runner.embedding(row)
    assert "gguf" in str(caught.value.hint)
    runner.close()


def test_run__output_that_is_not_a_number_is_an_error(tiny_onnx: Path) -> None:
    runner = open_runner(tiny_onnx)
    runner.run([Slice(0, 0, [1, 2], sample=True)])
    next(iter(runner._decoder._memory.buffers.values()))[:] = np.nan  # type: ignore[union-attr]
    with pytest.raises(EngineError, match="not a number"):
        runner.run([Slice(0, 2, [3], sample=True)])
    runner.close()


def test_runner__more_streams_than_batch_tokens_are_refused(tiny_onnx: Path) -> None:
    with pytest.raises(EngineError, match="do not fit"):
        open_runner(tiny_onnx, slots=65, batch_tokens=64, ubatch_tokens=64)


def test_runner__graph_of_another_kind_is_refused(tmp_path: Path, tiny_onnx: Path) -> None:
    import onnx
    from onnx import helper

    for file in tiny_onnx.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    value = helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, [1, "n"])
    other = helper.make_tensor_value_info("logits", onnx.TensorProto.INT64, [1, "n"])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input_ids"], ["logits"])], "g", [value], [other]
    )
    opset = helper.make_opsetid("", 21)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="KV cache"):
        open_runner(tmp_path)


def test_import__says_what_to_install_where_the_packages_are_missing() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import edgekit.engine\n"
        "from edgekit.errors import MissingExtraError\n"
        "try:\n    import edgekit.engine.onnx.runner\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    # -S: without site-packages.
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert "running an ONNX model needs numpy" in told.stdout
    assert "pip install 'edgekit[onnx]'" in told.stdout


def test_runner__onnxruntime_reports_nothing_and_leaves_no_device_id(tiny_onnx: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom edgekit.engine.onnx.runner import OnnxRunner\n"
        "from edgekit.profiles import ServeSettings\n"
        "OnnxRunner(Path(sys.argv[1]), ServeSettings(threads=1, context_tokens=64, slots=1)).close()"
    )
    environ = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, str(tiny_onnx / "model.onnx")]
    subprocess.run(command, env=environ, check=True)
    assert list(tmp_path.iterdir()) == []
