"""What a PEFT adapter says of itself: adapter_config.json of a LoRA.

Only what changes the weights is read. A setting that changes them in a way that is not known here is an
error: a student that was merged almost right looks like one that was merged right.

Source: peft 0.21 (LoraConfig; tuners_utils.check_target_module_exists; utils.other.get_pattern_key).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from edgekit.errors import ModelFileError
from export.student.config import MAX_NUMBER, read_json

__all__ = ["CONFIG_NAME", "LoraSettings", "adapter_base", "read_lora_settings"]

CONFIG_NAME: Final = "adapter_config.json"

# Read below, or without influence on the weights that a saved adapter amounts to.
_KNOWN: Final = frozenset(
    {
        *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying"),
        *("eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights"),
        *("layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout"),
        *("megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version"),
        *("qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules"),
        *("task_type", "trainable_token_indices", "use_dora", "use_rslora", "velora_config"),
        # How training began: left in the files of adapters whose weights are plain by now.
        *("corda_config", "loftq_config", "lora_ga_config"),
    }
)
# Beginnings of init_lora_weights that leave the base as it is. The others take what the adapter starts with
# out of the base (PiSSA, OLoRA, CorDA, LoRA-GA) or replace the base by its quantized self (LoftQ).
_PLAIN_STARTS: Final = ("gaussian", "eva", "orthogonal", "mica")


_MERGE_FIRST: Final = "merge it into its base with peft (merge_and_unload), save that, and export it"


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """The part of a LoRA's config that decides which weights change, and by how much.

    Module names are those of the base: "model.layers.0.self_attn.q_proj".
    """

    path: Path
    base_model: str | None
    """As written: a name on a hub, or a directory."""
    base_class: str | None
    """Class of the model that the adapter was trained on, such as "Qwen2ForCausalLM"; often unknown."""
    default_rank: int
    default_alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilized: bool
    uses_dora: bool
    targets: tuple[str, ...] | str
    """Names or ends of names; or a regular expression for the whole name."""
    excluded: tuple[str, ...] | str
    layers: frozenset[int] | None
    """Layers that are adapted; None for all."""
    saved_modules: tuple[str, ...]
    token_indices: Mapping[str, tuple[int, ...]]
    """Name or end of the name of an embedding to the rows that were trained; "" is the input embedding."""
    keeps_tied: bool
    """Whether an adapted embedding takes a head that is tied to it along."""

    def rank(self, module: str) -> int:
        """Rank of a module's matrices: that of the first pattern that the name ends with."""
        key = self._matching(self.rank_pattern, module)
        return self.default_rank if key is None else self.rank_pattern[key]

    def scale(self, module: str) -> float:
        """What B @ A is multiplied with: alpha / rank, or alpha / sqrt(rank)."""
        key = self._matching(self.alpha_pattern, module)
        alpha = self.default_alpha if key is None else self.alpha_pattern[key]
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def is_target(self, module: str) -> bool:
        """Whether the adapter has matrices for a linear or embedding module of the base."""
        try:
            return not self._is_left_out(module) and _named(self.targets, module) and self._in_layers(module)
        except re.error as error:
            self._malformed(error)

    def _is_left_out(self, module: str) -> bool:
        saved = any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.saved_modules)
        return saved or _named(self.excluded, module)

    def _in_layers(self, module: str) -> bool:
        if self.layers is None or isinstance(self.targets, str) or module in self.targets:
            return True
        match = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        return match is not None and int(match[1]) in self.layers

    def _matching(self, patterns: Iterable[str], module: str) -> str | None:
        try:
            return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
        except re.error as error:
            self._malformed(error)

    def _malformed(self, error: re.error) -> NoReturn:
        raise ModelFileError(f"{self.path}: {error.pattern!r} is no regular expression: {error}") from error


def adapter_base(adapter: Path) -> Path | None:
    """The base that an adapter directory names, where that is a directory on this machine.

    Relative names are looked up from the working directory, as peft does, then beside the adapter.

    Raises:
        ModelFileError: adapter_config.json is missing or malformed.
    """
    name = read_json(adapter / CONFIG_NAME).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        return None
    candidates = (Path(name).expanduser(), adapter / name, adapter.parent / name)
    return next((path for path in candidates if (path / "config.json").is_file()), None)


def read_lora_settings(adapter: Path) -> LoraSettings:
    """Read and check the adapter_config.json of an adapter directory.

    Raises:
        ModelFileError: the file is missing or malformed, or the adapter is of a kind that is not known.
    """
    path = adapter / CONFIG_NAME
    raw = read_json(path)
    _refuse_unknown(path, raw)
    auto_mapping = raw.get("auto_mapping")
    base_class = auto_mapping.get("base_model_class") if isinstance(auto_mapping, dict) else None
    base_model = raw.get("base_model_name_or_path")
    layers = raw.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    if layers and (not isinstance(layers, list) or not all(type(layer) is int for layer in layers)):
        _fail(path, f"'layers_to_transform' is {layers!r}, not a list of numbers")
    return LoraSettings(
        path=path,
        base_model=base_model if isinstance(base_model, str) and base_model else None,
        base_class=base_class if isinstance(base_class, str) else None,
        default_rank=_rank(path, "r", raw.get("r")),
        default_alpha=_alpha(path, "lora_alpha", raw.get("lora_alpha")),
        rank_pattern={key: _rank(path, key, rank) for key, rank in _object(path, raw, "rank_pattern")},
        alpha_pattern={key: _alpha(path, key, alpha) for key, alpha in _object(path, raw, "alpha_pattern")},
        rank_stabilized=bool(raw.get("use_rslora")),
        uses_dora=bool(raw.get("use_dora")),
        targets=_names(path, raw, "target_modules"),
        excluded=_names(path, raw, "exclude_modules"),
        layers=frozenset(layers) if layers else None,
        saved_modules=tuple(_names(path, raw, "modules_to_save")),
        token_indices=_token_indices(path, raw.get("trainable_token_indices")),
        keeps_tied=bool(raw.get("ensure_weight_tying")),
    )


def _refuse_unknown(path: Path, raw: Mapping[str, Any]) -> None:
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise ModelFileError(f"{path}: the adapter is of kind {kind!r}; known is LORA", hint=_MERGE_FIRST)
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        _fail(path, f"the adapter is for the task {raw['task_type']!r}; known is CAUSAL_LM")
    unknown = sorted(key for key, value in raw.items() if value and key not in _KNOWN)
    if unknown:
        raise ModelFileError(
            f"{path}: '{unknown[0]}' is {json.dumps(raw[unknown[0]])}, which is not known here",
            hint=_MERGE_FIRST,
        )
    start = raw.get("init_lora_weights", True)
    if not isinstance(start, bool) and not str(start).lower().startswith(_PLAIN_STARTS):
        raise ModelFileError(
            f"{path}: the adapter was started by {start!r}, which changes the base as well",
            hint="save it with peft's path_initial_model_for_weight_conversion, or export the merged model",
        )


def _named(names: tuple[str, ...] | str, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _names(path: Path, raw: Mapping[str, Any], key: str) -> tuple[str, ...] | str:
    value = raw.get(key)
    if not value:
        return ()
    if isinstance(value, str):
        return (value,) if key == "modules_to_save" else value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        _fail(path, f"'{key}' is {value!r}, not a list of names")
    return tuple(value)


def _object(path: Path, raw: Mapping[str, Any], key: str) -> Iterable[tuple[str, Any]]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        _fail(path, f"'{key}' is {value!r}, not an object")
    return value.items()


def _rank(path: Path, key: str, value: Any) -> int:
    if type(value) is not int or not 0 < value <= MAX_NUMBER:
        _fail(path, f"the rank '{key}' is {value!r}, not a whole number above 0")
    return value


def _alpha(path: Path, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        _fail(path, f"the alpha '{key}' is {value!r}, not a number")
    return float(value)


def _token_indices(path: Path, value: Any) -> dict[str, tuple[int, ...]]:
    by_module = value if isinstance(value, dict) else {"": value} if value else {}
    for indices in by_module.values():
        if not isinstance(indices, list) or not all(type(index) is int and index >= 0 for index in indices):
            _fail(path, f"'trainable_token_indices' is {value!r}, not lists of token ids")
        if len(set(indices)) != len(indices):
            _fail(path, "'trainable_token_indices' names a token twice")
    return {module: tuple(indices) for module, indices in by_module.items()}


def _fail(path: Path, problem: str) -> NoReturn:
    raise ModelFileError(f"{path}: {problem}")
