"""Which family a model belongs to, told by its chat template."""

from __future__ import annotations

from functools import partial

import jinja2
from jinja2 import meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgekit.server.tools import deepseek, hermes, llama, mistral
from edgekit.server.tools.format import ToolFormat
from edgekit.server.tools.messages import with_object_arguments, without_tools
from edgekit.server.tools.parts import MakeId, random_id
from edgekit.server.tools.syntax import JsonSyntax
from edgekit.server.tools.xml_call import XmlSyntax

__all__ = ["tool_format"]


def tool_format(template_source: str | None, *, make_id: MakeId = random_id) -> ToolFormat:
    """How a model calls tools.

    A template of no known family is not trusted with tools, even if it takes them: the model is told to
    call them in a form that can be read.

    Args:
        template_source: the chat template's Jinja text; None where the model has none.
        make_id: makes the calls' ids.
    """
    source = template_source or ""
    takes_tools = _takes_tools(source)
    if "tool▁sep" in source:
        v31 = "```json" not in source
        syntax = deepseek.SYNTAX_V31 if v31 else deepseek.SYNTAX
        adapt = deepseek.with_spelled_calls if v31 else deepseek.with_folded_results
        return ToolFormat(
            name="deepseek-v3.1" if v31 else "deepseek",
            syntax=syntax,
            parser_type=deepseek.DeepSeekParser,
            adapt=partial(adapt, syntax=syntax),
            template_takes_tools=takes_tools,
            make_id=make_id,
        )
    if "<tool_call>" in source and "<arg_key>" not in source and "<invoke" not in source:
        in_xml = "<parameter=" in source
        return ToolFormat(
            name="qwen3-coder" if in_xml else "hermes",
            syntax=XmlSyntax() if in_xml else hermes.SYNTAX,
            parser_type=hermes.HermesParser,
            adapt=with_object_arguments,
            template_takes_tools=takes_tools,
            make_id=make_id,
        )
    if "[TOOL_CALLS]" in source:
        return ToolFormat(
            name="mistral",
            syntax=_mistral_syntax(source),
            parser_type=mistral.MistralParser,
            adapt=mistral.with_short_ids,
            template_takes_tools=takes_tools,
            make_id=make_id,
        )
    if '"parameters": ' in source and "ipython" in source and "<function=" not in source:
        return ToolFormat(
            name="llama3",
            syntax=llama.SYNTAX,
            parser_type=llama.LlamaParser,
            adapt=llama.with_one_call_each,
            template_takes_tools=takes_tools,
            make_id=make_id,
        )
    return ToolFormat(
        name="generic",
        syntax=hermes.SYNTAX,
        parser_type=hermes.HermesParser,
        adapt=partial(without_tools, syntax=hermes.SYNTAX),
        make_id=make_id,
    )


def _mistral_syntax(source: str) -> JsonSyntax:
    if "[CALL_ID]" in source:
        return mistral.SYNTAX_ID
    return mistral.SYNTAX_ARGS if "[ARGS]" in source else mistral.SYNTAX_LIST


def _takes_tools(source: str) -> bool:
    """Whether a template reads its variable `tools`."""
    try:
        tree = ImmutableSandboxedEnvironment(extensions=[loopcontrols]).parse(source)
        return "tools" in meta.find_undeclared_variables(tree)
    except jinja2.TemplateError:
        return False
