"""Which module of a compressed-tensors checkpoint is quantized how.

Source: compressed-tensors 0.20, quantization/quant_args.py, quant_scheme.py, quant_config.py and
utils/match.py. What is said there of activations and KV caches does not change the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from edgekit.errors import ModelFileError

__all__ = ["CompressedTensorsConfig", "WeightScheme", "read_settings"]

FORMATS: Final = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
STRATEGIES: Final = ("tensor", "channel", "group", "block")
INTEGER_BITS: Final = (2, 3, 4, 8)

_HINT: Final = "give the checkpoint that it was quantized from, or a GGUF of it"


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How the weights of the modules that match `targets` are quantized."""

    targets: tuple[str, ...]
    packed: bool | None
    """Whether integers are packed in int32 words; None: as they are stored."""
    kind: Literal["int", "float"]
    bits: int
    symmetric: bool
    strategy: str
    group_columns: int | None
    """Columns that share a scale, with the strategy "group"."""
    block_structure: tuple[int, int] | None
    """Rows and columns that share a scale, with the strategy "block"."""
    activation_order: bool
    """Whether a stored index says which group a column belongs to."""
    name: str
    """As vLLM calls it: "W4A16", "W8A8", "FP8"."""

    def block(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a matrix of `shape` that share a scale."""
        if self.strategy == "tensor":
            return shape
        if self.strategy == "group" and self.group_columns is not None:
            return 1, self.group_columns
        if self.block_structure is not None:
            return self.block_structure
        return 1, shape[1]


@dataclass(frozen=True, slots=True)
class CompressedTensorsConfig:
    """The parts of a quantization_config that concern the weights."""

    schemes: tuple[WeightScheme, ...]
    ignore: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of several schemes, the one with the fewest bits."""
        return min(self.schemes, key=lambda scheme: scheme.bits).name

    def scheme(self, module: str) -> WeightScheme | None:
        """How a linear or embedding of this name is quantized; None: not at all.

        As the library orders them: a module's own name comes before patterns, patterns before class names.
        """
        if any(_names(pattern, module) or _is_class(pattern, module) for pattern in self.ignore):
            return None
        by_target = {target: scheme for scheme in self.schemes for target in scheme.targets}
        targets = sorted(by_target, key=lambda target: (target.startswith("re:"), target))
        for matches in (_names, _is_class):
            for target in targets:
                if matches(target, module):
                    return by_target[target]
        return None


def read_settings(path: Path, settings: Mapping[str, Any]) -> CompressedTensorsConfig:
    """Read and check the `quantization_config` of the config.json at `path`.

    Raises:
        ModelFileError: a setting is malformed, or of a kind that is not known.
    """
    sparsity = settings.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        kind = sparsity.get("format") if isinstance(sparsity, dict) else sparsity
        _fail(path, f"the weights are sparse ({kind}); only dense ones are known")
    transforms = settings.get("transform_config") or {}
    if not isinstance(transforms, dict) or transforms.get("config_groups"):
        _fail(path, "the weights are rotated (transform_config); this is not known")
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        _fail(path, "no 'config_groups'")
    schemes = [_scheme(path, name, group, settings.get("format")) for name, group in groups.items()]
    quantized = tuple(scheme for scheme in schemes if scheme is not None)
    if not quantized:
        _fail(path, "no group of 'config_groups' quantizes weights")
    return CompressedTensorsConfig(quantized, _patterns(path, "ignore", settings.get("ignore") or []))


def _scheme(path: Path, name: str, group: Any, default_format: Any) -> WeightScheme | None:
    if not isinstance(group, dict):
        _fail(path, f"group '{name}' is {group!r}, not an object")
    weights = group.get("weights")
    if weights is None:
        return None
    where = f"group '{name}'"
    if not isinstance(weights, dict):
        _fail(path, f"{where}: 'weights' is {weights!r}, not an object")
    form = group.get("format") or default_format
    if form not in (*FORMATS, "mixed-precision") or (form == "mixed-precision" and group.get("format")):
        _fail(path, f"{where}: the format is {form!r}; known are {', '.join(FORMATS)}", hint=_HINT)
    kind, bits = str(weights.get("type", "int")).lower(), weights.get("num_bits", 8)
    if not (kind == "int" and bits in INTEGER_BITS) and not (kind == "float" and bits == 8):
        known = f"{', '.join(map(str, INTEGER_BITS))} bit of type int and 8 bit of type float"
        _fail(path, f"{where}: weights of {bits!r} bit of type {kind!r}; known are {known}", hint=_HINT)
    if form == "pack-quantized" and kind == "float":
        _fail(path, f"{where}: floats cannot be {form}")
    strategy, columns = _strategy(path, where, weights)
    return WeightScheme(
        targets=_patterns(path, f"{where}: 'targets'", group.get("targets")),
        packed=None if form == "mixed-precision" else form == "pack-quantized",
        kind="int" if kind == "int" else "float",
        bits=bits,
        symmetric=weights.get("symmetric", True) is not False,
        strategy=strategy,
        group_columns=columns,
        block_structure=_block_structure(path, where, weights) if strategy == "block" else None,
        activation_order=weights.get("actorder") in ("group", "dynamic", True),
        name=_name(kind, bits, group.get("input_activations")),
    )


def _strategy(path: Path, where: str, weights: Mapping[str, Any]) -> tuple[str, int | None]:
    """The strategy, and the columns of a group where it has groups."""
    columns, strategy = weights.get("group_size"), weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if columns is None else "channel" if columns == -1 else "group"
    strategy = str(strategy).lower()
    if strategy not in STRATEGIES:
        _fail(path, f"{where}: the strategy is {strategy!r}; known are {', '.join(STRATEGIES)}", hint=_HINT)
    if strategy != "group":
        return strategy, None
    if type(columns) is not int or columns <= 0:
        _fail(path, f"{where}: group_size is {columns!r}")
    return strategy, columns


def _block_structure(path: Path, where: str, weights: Mapping[str, Any]) -> tuple[int, int]:
    block = weights.get("block_structure")
    if isinstance(block, str):  # early releases wrote "128x128"
        block = [int(length) if length.isdecimal() else length for length in block.split("x")]
    if (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(length) is int and length > 0 for length in block)
    ):
        _fail(path, f"{where}: block_structure is {block!r}, not rows and columns")
    return block[0], block[1]


def _name(kind: str, bits: int, activations: Any) -> str:
    if kind == "float":
        return "FP8"
    if not isinstance(activations, dict):
        return f"W{bits}A16"
    act_bits = activations.get("num_bits", 8)
    return f"W{bits}A{'FP' if activations.get('type') == 'float' else ''}{act_bits}"


def _patterns(path: Path, what: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        _fail(path, f"{what} is {value!r}, not a list of names")
    for pattern in value:
        if not pattern.startswith("re:"):
            continue
        try:
            re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            _fail(path, f"{what}: {pattern!r} is no regular expression: {error}")
    return tuple(value)


def _names(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return pattern == module


def _is_class(pattern: str, module: str) -> bool:
    own = "Embedding" if module.endswith("embed_tokens") else "Linear"
    return pattern in (own, "Module")


def _fail(path: Path, problem: str, *, hint: str | None = None) -> NoReturn:
    raise ModelFileError(f"{path}: {problem}", hint=hint)
