"""FLenQA's prompts and its scorer, to the letter of its authors' notebook (Levy et al. 2024; Apache-2.0).

Curly quotes, the missing quotation mark of RuleTaker and the line break within People In Rooms' last sentence are the
benchmark's.
"""

from __future__ import annotations

import re
from typing import Literal

Subtask = Literal["MonoRel", "PIR", "RuleTaker"]
Verdict = Literal["true", "false", "other"]

_DIRECT: dict[Subtask, str] = {
    "MonoRel": (
        "Here are some facts. Answer the exact following question based on the text: {question} "
        "Answer the question as it appears exactly.\n"
        "{text}\n"
        "{question}\n"
        "Answer only True or False.\n"
    ),
    "PIR": "{text}\nTrue/False Question: {question}\nAnswer only True or False.\n",
    "RuleTaker": (
        "Answer whether the statement {question} can be derived from the rule and the facts. "
        'Answer with either "True" or "False".\n'
        "Rule: {rule}\n"
        "Facts: {text}\n"
        'Answer with either "True or "False".\n'
    ),
}
_COT: dict[Subtask, str] = {
    "MonoRel": (
        "Here are some facts. Answer the exact following question based on the text: {question} "
        "Answer the question as it appears exactly.\n"
        "Show your steps then answer with ’true’ or ’false’.\n"  # noqa: RUF001
        "{text}\n"
        "{question}\n"
        "Let’s work this out in a step by step way to be sure we have the right answer. "  # noqa: RUF001
        "Show your work and finally answer with ’true’ or ’false’. "  # noqa: RUF001
        "The final step should include the exact text of the question and the answer.\n"
    ),
    "PIR": (
        "Show your steps then answer with ’true’ or ’false’.\n"  # noqa: RUF001
        "{text}\n"
        "True/False Question: {question}\n"
        "Let’s work this out in a step by step way to\n"  # noqa: RUF001
        "be sure we have the right answer.\n"
    ),
    "RuleTaker": (
        "Answer whether the statement {question} can be derived from the rule and the facts.\n"
        'Show your steps then answer with either "True" or "False".\n'
        "Rule: {rule}\n"
        "Facts: {text}\n"
        'Answer with either "True or "False". '
        "Let's work this out in a step by step way to be sure we have the right answer.\n"
    ),
}
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def prompt(subtask: Subtask, cot: bool, *, text: str, question: str, rule: str = "") -> str:
    """Word a prompt.

    Args:
        subtask: which of the three tasks.
        cot: ask for the steps first (chain of thought).
        text: key paragraphs and padding (``mixin`` in the published rows).
        question: the question or the statement to derive (``assertion/question``).
        rule: RuleTaker's rule.
    """
    return (_COT if cot else _DIRECT)[subtask].format(text=text, question=question, rule=rule)


def verdict(answer: str) -> Verdict:
    """Return what an answer says last, as the authors' notebook reads it.

    The answer is lower-cased, articles and runs of white space become single spaces, "not true" counts as "false"; then
    the last "true" or "false" stands, as a word or within one. "other" has neither: a refusal, or something else.
    """
    said = " ".join(_ARTICLES.sub(" ", answer.lower()).split()).replace("not true", "false")
    true, false = said.rfind("true"), said.rfind("false")
    if true == false:
        return "other"
    return "true" if true > false else "false"
