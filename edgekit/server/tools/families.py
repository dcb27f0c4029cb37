"""Which family a model belongs to, told by its chat template."""

from __future__ import annotations

import jinja2
from jinja2 import meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgekit.server.tools.generic import GenericFormat
from edgekit.server.tools.hermes import HermesFormat
from edgekit.server.tools.parts import MakeId, ToolFormat, random_id

__all__ = ["tool_format"]


def tool_format(template_source: str | None, *, make_id: MakeId = random_id) -> ToolFormat:
    """How a model calls tools.

    Args:
        template_source: the chat template's Jinja text; None where the model has none.
        make_id: makes the calls' ids.
    """
    source = template_source or ""
    if "<tool_call>" in source and '"arguments"' in source:
        return HermesFormat(template_takes_tools=_takes_tools(source), make_id=make_id)
    return GenericFormat(make_id=make_id)


def _takes_tools(source: str) -> bool:
    try:
        tree = ImmutableSandboxedEnvironment(extensions=[loopcontrols]).parse(source)
        return "tools" in meta.find_undeclared_variables(tree)
    except jinja2.TemplateError:
        return False
