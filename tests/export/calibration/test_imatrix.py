"""The importance matrix against llama-imatrix, and its file."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgekit.errors import ModelFileError
from export.calibration.imatrix import Imatrix, compute_imatrix, read_imatrix, write_imatrix
from export.quantize import quantize_gguf
from export.student.gguf_names import gguf_name
from export.student.safetensors_dir import CheckpointStudent, open_checkpoint
from export.targets.gguf import write_float_gguf

GOLDEN = Path(__file__).parents[2] / "fixtures" / "imatrix"


@pytest.fixture
def small_student(small: Path) -> CheckpointStudent:
    return open_checkpoint(small)


@pytest.fixture
def imatrix(small_student: CheckpointStudent) -> Imatrix:
    return compute_imatrix(small_student, [[1, 2, 3, 4], [9, 8, 7]], datasets=["some.txt"])


def test_compute_imatrix__is_what_llama_imatrix_finds(tiny: ModuleType, tmp_path: Path) -> None:
    student = open_checkpoint(tiny.write_small(tmp_path / "student", "R1-Tiny-Llama-1M"))
    tokens = json.loads((GOLDEN / "tokens.json").read_text())
    found = compute_imatrix(student, tokens).importance()
    theirs = read_imatrix(GOLDEN / "llama-imatrix.gguf")
    expected = theirs.importance()
    assert theirs.tokens == sum(map(len, tokens))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.abs(found[name] - values).sum() < 0.002 * values.sum(), name


def test_compute_imatrix__knows_every_matrix_of_the_layers_and_no_other(
    small_student: CheckpointStudent, imatrix: Imatrix
) -> None:
    shapes = {gguf_name(tensor.name): tensor.shape for tensor in small_student.tensors()}
    wanted = {name for name, shape in shapes.items() if name.startswith("blk.") and len(shape) == 2}
    assert imatrix.sums.keys() == wanted
    assert set(imatrix.counts.values()) == {7}
    imatrix.check(shapes, "here")
    head = compute_imatrix(small_student, [[1, 2]], include_head=True)
    assert head.sums.keys() - wanted == {"token_embd.weight"}


def test_importance__is_the_mean_square_of_all_inputs(
    small_student: CheckpointStudent, imatrix: Imatrix
) -> None:
    """Whether sequences were computed together or one by one."""
    one, other = (compute_imatrix(small_student, [tokens]) for tokens in ([1, 2, 3, 4], [9, 8, 7]))
    name = "blk.1.ffn_down.weight"
    mean = (one.importance()[name] * 4 + other.importance()[name] * 3) / 7
    np.testing.assert_allclose(imatrix.importance()[name], mean, rtol=1e-4)


def test_write_imatrix__reads_back(imatrix: Imatrix, tmp_path: Path) -> None:
    write_imatrix(imatrix, tmp_path / "i.gguf")
    back = read_imatrix(tmp_path / "i.gguf")
    assert back.counts == imatrix.counts
    assert (back.datasets, back.chunk_tokens) == (("some.txt",), 4)
    for name, values in imatrix.sums.items():
        np.testing.assert_array_equal(back.sums[name], values)


def test_importance__changes_what_the_quantizer_writes(
    small_student: CheckpointStudent, imatrix: Imatrix, tmp_path: Path
) -> None:
    floats = tmp_path / "f.gguf"
    write_float_gguf(small_student, floats)
    quantize_gguf(floats, tmp_path / "plain.gguf", "Q4_0")
    quantize_gguf(floats, tmp_path / "weighed.gguf", "Q4_0", importance=imatrix.importance())
    assert (tmp_path / "plain.gguf").read_bytes() != (tmp_path / "weighed.gguf").read_bytes()


def test_read_imatrix__a_file_of_the_old_format_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(b"\x02\x00\x00\x00" * 8)
    with pytest.raises(ModelFileError, match="not a GGUF") as caught:
        read_imatrix(tmp_path / "old.dat")
    assert caught.value.hint is not None and "llama-imatrix" in caught.value.hint


def test_read_imatrix__a_model_is_refused(small_student: CheckpointStudent, tmp_path: Path) -> None:
    write_float_gguf(small_student, tmp_path / "model.gguf")
    with pytest.raises(ModelFileError, match="of type 'model', not an importance matrix"):
        read_imatrix(tmp_path / "model.gguf")


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_read_imatrix__sums_that_are_none_are_refused(imatrix: Imatrix, tmp_path: Path, value: float) -> None:
    imatrix.sums["blk.0.attn_q.weight"][5] = value
    write_imatrix(imatrix, tmp_path / "i.gguf")
    with pytest.raises(ModelFileError, match=r"blk\.0\.attn_q\.weight"):
        read_imatrix(tmp_path / "i.gguf")


def test_read_imatrix__a_truncated_file_is_refused(imatrix: Imatrix, tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    write_imatrix(imatrix, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ModelFileError):
        read_imatrix(path)


def test_check__another_model_is_refused(imatrix: Imatrix) -> None:
    with pytest.raises(
        ModelFileError, match=r"64 columns for tensor 'blk\.0\.attn_q\.weight', which has 128"
    ):
        imatrix.check({"blk.0.attn_q.weight": (64, 128)}, "their.gguf")
    with pytest.raises(ModelFileError, match=r"nothing on tensor 'blk\.9\.attn_q\.weight'"):
        imatrix.check({"blk.9.attn_q.weight": (64, 64)}, "their.gguf")


def test_importance__a_matrix_that_no_token_reached_counts_evenly(imatrix: Imatrix) -> None:
    silent = Imatrix({"a": np.zeros(3, np.float32)}, {"a": 0}, (), 1)
    np.testing.assert_array_equal(silent.importance()["a"], [1, 1, 1])
