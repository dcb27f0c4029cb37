"""Texts on which tokenizers differ: what a converted tokenizer must split exactly as the original does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

__all__ = ["CONVERSATIONS", "HARD_TEXTS", "UNNORMALIZED_TEXTS", "texts_around"]

# ruff: noqa: RUF001  (look-alike characters are the point)

HARD_TEXTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "empty": "",
        "one space": " ",
        "leading spaces": "   three spaces before",
        "trailing spaces": "two behind  ",
        "runs of spaces": "a  b   c    d     e      f        g                h",
        "tabs": "\tone\t\ttwo\t\t\tthree \t mixed\t ",
        "newlines": "a\nb\n\nc\n\n\nd\n \n  \n\t\n e\r\nf\r\n\r\ng\rh\n",
        "digits": "1 12 123 1234 12345 123456 1234567 12345678901234567890 3.14159 1,000,000 0x1F 1e-9 007",
        "other digits": "٠١٢٣٤٥ ०१२३ １２３４ ½ ² ³ Ⅷ ① 一二三 〇",
        "arithmetic": "12*(3+45)/6=102; x²+y²≤z³ ∑∫√∞≈≠ −5°C 100% €9.99 $5",
        "contractions": "I'm you're he's we'll they'd I've don't DON'T I'LL we'Re it’s 'tis ''quoted''",
        "case": "snake_case camelCase PascalCase SCREAMING_CASE kebab-case ALLCAPS iPhone15Pro eBay",
        "code": (
            'def f(x: int) -> list[int]:\n    """Doc."""\n    if x != 0 and not x <= -1:  # why\n'
            "\t\treturn [i**2 for i in range(x)]\n\nfor(;;){a&&b||!c;x->y;z::w<<=1;}/* … */ // end\n"
        ),
        "markup": '<div class="a">x &amp; y</div>\n```json\n{"k": [null, "\\u00e9"]}\n```\n$$\\frac{a}{b}$$',
        "punctuation": "...!!!???---===___***~~~###@@@ (([[{{}}]])) «a» „b“ ‘c’ … – — ¿qué? ¡sí!",
        "Chinese": "我想在苹果公司工作1314151天～首先，求出方程x²-5x+6=0的解。因此，答案是：x=2！",
        "rare characters": "𠮷野家 龘 𪚥 㐂 𡈽 鱻 〇 々 〆 ヶ ㍿ 𝔘𝔫𝔦 𝟙𝟚",
        "Japanese and Korean": "東京タワーへ行きたいです。ｶﾀｶﾅ ー 안녕하세요 세계 각각",
        "right to left": "مرحبا بالعالم، كيف حالك؟ שלום עולם \u200fRTL\u200e \u202bembedded\u202c 123",
        "scripts": "нещо на Български Ελληνικά ਪੰਜਾਬੀ ภาษาไทย កាន់តែពិសេសអាច Հայերեն ქართული አማርኛ",
        "marks that stay apart": "नमस्ते क्षत्रिय t̄ q̃ x̂ ม้ ស៊ី",
        "emoji": "😀 😀😃 🚀✅ ❤️ ❤ ☎️ 👍🏽👍🏿 🇩🇪🇫🇷🇯🇵 1️⃣2️⃣ ™ ©",
        "emoji joined": "👨‍👩‍👧‍👦 🏳️‍🌈 😶‍🌫️ 👩🏽‍💻👨‍⚕️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🧑‍🤝‍🧑",
        "odd spaces": "no\u00a0break thin\u2009 wide\u3000 zero\u200bwidth line\u2028para\u2029end\ufeff",
        "control characters": "bell\x07 escape\x1b[0m delete\x7f next\x85line",
        "NUL": "null\x00 and on",
        "case folding": "ſ 'ſ ß ẞ İ ı ǆ ﬁ ŉ K'S K'ſ",
        "repeats": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa================================................",
        "looks special": "<|im_start|> <|endoftext|> <｜User|> < think> <s> [INST] <unk> <pad> [PAD1]",
    }
)
"""Pieces by what they try. All are in Unicode's NFC: see UNNORMALIZED_TEXTS for what is not."""

UNNORMALIZED_TEXTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "combining marks": "cafe\u0301 n\u0303andu\u0301 A\u030angstro\u0308m Vie\u0323\u0302t",
        "Hangul by letters": "\u1112\u1161\u11ab\u1100\u1173\u11af",
        "compatibility ideographs": "\uf900\uf901\uf902 \u212b \u2126",
    }
)
"""Texts that NFC changes: whether a tokenizer composes them first is part of tokenizer.json."""

CONVERSATIONS: Final[Mapping[str, Sequence[Mapping[str, str]]]] = MappingProxyType(
    {
        "a question": ({"role": "user", "content": "What is 12 * 34?"},),
        "a system prompt": (
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "用中文回答：1+1等于几？ 🤔"},
        ),
        "several turns": (
            {"role": "user", "content": "Hi!\n\nWho are you?"},
            {"role": "assistant", "content": "I am an assistant."},
            {"role": "user", "content": "  Then add 1, 22 and 333.  "},
        ),
        "turns that reasoned": (
            {"role": "system", "content": "Reason first.\n"},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\n4"},
            {"role": "user", "content": "And 3+3?"},
            {"role": "assistant", "content": "6"},
            {"role": "user", "content": "```python\nprint('<think>')\n```"},
        ),
    }
)
"""Messages to render with the chat template."""


def texts_around(token: str) -> tuple[str, ...]:
    """A special token in the middle of text, twice in a row, and between spaces and newlines.

    They show whether it is found at all, and whether it takes the white space beside it.
    """
    return (token, f"a{token}b", f"a {token} b", f"{token}{token}", f"\n{token}\n\n", f"  {token}  1")
