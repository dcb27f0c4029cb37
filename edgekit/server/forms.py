"""What form a chat's answer must have: JSON by a schema, tool calls, or either."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Final, Literal

from edgekit.engine.base import Constraint
from edgekit.errors import ConstraintError
from edgekit.server.errors import ApiError
from edgekit.server.model import LoadedModel
from edgekit.server.schemas.chat import (
    ChatCompletionRequest,
    ChatPromptBody,
    JsonObjectFormat,
    JsonSchemaFormat,
)
from edgekit.server.tools import NamedTool, ToolChoice

__all__ = ["form_of", "tool_choice"]

_COMPACT: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as Python writes it: where white space is free, a small model may write nothing else."""


async def form_of(body: ChatCompletionRequest, model: LoadedModel) -> Constraint | None:
    """The form that the answer must have, None when it may be any text. It is known to be possible.

    A call that is required leaves `response_format` without a say. Where calls may but need not be made, the
    answer is a call or what `response_format` asks for.

    Raises:
        ApiError: a schema is not valid or asks for what is not supported.
    """
    rules = body.tool_rules
    schema = _schema(body)
    field = "tools" if rules.tools and rules.required else "response_format"
    try:
        if rules.tools and (rules.required or schema is not None):
            choice: Literal["required"] | NamedTool = "required"
            if rules.forced is not None:
                choice = NamedTool(rules.forced)
            form = model.tools.constraint(list(rules.tools), choice, rules.parallel)
            if not rules.required and schema is not None:
                form = _either(form, schema)
        elif schema is not None:
            form = Constraint("json_schema", json.dumps(schema))
        else:
            return None
        await asyncio.to_thread(model.engine.check, form)
    except ConstraintError as error:
        raise ApiError(400, f"'{field}': {error.message}", param=field, code="invalid_schema") from error
    except RecursionError:
        raise ApiError(400, f"'{field}': nested too deeply", param=field, code="invalid_schema") from None
    return form


def tool_choice(body: ChatPromptBody) -> ToolChoice:
    """What a model is told of its tools: that it may call them, must call one, or which."""
    rules = body.tool_rules
    if rules.forced is not None:
        return NamedTool(rules.forced)
    return "required" if rules.required else "auto"


def _schema(body: ChatCompletionRequest) -> dict[str, Any] | None:
    wanted = body.response_format
    if isinstance(wanted, JsonObjectFormat):
        return wanted.schema_ or {"type": "object"}
    if isinstance(wanted, JsonSchemaFormat):
        return wanted.json_schema.schema_ or {"type": "object"}
    return None


def _either(calls: Constraint, schema: dict[str, Any]) -> Constraint:
    """Calls, or JSON by the schema."""
    assert calls.kind == "lark", "a format of tools describes calls by a grammar"
    grammar = re.sub(r"^start:", "calls:", calls.text, count=1, flags=re.MULTILINE)
    form = json.dumps({"x-guidance": _COMPACT, **schema})
    return Constraint("lark", f"start: calls | form\nform: %json {form}\n{grammar}")
