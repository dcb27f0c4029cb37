"""What is asked: prompts that are all different, of a wanted length, with a beginning that they share."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Protocol

from edgekit.errors import EdgekitError, UsageError
from edgekit.http_load.target import Target

__all__ = ["Numbered", "Prompts", "RandomWords", "words_of_length"]

_TEXT: Final = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business issue "
    "side kind head house service friend father power hour game line end member law car city community "
    "name president team minute idea body information back parent face others level office door health "
    "person art war history party result change morning reason research girl guy moment air teacher force"
)
"""Common words: in most vocabularies each is a token, with the space before it."""
_WORDS: Final = tuple(_TEXT.split())

_PROBE_WORDS: Final = (64, 256)
_CLOSING: Final = " Write a long story with these words."


class Prompts(Protocol):
    """Gives each request its prompt."""

    def prompt(self, number: int) -> str:
        """The prompt of request `number`: the same number, the same prompt."""


@dataclass(frozen=True, slots=True)
class Numbered:
    """A sentence with one `%d` for the request's number; without, all prompts are the same."""

    text: str = "Write a long story about the number %d."

    def prompt(self, number: int) -> str:
        return self.text % number if "%d" in self.text else self.text


@dataclass(frozen=True, slots=True)
class RandomWords:
    """Words drawn at random: the first `shared` ones are the same in all prompts, the others never."""

    count: int
    shared: int = 0
    seed: int = 0

    def prompt(self, number: int) -> str:
        words = random.Random(f"{self.seed} shared").choices(_WORDS, k=self.shared)  # noqa: S311
        own = random.Random(f"{self.seed} {number}")  # noqa: S311 (nothing secret)
        return " ".join(words + own.choices(_WORDS, k=max(0, self.count - self.shared))) + "." + _CLOSING


def words_of_length(
    target: Target, tokens: int, *, shared_tokens: int = 0, model: str | None = None, seed: int = 0
) -> RandomWords:
    """Prompts of so many tokens, chat template included, by what the server itself counts.

    Two prompts of known length are sent first: their `usage` tells what the template takes, and how many
    tokens a word is. Any server with the API will do, and no tokenizer is needed.

    Args:
        shared_tokens: how many of these are alike in all prompts, so that a server may keep them.

    Raises:
        UsageError: the template alone is longer, or more is to be shared than there is.
        EdgekitError: the server does not answer, or does not count.
    """
    if shared_tokens > tokens:
        raise UsageError(f"prompts of {tokens} tokens cannot share {shared_tokens}")
    few, many = _PROBE_WORDS
    counted = [
        _count(target, RandomWords(words, seed=seed - 1).prompt(words), model) for words in (few, many)
    ]
    tokens_per_word = (counted[1] - counted[0]) / (many - few)
    if tokens_per_word <= 0:
        raise EdgekitError(f"{target.url}: counts no tokens for words: {counted}")
    around = counted[0] - few * tokens_per_word
    words = round((tokens - around) / tokens_per_word)
    if words < 1:
        raise UsageError(
            f"prompts of {tokens} tokens are not to be had: the chat template takes {around:.0f}",
            hint=f"ask for {around + 8:.0f} or more",
        )
    shared = max(0, round((shared_tokens - around) / tokens_per_word))
    return RandomWords(words, min(words, shared), seed)


def _count(target: Target, prompt: str, model: str | None) -> int:
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 1,
        **({"model": model} if model is not None else {}),
    }
    status, document = target.call("POST", "/v1/chat/completions", body)
    if status != 200:
        raise EdgekitError(f"{target.url}: the server answers {status}: {document}"[:500])
    try:
        return int(document["usage"]["prompt_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise EdgekitError(
            f"{target.url}: the server does not say how many tokens a prompt has",
            hint="leave out --prompt-tokens",
        ) from error
