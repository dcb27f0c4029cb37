"""The tokens to draw from, with a row's logits: an array that llama.cpp fills, for all streams in turn.

API: llama.h and src/llama-sampler.cpp of the llama.cpp that llama-cpp-python vendors.
"""

from __future__ import annotations

import ctypes
import math
import re
import struct
import weakref
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from edgekit.errors import EngineError

__all__ = ["Candidates", "make_chain", "selected", "write"]

_Result = TypeVar("_Result")

_CANDIDATE: Final = struct.Struct("=iff")
"""struct llama_token_data: id, logit, p."""
_BITS: Final = tuple(tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256))
"""By byte, the bits that are set."""
_RUN: Final = re.compile(rb"[^\0]+")
"""Most masks are nearly all zeros, and this skips them natively."""


class Candidates:
    """All tokens with their logits of a row: one array, which llama.cpp fills, for all streams in turn.

    A stream's chain is hung into a chain of all streams for each draw, so that it uses that one's array.
    With an array of its own (12 bytes a token) each stream's would be out of the CPU's cache by the next
    step, and a draw would take twice as long.

    The library is called with the interpreter's lock held: a draw is over in less time than it may take to
    get the lock back from a thread that took it meanwhile.
    """

    def __init__(self, api: Any, vocab: Any, context: Any) -> None:
        self._api = api
        self._context = context
        self._tokens = int(api.llama_vocab_n_tokens(vocab))
        self._sample = _holding_lock(api.llama_sampler_sample)
        self._add = _holding_lock(api.llama_sampler_chain_add)
        self._remove = _holding_lock(api.llama_sampler_chain_remove)
        self.apply = _holding_lock(api.llama_sampler_apply)
        """llama_sampler_apply(sampler, candidates)."""
        self._visit = _Visit(api)
        self._chain = make_chain(api)
        self._softmax = api.llama_sampler_init_dist(0)
        weakref.finalize(
            self, _free, api, [self._chain, self._softmax, self._visit.sampler], self._visit
        ).atexit = False

    def draw(self, chain: Any, row: int) -> int:
        """Draw from a row with a stream's chain, which takes note of the token."""
        self._add(self._chain, chain)
        try:
            return int(self._sample(self._chain, self._context, row))
        finally:
            self._remove(self._chain, 0)

    def visit(self, row: int, work: Callable[[Any], _Result]) -> _Result:
        """Call `work` with the candidates of a row, a llama_token_data_array: token t at index t."""
        visit = self._visit
        self._add(self._chain, visit.sampler)
        try:
            visit.work = work
            self._sample(self._chain, self._context, row)
        finally:
            visit.work = None
            self._remove(self._chain, 0)
        result: _Result = visit.outcome()
        return result

    def logprobs(self, row: int, token: int, top: int) -> list[tuple[int, float]]:
        """Log probabilities of a row: the token's own, then those of the `top` likeliest."""
        return self.visit(row, partial(self._logprobs, token, top))

    def _logprobs(self, token: int, top: int, candidates: Any) -> list[tuple[int, float]]:
        self.apply(self._softmax, candidates)
        address = ctypes.addressof(candidates.data.contents)
        # Any token's p tells what all are normalized with. The one that was drawn for its p has one that is
        # not 0; this token's own may be too small for a float.
        _, logit, p = _entry(address, candidates.selected)
        if not p > 0:
            raise EngineError("the model's output is not a number")
        offset = logit - math.log(p)
        entries = [_entry(address, token)]
        if top > 0:
            entries += self.likeliest(candidates, top)
        return [(entry, logit - offset) for entry, logit, _ in entries]

    def likeliest(self, candidates: Any, count: int) -> Iterable[tuple[int, float, float]]:
        """Reduce the candidates to the likeliest: id, logit and p of each, likeliest first."""
        sampler = self._api.llama_sampler_init_top_k(count)
        self.apply(sampler, candidates)
        self._api.llama_sampler_free(sampler)
        data = ctypes.string_at(ctypes.addressof(candidates.data.contents), candidates.size * _CANDIDATE.size)
        return _CANDIDATE.iter_unpack(data)

    def keep(self, candidates: Any, row: int, mask: bytes) -> None:
        """Reduce the candidates to the tokens whose bits are set."""
        ids = [
            8 * index + bit
            for run in _RUN.finditer(mask)
            for index, byte in enumerate(run[0], run.start())
            for bit in _BITS[byte]
        ]
        logits = _memory(self._api.llama_get_logits_ith(self._context, row), 4 * self._tokens).cast("f")
        write(candidates, ids, [logits[token] for token in ids])


class _Visit:
    """A sampler of llama.cpp's that hands the candidates to Python."""

    def __init__(self, api: Any) -> None:
        self.work: Callable[[Any], Any] | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._interface = api.llama_sampler_i(apply=api.llama_sampler_i_apply(self._apply))
        self.sampler = api.llama_sampler_init(ctypes.byref(self._interface), None)

    def _apply(self, _sampler: Any, pointer: Any) -> None:
        candidates = pointer.contents
        self._result = self._error = None
        try:
            assert self.work is not None
            self._result = self.work(candidates)
        except BaseException as error:  # nothing may be raised through C
            self._error = error
        finally:
            candidates.selected = 0  # llama.cpp ends the process when nothing is selected

    def outcome(self) -> Any:
        """What the work gave, once; raises what it raised."""
        result, error = self._result, self._error
        self._result = self._error = None
        if error is not None:
            raise error
        return result


def write(candidates: Any, ids: Sequence[int], logits: Sequence[float]) -> None:
    """Put these tokens in the place of the candidates, of which there are as many at least."""
    memory = _memory(candidates.data, _CANDIDATE.size * len(ids))
    memory.cast("i")[0::3] = memoryview(array("i", ids))
    memory.cast("f")[1::3] = memoryview(array("f", logits))
    candidates.size = len(ids)
    candidates.sorted = False


def selected(candidates: Any) -> int:
    """The token that a chain has drawn."""
    return int(candidates.data[candidates.selected].id)


def make_chain(api: Any, parts: Iterable[Any] = ()) -> Any:
    """A llama_sampler_chain, to be freed; it owns its parts."""
    params = api.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = api.llama_sampler_chain_init(params)
    for part in parts:
        api.llama_sampler_chain_add(chain, part)
    return chain


def _entry(address: int, index: int) -> tuple[int, float, float]:
    entry: tuple[int, float, float] = _CANDIDATE.unpack(
        ctypes.string_at(address + index * _CANDIDATE.size, _CANDIDATE.size)
    )
    return entry


def _memory(pointer: Any, length: int) -> memoryview:
    """`length` bytes at a pointer."""
    return memoryview((ctypes.c_uint8 * length).from_address(ctypes.addressof(pointer.contents))).cast("B")


def _holding_lock(function: Any) -> Any:
    """A function of the library that is called without giving up the interpreter's lock."""
    prototype = ctypes.PYFUNCTYPE(function.restype, *function.argtypes)
    return prototype(ctypes.cast(function, ctypes.c_void_p).value or 0)


def _free(api: Any, samplers: Iterable[Any], _visit: _Visit) -> None:
    """`_visit` has what the last sampler calls: it must live as long."""
    for sampler in samplers:
        api.llama_sampler_free(sampler)
