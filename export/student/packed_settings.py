"""The `quantization_config` of checkpoints that AutoGPTQ, AutoAWQ and GPTQModel write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from edgekit.errors import ModelFileError

__all__ = ["DynamicRules", "PackedSettings"]


@dataclass(frozen=True, slots=True)
class PackedSettings:
    """The settings, read one by one. `path` is where they are from and `hint` a next step, for errors."""

    path: Path
    values: Mapping[str, Any]
    hint: str

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def replaced(self, overrides: Mapping[str, Any]) -> PackedSettings:
        """The settings with some of them replaced."""
        return replace(self, values={**self.values, **overrides})

    def storage_format(self, keys: Iterable[str], *, default: str) -> str:
        """What the settings under `keys`, which are names of one thing, say; in lower case.

        Raises:
            ModelFileError: they differ, or one is no text.
        """
        found = {key: self.values[key] for key in keys if self.values.get(key) is not None}
        if not all(isinstance(value, str) for value in found.values()):
            self.fail(f"the format is {found!r}")
        names = {value.lower() for value in found.values()}
        if len(names) > 1:
            self.fail(f"the format is unclear: {', '.join(f'{key} is {found[key]!r}' for key in found)}")
        return names.pop() if names else default

    def group_columns(self, key: str = "group_size") -> int:
        """Columns that share a scale; -1: the whole row.

        Raises:
            ModelFileError: the setting is missing or makes no sense.
        """
        value = self.values.get(key)
        if type(value) is not int or (value != -1 and not 0 < value < 1 << 31):
            self.fail(f"{key} is {value!r}, neither a number of columns nor -1")
        return value

    def refuse_unknown_packing(self, *unread: str) -> None:
        """Check that words are of 32 bits, and that none of the settings `unread` is on.

        Raises:
            ModelFileError: they are not, or one is.
        """
        words = self.values.get("pack_dtype") or "int32"
        if words not in ("int32", "torch.int32"):
            self.fail(f"pack_dtype is {words!r}; only int32 is known")
        for key in unread:
            if self.values.get(key):
                self.fail(f"{key} is {self.values[key]!r}, which is not read")

    def fail(self, problem: str) -> NoReturn:
        """Raise what is wrong with the settings."""
        raise ModelFileError(f"{self.path}: quantization_config: {problem}", hint=self.hint)


class DynamicRules:
    """GPTQModel's `dynamic`: settings by patterns of module names, of which the first that matches holds.

    Keys are regular expressions matched from the start of the name, after "+:" or nothing; after "-:" they
    name modules that stay float. Values replace settings such as `bits` and `group_size`.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """`path`: of the config, for errors.

        Raises:
            ModelFileError: `dynamic` is no mapping of valid patterns to settings.
        """
        dynamic = settings.get("dynamic") or {}
        if not isinstance(dynamic, Mapping):
            raise ModelFileError(f"{path}: quantization_config.dynamic is {dynamic!r}, not an object")
        self._rules: list[tuple[re.Pattern[str], Mapping[str, Any] | None]] = []
        for key, overrides in dynamic.items():
            keeps_float = key.startswith("-:")
            if not isinstance(overrides, Mapping):
                raise ModelFileError(f"{path}: quantization_config.dynamic[{key!r}] is not an object")
            try:
                pattern = re.compile(key.removeprefix("-:").removeprefix("+:"))
            except re.error as error:
                raise ModelFileError(
                    f"{path}: the pattern {key!r} in dynamic is not valid: {error}"
                ) from error
            self._rules.append((pattern, None if keeps_float else overrides))

    def overrides(self) -> Iterable[Mapping[str, Any]]:
        """The settings of all rules."""
        return (overrides for _, overrides in self._rules if overrides is not None)

    def for_packed(self, module: str) -> Mapping[str, Any]:
        """Settings that replace the general ones for a module that is packed.

        Raises:
            ModelFileError: by the rules it stays float.
        """
        for pattern, overrides in self._rules:
            if pattern.match(module):
                if overrides is None:
                    raise ModelFileError(
                        f"module '{module}' is packed, but quantization_config.dynamic has it in float"
                    )
                return overrides
        return {}
