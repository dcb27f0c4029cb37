"""Several engine requests that answer one HTTP request: their events come out as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from edgekit.engine.base import Chunk, Engine, Event, Failed, Finished, Request, RequestRecord, Ticket
from edgekit.server.bridge import Channel, EventBridge

__all__ = ["Advance", "Choices", "sum_records"]


@dataclass(frozen=True, slots=True)
class Advance:
    """What one choice has gained since it was last heard of. `end` is there with its last one."""

    index: int
    chunk: Chunk
    end: Finished | None


class Choices:
    """Requests under way. They are all cancelled when one fails.

    Args:
        requests: they are submitted at once; the engine shares what their prompts have in common.
        engine, bridge: who works, and where its events come out.

    Raises:
        ContextOverflowError, EngineBusyError, EngineStoppedError: see `Engine.submit`; nothing is under way.
    """

    def __init__(self, requests: Sequence[Request], engine: Engine, bridge: EventBridge) -> None:
        self._tickets: list[Ticket] = []
        self._channels: list[Channel] = []
        try:
            for request in requests:
                channel = bridge.open_channel()
                self._tickets.append(engine.submit(request, channel.sink))
                self._channels.append(channel)
        except BaseException:
            self.cancel()
            raise

    def cancel(self, index: int | None = None) -> None:
        """Stop one choice, or all. Harmless for those that have ended."""
        for ticket in self._tickets if index is None else self._tickets[index : index + 1]:
            ticket.cancel()

    async def advances(self) -> AsyncIterator[Advance]:
        """What the choices gain, in the order in which it comes, until all have ended.

        Raises:
            EdgekitError: one of them failed.
        """
        try:
            if len(self._channels) == 1:
                while True:
                    advance = _advance(0, await self._channels[0].read())
                    yield advance
                    if advance.end is not None:
                        return
            async for advance in self._mixed():
                yield advance
        finally:
            self.cancel()

    async def _mixed(self) -> AsyncIterator[Advance]:
        readers = {asyncio.ensure_future(channel.read()): i for i, channel in enumerate(self._channels)}
        try:
            while readers:
                done, _ = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
                for reader in sorted(done, key=lambda reader: readers[reader]):
                    index = readers.pop(reader)
                    advance = _advance(index, reader.result())
                    if advance.end is None:
                        readers[asyncio.ensure_future(self._channels[index].read())] = index
                    yield advance
        finally:
            for reader in readers:
                reader.cancel()


def _advance(index: int, events: list[Event]) -> Advance:
    """One for all events that have come: a slow reader gets more text at once, not more events."""
    end = events[-1]
    if isinstance(end, Failed):
        raise end.error
    chunks = [event for event in events if isinstance(event, Chunk)]
    if len(chunks) == 1:
        chunk = chunks[0]
    else:
        chunk = Chunk(
            content="".join(chunk.content for chunk in chunks),
            reasoning="".join(chunk.reasoning for chunk in chunks),
            logprobs=tuple(entry for chunk in chunks for entry in chunk.logprobs),
        )
    return Advance(index, chunk, end if isinstance(end, Finished) else None)


def sum_records(records: Sequence[RequestRecord], *, per_prompt: int = 1) -> RequestRecord:
    """What requests that ran side by side cost together.

    A prompt counts once for the `per_prompt` consecutive requests that share it, and as cached what the one
    that found least found: the others found what that one computed. Times are those of the slowest.
    """
    groups = [records[start : start + per_prompt] for start in range(0, len(records), per_prompt)]
    return RequestRecord(
        prompt_tokens=sum(group[0].prompt_tokens for group in groups),
        cached_tokens=sum(min(record.cached_tokens for record in group) for group in groups),
        completion_tokens=sum(record.completion_tokens for record in records),
        queue_s=max(record.queue_s for record in records),
        prefill_s=max(record.prefill_s for record in records),
        decode_s=max(record.decode_s for record in records),
        reasoning_tokens=sum(record.reasoning_tokens for record in records),
    )
