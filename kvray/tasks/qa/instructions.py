"""Prompts with their answers, read from instruction datasets of many shapes.

Accepted, in this order: chat messages (``messages`` or ``conversations``, of ``role``/``content`` or
``from``/``value``; or a ``text`` in ChatML), of which the first question and its answer are taken; or any of
``instruction``, ``prompt``, ``context``, ``input``, ``question`` (``questions``), joined in this order, and the first
of ``output``, ``answer`` (``answers``), ``response``. Of lists of questions and answers the first are taken.
"""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from kvray.errors import InputError

PROMPT = ("instruction", "prompt", "context", "input", "question", "questions")
ANSWER = ("output", "answer", "answers", "response")
ENGLISH = 0.9
"""Least share of ASCII letters among all letters of an English text; ours."""
_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_ASCII = re.compile(r"[\x00-\x7f]+")
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant"}


def pair(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Return (prompt, answer) of a row, either perhaps blank; an InputError if it has neither a chat nor both."""
    chat = row.get("messages") or row.get("conversations") or _chatml(row.get("text"))
    if chat:
        return _first_turns(chat, where)
    prompts = [text for name in PROMPT if (text := _text(row.get(name))) is not None]
    answers = [text for name in ANSWER if (text := _text(row.get(name))) is not None]
    if not prompts or not answers:
        raise InputError(
            f"{where}: found the fields {', '.join(row) or 'none'}; expected messages, conversations, or one of "
            f"{', '.join(PROMPT)} with one of {', '.join(ANSWER)}"
        )
    return "\n\n".join(text for text in prompts if text), answers[0]


def is_english(text: str) -> bool:
    """Tell whether at least :data:`ENGLISH` of a text's letters are ASCII; a text without letters is not English."""
    plain = sum(map(text.count, string.ascii_letters))
    return plain > 0 and plain >= ENGLISH * (plain + sum(map(str.isalpha, _ASCII.sub("", text))))


def _first_turns(chat: Any, where: str) -> tuple[str, str]:
    turns = []
    for turn in chat if isinstance(chat, Sequence) and not isinstance(chat, str) else ():
        fields = turn if isinstance(turn, Mapping) else {}
        role = _ROLES.get(str(fields.get("role") or fields.get("from")))
        turns.append((role, fields.get("content", fields.get("value"))))
    first = next((at for at, (role, _) in enumerate(turns) if role == "user"), len(turns))
    pair = turns[first : first + 2]
    if [role for role, _ in pair] != ["user", "assistant"] or not all(isinstance(text, str) for _, text in pair):
        raise InputError(f"{where}: expected a conversation with a text of the user and then one of the assistant")
    return pair[0][1].strip(), pair[1][1].strip()


def _chatml(text: Any) -> list[dict[str, str]]:
    if not isinstance(text, str):
        return []
    return [{"role": role, "content": content} for role, content in _CHATML.findall(text)]


def _text(value: Any) -> str | None:
    """Return a field's text, or the first of a list of texts; None for anything else."""
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value.strip() if isinstance(value, str) else None
