"""Conversations come out as transformers words them, without its import."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvray.models.chat import ChatTemplate
from kvray.models.reference import BUNDLED

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATS = [
    [{"role": "user", "content": "  Which\nkey <is> 'it' & why? "}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b "}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "é"}],
]
TEMPLATES = {
    "tiny": (Path(BUNDLED["kvray-tiny"]) / "chat_template.jinja").read_text(),
    "chatml": "{% for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim }}"
    "\n{% endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "json": "{% for message in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ message | tojson }}"
    "{% endfor %}{{ tools is none }}",
    "generation": "{{ bos_token }}{% for message in messages %}{% generation %}{{ message['content'] }}"
    "{% endgeneration %}{% endfor %}",
}


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_texts_are_those_of_transformers(name: str, prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs, _ = render_jinja_template(CHATS, chat_template=TEMPLATES[name], add_generation_prompt=prompt, **SPECIAL)
    assert ChatTemplate(TEMPLATES[name], SPECIAL)(CHATS, prompt) == theirs


def test_a_template_cannot_reach_what_it_is_not_given() -> None:
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError):
        ChatTemplate("{{ messages.append(1) }}", {})([[{"role": "user", "content": "a"}]], False)
