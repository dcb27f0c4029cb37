"""How many prompt tokens a step may compute beside the streams that decode."""

from __future__ import annotations

__all__ = ["PrefillPace"]

_SMOOTHING = 0.2
"""Weight of the newest step."""
_UNNOTICED_S = 0.015
"""A stream may always be held up this long."""
_FEWEST_TOKENS = 16
"""Fewer at a time cost nearly as much as these: every step reads all weights."""


class PrefillPace:
    """Bounds what new prompts cost running streams: as long again as a step, or a moment.

    The cost of a prompt token and of a step without any are learnt from the steps themselves, so the bound
    holds on a Raspberry Pi and on a Xeon alike.

    Args:
        most_tokens: prompt tokens of one step, whatever they cost.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._token_s: float | None = None
        self.decode_step_s: float | None = None
        """What a step without prompt tokens takes of late; None until there was one."""

    def note(self, seconds: float, *, decoded: int, prefilled: int) -> None:
        """Learn from a step."""
        if not prefilled:
            self.decode_step_s = _smooth(self.decode_step_s, seconds)
        elif prefilled >= _FEWEST_TOKENS:
            besides = (self.decode_step_s or 0.0) if decoded else 0.0
            self._token_s = _smooth(self._token_s, max(0.0, seconds - besides) / prefilled)

    def budget(self) -> int:
        """Prompt tokens of the next step."""
        if not self._token_s or self.decode_step_s is None:
            return self._most_tokens
        bearable = int(max(self.decode_step_s, _UNNOTICED_S) / self._token_s)
        return min(self._most_tokens, max(_FEWEST_TOKENS, bearable))


def _smooth(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + _SMOOTHING * (newest - mean)
