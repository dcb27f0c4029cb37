"""Tool calling: how families of models are told of tools, how they call them, and how calls are found."""

from edgekit.server.tools.families import tool_format
from edgekit.server.tools.format import ToolFormat
from edgekit.server.tools.parts import (
    NamedTool,
    ToolCallDelta,
    ToolCallParser,
    ToolChoice,
    ToolParts,
    random_id,
)

__all__ = [
    "NamedTool",
    "ToolCallDelta",
    "ToolCallParser",
    "ToolChoice",
    "ToolFormat",
    "ToolParts",
    "random_id",
    "tool_format",
]
