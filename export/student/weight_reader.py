"""How a checkpoint's quantized weights are read: one reader per method, chosen by `quantization_config`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, cast

from edgekit.errors import ModelFileError
from export.student.base import StudentTensor
from export.student.config import read_json
from export.student.safetensors_file import StoredTensor

__all__ = ["FLOAT_STORAGE", "Parts", "WeightReader", "float_tensor", "open_weight_reader"]

Parts = Mapping[str, StoredTensor]
"""What is stored of one module, by its name after the module's: "qweight", "weight", "weight.absmax"."""

FLOAT_STORAGE: Final = ("BF16", "F16", "F32")


class WeightReader(Protocol):
    """Reads the matrices that one quantization method packs."""

    @property
    def quantization(self) -> str:
        """What the student's facts call it, such as "GPTQ"."""

    @property
    def ignored_suffixes(self) -> tuple[str, ...]:
        """Endings of stored tensors that are no weights, such as the scales of an FP8 KV cache."""

    def weight(self, module: str, shape: tuple[int, ...], parts: Parts) -> StudentTensor | None:
        """The tensor `<module>.weight` of `shape` [N, K]; None where the method leaves this module alone.

        Opens nothing but small parts (zeros, group indices); the codes are read when asked for. All of
        `parts` are the method's: an unknown one is an error.

        Raises:
            ModelFileError: a part is missing, of a wrong type or shape, or of an unknown kind.
        """


# By quant_method; the module has `open_reader(config_path, quantization_config) -> WeightReader`.
_MODULES: Final = MappingProxyType(
    {
        "gptq": "export.student.gptq",
        "awq": "export.student.awq",
        "compressed-tensors": "export.student.compressed_tensors",
        "fp8": "export.student.fp8",
        "bitsandbytes": "export.student.bitsandbytes",
    }
)


def open_weight_reader(path: Path, config: Mapping[str, Any]) -> WeightReader | None:
    """The reader for a checkpoint's `config` (config.json, at `path`); None for float weights.

    Raises:
        ModelFileError: the method, or a setting of it, is not known.
    """
    settings = config.get("quantization_config")
    beside = path.with_name("quantize_config.json")
    if not settings and beside.is_file():
        # AutoGPTQ before transformers knew of it; AWQ has its `zero_point` there, GPTQ none.
        settings, path = read_json(beside), beside
        settings = {"quant_method": "awq" if "zero_point" in settings else "gptq", **settings}
    if not settings:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or method not in _MODULES:
        raise ModelFileError(
            f"{path}: the checkpoint is quantized ({method or 'in an unknown way'}); "
            f"known are {', '.join(_MODULES)}",
            hint="give the checkpoint that it was quantized from, or a GGUF of it",
        )
    module = import_module(_MODULES[method])
    open_reader = cast(Callable[[Path, Mapping[str, Any]], WeightReader], module.open_reader)
    return open_reader(path, settings)


def float_tensor(stored: StoredTensor, name: str | None = None) -> StudentTensor:
    """A stored tensor of floats as a weight of the student.

    Raises:
        ModelFileError: it is of another type.
    """
    if stored.storage not in FLOAT_STORAGE:
        raise ModelFileError(
            f"tensor '{stored.name}' is of type {stored.storage}; known are {', '.join(FLOAT_STORAGE)}"
        )
    return StudentTensor(
        name=name or stored.name,
        shape=stored.shape,
        storage=stored.storage,
        size_bytes=stored.size_bytes,
        _read=lambda rows: stored.read()[rows],
    )
