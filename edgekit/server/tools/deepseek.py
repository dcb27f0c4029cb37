"""DeepSeek's calls: V3, R1 and its students.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather
    ```json
    {"city": "Paris"}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

V3.1 leaves out the kind and the fence: `<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}…`.
Students have none of these as tokens: they spell them, and not always well. Those made from Qwen know its
`<tool_call>`, too. Source: the chat templates of DeepSeek-R1, its distilled models, and V3.1.
"""

from __future__ import annotations

import re
from typing import Any, Final

from edgekit.server.tools.calls import NotACallError
from edgekit.server.tools.cursor import Reading
from edgekit.server.tools.hermes import HermesParser
from edgekit.server.tools.messages import calls_of, named_calls
from edgekit.server.tools.syntax import CallSyntax, JsonSyntax

__all__ = ["SYNTAX", "SYNTAX_V31", "DeepSeekParser", "with_folded_results", "with_spelled_calls"]

SYNTAX: Final = JsonSyntax(
    opening="<｜tool▁calls▁begin｜>",
    head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n",
    tail="\n```<｜tool▁call▁end｜>",
    between="\n",
    closing="<｜tool▁calls▁end｜>",
)
SYNTAX_V31: Final = JsonSyntax(
    opening="<｜tool▁calls▁begin｜>",
    head="<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>",
    tail="<｜tool▁call▁end｜>",
    between="",
    closing="<｜tool▁calls▁end｜>",
)

_END: Final = "<｜end▁of▁sentence｜>"
_FENCE: Final = "```"
_HEADER: Final = re.compile(r"[^<\n]*")
_NAME: Final = re.compile(r"[^\n`{]*")
_MAX_NAME: Final = 256


def _spellings(words: str) -> tuple[str, ...]:
    return tuple(
        f"<{bar}{words.replace(' ', joint)}{bar}>" for bar in ("｜", "|") for joint in ("▁", "_", " ", "\\_")
    )


_CALLS_BEGIN: Final = _spellings("tool calls begin")
_CALL_BEGIN: Final = _spellings("tool call begin")
_SEPARATOR: Final = _spellings("tool sep")
_CALL_END: Final = _spellings("tool call end")
_CALLS_END: Final = _spellings("tool calls end")


class DeepSeekParser(HermesParser):
    """Reads calls in DeepSeek's markers, both forms and several spellings, and in `<tool_call>`."""

    openings: tuple[str, ...] = (*_CALLS_BEGIN, *_CALL_BEGIN, *HermesParser.openings)

    def _read_marked(self, opening: str) -> Reading[None]:
        if opening in HermesParser.openings:
            yield from super()._read_marked(opening)
            return
        cursor = self._cursor
        if opening in _CALLS_BEGIN:
            yield from cursor.skip_space()
            if (yield from cursor.take(*_CALL_BEGIN)) is None:
                raise NotACallError
        while True:
            yield from self._read_call()
            yield from self._drop(_FENCE)
            yield from self._drop(*_CALL_END)
            yield from cursor.skip_space()
            if (yield from cursor.take(*_CALL_BEGIN)) is None:
                break
        cursor.position = self._mark
        yield from self._drop(*_CALLS_END)

    def _read_call(self) -> Reading[None]:
        cursor = self._cursor
        call = self._call(closings=(_FENCE, *_CALL_END))
        name = yield from cursor.run(_HEADER, _MAX_NAME)
        if (yield from cursor.take(*_SEPARATOR)) is None:
            raise NotACallError
        if (yield from cursor.skip_space()) != "{":
            name = yield from cursor.run(_NAME, _MAX_NAME)
            yield from cursor.skip_space()
            yield from cursor.take(f"{_FENCE}json", _FENCE)
            yield from cursor.skip_space()
        call.named(name.strip())
        yield from call.read_arguments()
        self._mark_end()


def with_spelled_calls(messages: list[dict[str, Any]], syntax: CallSyntax) -> list[dict[str, Any]]:
    """The messages with calls as a part of the text, and one system message.

    The templates' own ways with calls differ from release to release: R1's writes them only where the
    content is null, and the closing marker only after the second; others quote the arguments twice. Of
    several system messages R1's keeps the last alone.
    """
    told = [_spelled(message, syntax) for message in messages]
    system = [message for message in told if message["role"] == "system"]
    if len(system) < 2:
        return told
    whole = {**system[0], "content": "\n\n".join(str(message["content"]) for message in system)}
    return [whole, *(message for message in told if message["role"] != "system")]


def with_folded_results(messages: list[dict[str, Any]], syntax: CallSyntax) -> list[dict[str, Any]]:
    """As `with_spelled_calls`, and the results of all calls but the last ones in the text, too.

    R1's template opens the list of results only once in a conversation, and closes it only before an answer.
    """
    told: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for message in with_spelled_calls(messages, syntax):
        if message["role"] == "tool":
            results.append(message)
            continue
        if results and told and told[-1]["role"] == "assistant":
            before = f"{told[-1]['content']}{_END}{_spelled_results(results)}"
            if message["role"] == "assistant":
                message = {**told.pop(), "content": before + message["content"]}
            else:
                told[-1] = {**told[-1], "content": before}
        else:
            told.extend(results)
        results = []
        told.append(message)
    return told + results


def _spelled(message: dict[str, Any], syntax: CallSyntax) -> dict[str, Any]:
    if message["role"] != "assistant":
        return message
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    # The template cuts its text off before the last closing tag; an argument may have one.
    content = str(message.get("content") or "").rpartition("</think>")[2]
    calls = syntax.text(named_calls(message)) if calls_of(message) else ""
    return {**rest, "content": content + calls.replace("</think>", "<\\/think>")}


def _spelled_results(results: list[dict[str, Any]]) -> str:
    texts = [f"<｜tool▁output▁begin｜>{result['content']}<｜tool▁output▁end｜>" for result in results]
    whole = "<｜tool▁outputs▁begin｜>" + "\n".join(texts) + "<｜tool▁outputs▁end｜>"
    return whole.replace("</think>", "<\\/think>")
