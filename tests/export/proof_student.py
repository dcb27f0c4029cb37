"""Makes small students that the tokenizers library reads, too; for the tests and a fixture's maker."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any


def write_student(
    tiny: ModuleType, directory: Path, family: str = "R1-Tiny-Llama-1M", **changes: Any
) -> Path:
    """`tiny_checkpoint.write_small`, with all that a tokenizer.json must say."""
    config = tiny.make_config(
        family, **{"vocab_size": 272, "bos_token_id": 263, "eos_token_id": 260, **changes}
    )
    tokenizer = tiny.small_tokenizer()
    for token in tokenizer["added_tokens"]:
        token |= {"single_word": False, "lstrip": False, "rstrip": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer["decoder"] = byte_level
    checkpoint: Path = tiny.write_checkpoint(directory, config, tokenizer=tokenizer)
    return checkpoint
