"""Renders messages with the model's own chat template, in a sandbox.

The template comes with the model, so it is code from outside: it runs in jinja2's immutable sandbox, which
has no access to attributes that start with an underscore, to files, or to objects' own state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgekit.errors import EngineError, ModelFileError

__all__ = ["ChatTemplate", "ChatTemplateError"]


class ChatTemplateError(EngineError):
    """The template refuses these messages, e.g. because roles do not alternate."""


class ChatTemplate:
    """A chat template as Hugging Face's tokenizers carry it.

    Args:
        source: the Jinja text (GGUF key `tokenizer.chat_template`).
        bos_token, eos_token: texts of these tokens, which templates refer to by name.

    Raises:
        ModelFileError: the text is not a template.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelFileError(
                f"the model's chat template has a syntax error in line {error.lineno}: {error.message}",
                hint="export the model again with a valid chat template",
            ) from error
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self.source = source
        """The Jinja text."""

    @property
    def eos_token(self) -> str:
        """The text of the token that ends a turn; empty where the model has none."""
        return self._tokens["eos_token"]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt's text.

        Raises:
            ChatTemplateError: the template refuses the messages, or fails on them.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=list(tools) if tools else None,
                **self._tokens,
                **variables,
            )
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from error
        except (TypeError, ValueError, KeyError, IndexError, OverflowError, RecursionError) as error:
            raise ChatTemplateError(
                f"the model's chat template fails on these messages: {type(error).__name__}: {error}"
            ) from error


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    # jinja2's own filter escapes HTML, which models have not seen in training.
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
