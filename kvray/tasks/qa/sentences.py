"""One English sentence with the answer to a question, by rules: what MDQA trains on where no model words its answers.

The paper trained on sentences that GPT-3.5-Turbo made of the gold answers (section 3.4). The rules, ours, are for the
questions of Natural Questions: lower case, no question mark. A question about the subject becomes a statement ("who got
the first nobel prize in physics": "Wilhelm Conrad Röntgen got …"), and so does one about a predicate ("what is the
capital of france": "The capital of france is Paris."). Where that is unsafe without parsing, the answer stands in a
short sentence that fits the kind of question ("It was in 1972."). ``texts.toml`` has the rules, the first that fits is
used; names keep the question's lower case.
"""

import re

from kvray.tasks import prompts

VERSION = 2
"""Part of the identity of datasets whose answers these rules word; to be raised with any change to a sentence."""
_TEXTS = prompts.load("qa/texts.toml")["sentences"]
_WORDS: dict[str, str] = {name: "(?:" + "|".join(words.split()) + ")" for name, words in _TEXTS["words"].items()}


def _compiled(pattern: str) -> re.Pattern[str]:
    for name, words in _WORDS.items():
        pattern = pattern.replace(f"<{name}>", words)
    return re.compile(pattern, re.IGNORECASE)


_RULES = [(_compiled(question), sentence) for question, sentence in _TEXTS["rules"]]
_FITTING = {name: [(_compiled(answer), text) for answer, text in pairs] for name, pairs in _TEXTS["answers"].items()}
_PAST = _compiled(r"^(?:\w+ ){1,3}?(?:was|were|did|had)\b")


def worded(question: str, answer: str) -> str:
    """Return a sentence, on one line, that answers the question and has the answer in it word for word.

    Its first letter may become a capital; commas and colons at its end are left out.
    """
    asked, answer = " ".join(question.split()).rstrip("?. "), " ".join(answer.split()).rstrip(",;: ") or answer.strip()
    fields = {"answer": answer, "be": "was" if _PAST.match(asked) else "is"}
    for name, pairs in _FITTING.items():
        found = next((text for pattern, text in pairs if pattern.search(answer)), None)
        if found is not None:
            fields[name] = found.format(answer=answer)
    for pattern, sentence in _RULES:
        match = pattern.search(asked)
        if match is None:
            continue
        try:
            made = sentence.format(**fields, **match.groupdict(default=""))
        except KeyError:
            # The rule is for another kind of answer: a date, a number, a name.
            continue
        return _finished(made)
    raise AssertionError("the last rule takes every question")


def _finished(text: str) -> str:
    first = text.split(" ", 1)[0]
    # "iTunes" stays.
    text = text[0].upper() + text[1:] if first.islower() else text
    return text if text.endswith((".", "!", "?")) else f"{text}."
