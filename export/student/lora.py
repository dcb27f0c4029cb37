"""A student that is a base checkpoint with a PEFT LoRA adapter beside it, not merged yet.

The adapter is merged in float32 when weights are read; weights that it leaves alone stay as they are, a
quantized base's integers included. What is merged is the model that was trained:

- A head that is tied to the embedding becomes a weight of its own where only one of the two was adapted.
  (peft's merge_and_unload lets an embedding's update leak into the head, which no training saw.)
- Where both were adapted and came out the same, they stay tied.
- Trained tokens change both, as in peft.
- fan_in_fan_out says nothing here: peft ignores it for linear layers, and the families have no others.

Source: peft 0.21, utils/save_and_load.py for the names in adapter_model.safetensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekit.bundle.manifest import SourceRecord
from edgekit.errors import ModelFileError
from export.progress import Progress, silent
from export.student.base import StudentTensor, first_non_finite
from export.student.config import CheckpointConfig
from export.student.lora_config import CONFIG_NAME, LoraSettings, read_lora_settings
from export.student.lora_modules import EMBEDDING, HEAD, AdapterParts, adapt_module
from export.student.lora_weights import same_values
from export.student.provenance import checkpoint_name, files_sha256, find_license_text, find_revision
from export.student.safetensors_dir import TOKENIZER_FILES, CheckpointStudent
from export.student.safetensors_file import StoredTensor, open_safetensors
from export.student.tokenizer import CheckpointTokenizer, read_tokenizer

__all__ = ["AdaptedStudent", "open_with_adapter"]

WEIGHTS_NAME: Final = "adapter_model.safetensors"


class AdaptedStudent(CheckpointStudent):
    """A base with an adapter. `path` is the adapter's directory, `base` the student beneath.

    Its tokenizer is the adapter's where tokenizer.json lies beside it, the base's otherwise. `stored_as` and
    the facts' quantization are the base's; facts.weight_bytes counts the files of both.
    """

    def __init__(
        self,
        base: CheckpointStudent,
        settings: LoraSettings,
        config: CheckpointConfig,
        tensors: Mapping[str, StudentTensor],
    ) -> None:
        super().__init__(settings.path.parent, config, tensors, quantization=base._quantization)
        self.base = base
        self.stored_as = base.stored_as
        self._base_model = settings.base_model
        has_tokenizer = (self.path / "tokenizer.json").is_file()
        self._tokenizer_path = self.path if has_tokenizer else base.path

    def base_note(self) -> str | None:
        """What a user should know where the adapter names another base than it is merged into.

        Not an error: shapes agree, and directories and repackaged bases have names of their own.
        """
        named = (self._base_model or "").rstrip("/").rpartition("/")[2].lower()
        own = checkpoint_name(self.base.path)
        if not named or named in own.lower() or own.lower() in named:
            return None
        return f"the adapter names {self._base_model} as its base; it was merged into {own}"

    @cached_property
    def tokenizer(self) -> CheckpointTokenizer:
        return read_tokenizer(self._tokenizer_path, vocabulary=self.config.vocabulary, config=self.config.raw)

    def tokenizer_files(self) -> dict[str, bytes]:
        paths = [self._tokenizer_path / name for name in TOKENIZER_FILES]
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def license_text(self) -> str | None:
        return find_license_text(self.path) or self.base.license_text()

    def source(self, progress: Progress = silent) -> SourceRecord:
        """Names both. The checksum is of two lines as `sha256sum` prints them: "base", "adapter"."""
        own = [self.path / CONFIG_NAME, self.path / WEIGHTS_NAME]
        if self._tokenizer_path == self.path:
            own += [self.path / name for name in TOKENIZER_FILES if (self.path / name).is_file()]
        base, adapter = self.base.source(progress), files_sha256(own, progress)
        lines = f"{base.sha256}  base\n{adapter}  adapter\n"
        return SourceRecord(
            name=f"{base.name} + {checkpoint_name(self.path)}",
            kind="safetensors",
            sha256=hashlib.sha256(lines.encode()).hexdigest(),
            revision=find_revision(self.path / CONFIG_NAME),
            license=self.facts.license,
            base_model=self.facts.base_model,
        )

    def _card_facts(self) -> tuple[str | None, str | None]:
        license_name, _ = super()._card_facts()
        base_license, _ = self.base._card_facts()
        name = self._base_model
        if name is None or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists():
            # A path on the machine that trained it: its last part says more than nothing.
            name = Path(name).name if name else checkpoint_name(self.base.path)
        return license_name or base_license, name


def open_with_adapter(base: CheckpointStudent, adapter: Path) -> AdaptedStudent:
    """Put a LoRA adapter directory on top of a base checkpoint.

    Checks all that can be checked without reading the base's weights, except for embeddings that may still
    be tied to the head.

    Raises:
        ModelFileError: a file is missing, damaged or of an unknown kind, the config and the tensors
            disagree, or the adapter is for another base.
    """
    settings = read_lora_settings(adapter)
    weights = {tensor.name: tensor for tensor in base.tensors()}
    _check_class(settings, base)
    tied = f"{HEAD}.weight" not in weights
    if tied:
        weights[f"{HEAD}.weight"] = dataclasses.replace(weights[f"{EMBEDDING}.weight"], name=f"{HEAD}.weight")
    parts = _read_parts(adapter, settings, base)
    _check_targets(settings, weights, parts)
    config = _resized(settings, base.config, parts)
    hint = _other_base(settings, base)
    for module, of_module in parts.items():
        for weight in adapt_module(settings, module, of_module, weights, hint=hint):
            weights[weight.name] = weight
    if tied and _is_still_tied(weights, parts):
        del weights[f"{HEAD}.weight"]
    elif tied:
        raw = MappingProxyType({**config.raw, "tie_word_embeddings": False})
        config = dataclasses.replace(config, tied_embeddings=False, raw=raw)
    return AdaptedStudent(base, settings, config, weights)


def _read_parts(adapter: Path, settings: LoraSettings, base: CheckpointStudent) -> dict[str, AdapterParts]:
    """What the adapter holds, by the module of the base that it belongs to."""
    path = adapter / WEIGHTS_NAME
    if not path.is_file():
        problem = f"{adapter}: {WEIGHTS_NAME} is missing"
        if (adapter / "adapter_model.bin").is_file():
            raise ModelFileError(
                f"{problem}; adapter_model.bin is there, which can run code when it is read",
                hint="load the adapter with peft and save it again: save_pretrained writes safetensors",
            )
        raise ModelFileError(problem, hint=f"it belongs beside {CONFIG_NAME}; download it as well")
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in open_safetensors(path).tensors.items():
        module, part = _split(path, name)
        if part in parts.setdefault(module, {}):
            raise ModelFileError(f"{path}: tensor '{name}' is there under two names")
        parts[module][part] = _checked(path, tensor)
    if not parts:
        raise ModelFileError(f"{path}: there are no tensors in it")
    return {module: AdapterParts(path, found) for module, found in parts.items()}


# Endings of tensor names, and what they are called here. Older releases wrote some of them differently.
_ENDINGS: Final = MappingProxyType(
    {
        "lora_A.weight": "lora_A",
        "lora_B.weight": "lora_B",
        "lora_B.bias": "lora_B.bias",
        "lora_embedding_A": "lora_embedding_A",
        "lora_embedding_B": "lora_embedding_B",
        "lora_magnitude_vector": "magnitude",
        "lora_magnitude_vector.weight": "magnitude",
        "token_adapter.trainable_tokens_delta": "tokens",
        "base_layer.weight": "weight",
        "base_layer.bias": "bias",
        "modules_to_save.weight": "weight",
        "modules_to_save.bias": "bias",
        "weight": "weight",
        "bias": "bias",
    }
)


def _split(path: Path, name: str) -> tuple[str, str]:
    rest = name.removeprefix("base_model.model.")
    for ending, part in _ENDINGS.items():
        if rest != name and rest.endswith(f".{ending}"):
            return rest.removesuffix(f".{ending}"), part
    raise ModelFileError(f"{path}: tensor '{name}' has no name that a LoRA's tensors have")


def _checked(path: Path, tensor: StoredTensor) -> StoredTensor:
    if tensor.storage not in ("F32", "F16", "BF16"):
        raise ModelFileError(f"{path}: tensor '{tensor.name}' is of type {tensor.storage}, not of floats")
    if first_non_finite(tensor.read()) is not None:
        raise ModelFileError(
            f"{path}: tensor '{tensor.name}' holds NaN or infinity",
            hint="the adapter is damaged, or its training diverged: get another one",
        )
    return tensor


def _check_class(settings: LoraSettings, base: CheckpointStudent) -> None:
    classes = base.config.raw.get("architectures") or [None]
    trained = settings.base_class
    if trained is not None and trained.endswith("ForCausalLM") and trained != classes[0]:
        raise ModelFileError(
            f"{settings.path}: the adapter was trained on a {trained}; {base.path} is a {classes[0]}",
            hint=_other_base(settings, base),
        )


def _other_base(settings: LoraSettings, base: CheckpointStudent) -> str:
    named = f"its base is {settings.base_model}" if settings.base_model else "it does not name its base"
    return f"the adapter may be for another base than {base.path}: {named}"


def _check_targets(
    settings: LoraSettings, weights: Mapping[str, StudentTensor], parts: Mapping[str, AdapterParts]
) -> None:
    """What the config says is adapted must be what the file has: half an adapter still merges."""
    path = settings.path.parent / WEIGHTS_NAME
    modules = {name.removesuffix(".weight") for name, tensor in weights.items() if len(tensor.shape) == 2}
    for module in sorted(modules):
        has_matrices = module in parts and parts[module].has_matrices
        # A tied head's matrices are the embedding's: target_modules does not name them.
        along = settings.keeps_tied and module == HEAD
        if settings.is_target(module) and not has_matrices:
            raise ModelFileError(
                f"{path}: there are no lora_A and lora_B for '{module}', which target_modules names"
            )
        if has_matrices and not settings.is_target(module) and not along:
            raise ModelFileError(f"{path}: there is a LoRA for '{module}'; target_modules does not name it")
    for module in settings.saved_modules:
        if not any(re.match(rf"(^|.*\.){re.escape(module)}($|\..*)", found) for found in parts):
            raise ModelFileError(f"{path}: '{module}' of modules_to_save is missing")
    for module in settings.token_indices:
        known = [found for found in parts if found.endswith(module or EMBEDDING)]
        if not any("tokens" in parts[found].tensors for found in known):
            raise ModelFileError(f"{path}: the trained tokens of '{module or EMBEDDING}' are missing")


def _resized(
    settings: LoraSettings, config: CheckpointConfig, parts: Mapping[str, AdapterParts]
) -> CheckpointConfig:
    """The config for the adapter's vocabulary, where tokens were added before the training."""
    whole = [parts[module].tensors.get("weight") for module in (EMBEDDING, HEAD) if module in parts]
    rows = {tensor.shape[0] for tensor in whole if tensor is not None and tensor.shape}
    if rows <= {config.vocabulary}:
        return config
    if len(rows) > 1 or len(whole) < 2 or None in whole:
        raise ModelFileError(
            f"{settings.path.parent / WEIGHTS_NAME}: embeddings of {sorted(rows)} tokens for a base of "
            f"{config.vocabulary}; embedding and head do not agree"
        )
    vocabulary = rows.pop()
    raw = MappingProxyType({**config.raw, "vocab_size": vocabulary})
    return dataclasses.replace(config, vocabulary=vocabulary, raw=raw)


def _is_still_tied(weights: Mapping[str, StudentTensor], parts: Mapping[str, AdapterParts]) -> bool:
    """Whether a head that was tied to the embedding is the same as the embedding after the adaption."""
    if HEAD not in parts:
        return EMBEDDING not in parts or set(parts[EMBEDDING].tensors) == {"tokens"}
    return EMBEDDING in parts and same_values(weights[f"{EMBEDDING}.weight"], weights[f"{HEAD}.weight"])
