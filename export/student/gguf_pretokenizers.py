"""What the names of llama.cpp's pre-tokenizers stand for, as parts of a tokenizer.json.

Patterns are those of the tokenizer.json that each name was given for, as llama-vocab.cpp (llama.cpp
0c1e57098) quotes them; the original is in a comment there where it had to be rewritten.

For llama-bpe, qwen2, deepseek-llm and deepseek-coder, what the rebuilt files make of the 47 texts in
models/ggml-vocab-NAME.gguf.inp of llama.cpp was compared with Hugging Face's ids beside it (.out), by
tokenizers 0.22.2 on 2026-11-23: they are equal. The tests compare all names with llama.cpp itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

__all__ = ["PRETOKENIZERS", "PreTokenizer"]

Stage = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text becomes pieces. `stages` are pre-tokenizers of the tokenizers library, in order."""

    stages: tuple[Stage, ...]
    composes: bool = False
    """Whether text is brought into NFC first."""
    ignores_merges: bool = False
    """Whether a piece that is a token is taken as it is."""
    adds_bos: bool = False
    """llama.cpp's default for a file that does not say."""


def _split(pattern: str) -> Stage:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(*, splits: bool = False) -> Stage:
    """Bytes to GPT-2's printable characters; with GPT-2's pattern first, or without."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": splits}


_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|{digits}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN: Final = (_split(_WORDS.replace("{digits}", r"\p{N}")), _bytes())
_LLAMA3: Final = (_split(_WORDS.replace("{digits}", r"\p{N}{1,3}")), _bytes())
# Letters that come in two cases, beside A-Z and a-z.
_CASED: Final = (
    "\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-"
    "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-"
    "\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-"
    "\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e"
    "\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-"
    "\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-"
    "\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CHINESE: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM: Final = (
    _split("[\r\n]"),
    _split(rf"\s?[A-Za-z{_CASED}]+"),
    _split("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
    _split(r"\s+$"),
    _split(_CHINESE),
    _split(r"\p{N}+"),
    _bytes(),
)
_DEEPSEEK_CODER: Final = (
    _split("[\r\n]"),
    _split(r"\s?\p{L}+"),
    _split(r"\s?\p{P}+"),
    _split(_CHINESE),
    _split(r"\p{N}"),
    _bytes(),
)
_DEEPSEEK_V3: Final = (
    _split(r"\p{N}{1,3}"),
    _split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
    _split(
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    _bytes(),
)
_DIGITS: Final = {"type": "Digits", "individual_digits": True}

PRETOKENIZERS: Final[Mapping[str, PreTokenizer]] = MappingProxyType(
    {
        "smollm": PreTokenizer((_DIGITS, _bytes(splits=True))),
        "qwen2": PreTokenizer(_QWEN, composes=True),
        "deepseek-r1-qwen": PreTokenizer(_QWEN, composes=True),
        "llama-bpe": PreTokenizer(_LLAMA3, ignores_merges=True, adds_bos=True),
        "smaug-bpe": PreTokenizer(_LLAMA3),
        "deepseek-llm": PreTokenizer(_DEEPSEEK_LLM),
        "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER),
        "deepseek-v3": PreTokenizer(_DEEPSEEK_V3),
    }
)
"""By the name in `tokenizer.ggml.pre`."""
