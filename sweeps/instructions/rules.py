"""Instructions that code can check, as IFEval's are (Zhou et al. 2023, arXiv 2311.07911), without its packages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

RULES: Mapping[str, Callable[..., bool]] = {
    "punctuation:no_comma": lambda answer: "," not in answer,
    "length_constraints:number_words": lambda answer, num_words: len(answer.split()) <= num_words,
    "startend:end_checker": lambda answer, end_phrase: answer.strip().endswith(end_phrase),
    "keywords:existence": lambda answer, keywords: all(word.lower() in answer.lower() for word in keywords),
}
"""By IFEval's names of them: whether an answer follows, given the instruction's own arguments."""


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Return IFEval's four measures: of whole prompts and of each instruction, strict and loose."""
    (answer,) = results
    lines = answer.split("\n")
    variants = [answer, "\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip()]
    loose = [each for variant in variants for each in (variant, variant.replace("*", ""))]
    rules = [
        (RULES[name], {key: value for key, value in given.items() if value})
        for name, given in zip(doc["instruction_id_list"], doc["kwargs"], strict=True)
    ]
    strictly = [bool(answer.strip()) and rule(answer, **given) for rule, given in rules]
    loosely = [any(each.strip() and rule(each, **given) for each in loose) for rule, given in rules]
    return {
        "prompt_level_strict_acc": all(strictly),
        "inst_level_strict_acc": strictly,
        "prompt_level_loose_acc": all(loosely),
        "inst_level_loose_acc": loosely,
    }


def agg_inst_level_acc(items: Sequence[Sequence[bool]]) -> float:
    """Return the share of all instructions that were followed."""
    flat = [each for item in items for each in item]
    return sum(flat) / len(flat)
