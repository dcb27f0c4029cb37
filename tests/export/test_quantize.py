"""llama.cpp's quantizer in a child process."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgekit.engine.probe import probe_model
from edgekit.errors import ExportError, MissingExtraError
from edgekit.gguf_header import read_gguf_header
from export.quantize import quantize_gguf, require_llama_cpp
from export.student import CheckpointStudent, open_student
from export.targets.gguf import write_float_gguf


@pytest.fixture
def floats(small: Path, tmp_path: Path) -> Path:
    student = open_student(small)
    assert isinstance(student, CheckpointStudent)
    write_float_gguf(student, tmp_path / "floats.gguf")
    return tmp_path / "floats.gguf"


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0", "Q4_K_M"])
def test_quantize_gguf__result_loads_and_decodes(quantization: str, floats: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    out = tmp_path / "out.gguf"
    quantize_gguf(floats, out, quantization, threads=1, progress=lambda *step: steps.append(step))
    probe_model(out)
    total = len(read_gguf_header(out).tensors)
    assert steps == [(f"quantizing to {quantization}", done, total) for done in range(1, total + 1)]


def test_quantize_gguf__takes_no_module_of_the_working_directory(
    floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ctypes.py").write_text("raise SystemExit('ctypes.py of the working directory ran')\n")
    (tmp_path / "psutil.py").write_text("raise SystemExit('psutil.py of the working directory ran')\n")
    monkeypatch.chdir(tmp_path)
    quantize_gguf(floats, tmp_path / "out.gguf", "Q8_0", threads=1)


def test_quantize_gguf__quantized_input_is_refused_by_default(floats: Path, tmp_path: Path) -> None:
    quantize_gguf(floats, tmp_path / "once.gguf", "Q8_0", threads=1)
    with pytest.raises(
        ExportError, match=r"once\.gguf cannot be quantized to Q4_0: .*requantizing from type q8_0"
    ):
        quantize_gguf(tmp_path / "once.gguf", tmp_path / "twice.gguf", "Q4_0", threads=1)
    quantize_gguf(tmp_path / "once.gguf", tmp_path / "twice.gguf", "Q4_0", threads=1, allow_requantize=True)
    probe_model(tmp_path / "twice.gguf")


def test_quantize_gguf__what_needs_an_importance_matrix_says_so(tiny: ModuleType, tmp_path: Path) -> None:
    student = open_student(tiny.write_small(tmp_path / "Wide", hidden_size=256, intermediate_size=256))
    assert isinstance(student, CheckpointStudent)
    write_float_gguf(student, tmp_path / "floats.gguf")
    with pytest.raises(ExportError, match=r"to IQ1_S: .*requires an imatrix"):
        quantize_gguf(tmp_path / "floats.gguf", tmp_path / "out.gguf", "IQ1_S", threads=1)


def test_quantize_gguf__a_quantizer_that_dies_is_reported(floats: Path, tmp_path: Path) -> None:
    content = bytearray(floats.read_bytes())
    # No layers: llama.cpp asserts.
    key = b"qwen2.block_count"
    at = content.index(key) + len(key) + 4
    content[at : at + 4] = bytes(4)
    floats.write_bytes(content)
    with pytest.raises(ExportError, match="quantizer died of SIGABRT"):
        quantize_gguf(floats, tmp_path / "out.gguf", "Q8_0", threads=1)


def test_quantize_gguf__unwritable_target_is_reported(floats: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be quantized"):
        quantize_gguf(floats, tmp_path / "absent" / "out.gguf", "Q8_0", threads=1)


def test_require_llama_cpp__missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    with pytest.raises(MissingExtraError) as caught:
        require_llama_cpp("quantizing to Q4_0")
    assert caught.value.hint == "install it with: pip install 'edgekit[llama]'"
