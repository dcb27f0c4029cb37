from __future__ import annotations

import pytest

from edgekit.engine.chat_template import ChatTemplate, ChatTemplateError
from edgekit.errors import ModelFileError

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_render__chatml() -> None:
    rendered = ChatTemplate(CHATML).render([{"role": "user", "content": "Hi"}])
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_render__knows_the_special_tokens() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", bos_token="<s>", eos_token="</s>"
    )
    assert template.render([{"role": "user", "content": "x"}]) == "<s>x</s>"


def test_render__content_is_data_not_template() -> None:
    assert "{{ 7 * 7 }}" in ChatTemplate(CHATML).render([{"role": "user", "content": "{{ 7 * 7 }}"}])


def test_render__tojson_leaves_html_and_unicode_alone() -> None:
    assert (
        ChatTemplate("{{ messages[0].content | tojson }}").render([{"role": "user", "content": "<b>é</b>"}])
        == '"<b>é</b>"'
    )


def test_render__template_that_raises_is_the_clients_error() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        template.render([{"role": "user", "content": "x"}])


def test_render__template_that_fails_is_reported() -> None:
    with pytest.raises(ChatTemplateError, match="TypeError"):
        ChatTemplate("{{ messages[0].content + 1 }}").render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({'role': 'system', 'content': 'x'}) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(999999999) %}x{% endfor %}",
    ],
)
def test_render__sandbox_holds(attack: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(attack).render([{"role": "user", "content": "x"}])


def test_init__syntax_error_names_the_line() -> None:
    with pytest.raises(ModelFileError, match="line 2"):
        ChatTemplate("fine\n{% if %}")
