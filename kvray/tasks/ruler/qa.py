"""RULER's question answering (qa_1: SQuAD, qa_2: HotpotQA; its ``qa.py``): gold documents among others of the same set.

Questions come in the order of the file, as RULER takes them: seed 0 asks the first 500, seed 1 the next. SQuAD 2.0
(``dev-v2.0.json``): questions with an answer; their paragraph, then others of its article, then any. HotpotQA
(``hotpot_dev_distractor_v1.json``): all questions; their ten paragraphs, then any.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from typing import Any

from kvray.errors import InputError
from kvray.tasks import prompts, world
from kvray.tasks.rng import draws, key_of, permutation
from kvray.tasks.ruler.subtasks import Draft
from kvray.tasks.sources import read as sources
from kvray.tasks.world import TINY

PER_SEED = 500
"""Questions of one seed, RULER's own number of them."""
_TEXTS = prompts.load("ruler/ruler.toml")["qa"]
_TINY_QUESTIONS = 2000  # also how many people the tiny world's documents are about
_HOTPOT_DOCUMENTS = 10


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers, and documents by number: those that it must have, those taken first."""

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclass(frozen=True)
class Questions:
    """The questions of one set in its order, and all its documents, sorted."""

    asked: Sequence[Question]
    documents: Sequence[str]

    def at(self, seed: int, number: int) -> Question:
        """Return question ``number`` of a seed; after the last comes the first."""
        return self.asked[(seed * PER_SEED + number) % len(self.asked)]


def read(source: str, name: str) -> Questions:
    """Read a file as RULER downloads it, for ``name`` "squad" or "hotpot"; "tiny" stands for the made-up world.

    Raises SourceUnreachableError if a remote source does not answer, InputError if it is no such file.
    """
    return _tiny(name) if source == TINY else _read(source, name, sources.digest(source))


@lru_cache(maxsize=4)
def _read(source: str, name: str, digest: str) -> Questions:
    """Read once per process for one content (``digest``)."""
    raw: list[_Raw] = []
    texts: set[str] = set()
    try:
        for _, row in sources.rows(source):
            raw += _squad(row, texts) if name == "squad" else _hotpot(row, texts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        file = {"squad": "SQuAD's dev-v2.0.json", "hotpot": "HotpotQA's hotpot_dev_distractor_v1.json"}[name]
        raise InputError(f"{name}: {source} is not like {file}, which is expected: {error!r}") from error
    if not raw:
        raise InputError(f"{name}: {source} has no question with an answer")
    # RULER's documents are sorted, so that their numbers do not depend on the order of the file.
    documents = sorted(texts)
    numbers = {text: number for number, text in enumerate(documents)}
    asked = [
        Question(text, answers, tuple(numbers[each] for each in gold), tuple(numbers[each] for each in near))
        for text, answers, gold, near in raw
    ]
    return Questions(asked, documents)


_Raw = tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def _squad(row: Mapping[str, Any], texts: set[str]) -> Iterator[_Raw]:
    """Yield the questions of SQuAD's one row that have an answer; its paragraphs are added to ``texts``."""
    for article in row["data"]:
        paragraphs = tuple(dict.fromkeys(paragraph["context"] for paragraph in article["paragraphs"]))
        texts.update(paragraphs)
        for paragraph in article["paragraphs"]:
            gold = paragraph["context"]
            near = tuple(text for text in paragraphs if text != gold)
            for each in paragraph["qas"]:
                answers = tuple(dict.fromkeys(answer["text"] for answer in each["answers"]))
                if answers and not each.get("is_impossible"):
                    yield each["question"], answers, (gold,), near


def _hotpot(row: Mapping[str, Any], texts: set[str]) -> Iterator[_Raw]:
    """Yield the question of one row of HotpotQA; its paragraphs are added to ``texts``."""
    documents = tuple(dict.fromkeys(f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]))
    texts.update(documents)
    yield row["question"], (row["answer"],), documents, ()


def draft(questions: Questions, question: Question, key: int) -> Draft:
    """Return an example of qa_1 or qa_2; the order of the documents is a pure function of the random key."""
    near = [question.near[at] for at in permutation(key_of("ruler", "near", key), len(question.near)).tolist()]
    rest = permutation(key_of("ruler", "rest", key), len(questions.documents)).tolist()
    chosen = list(dict.fromkeys([*question.gold, *near, *rest]))
    # A document keeps its place among the others, however many there are.
    places = permutation(key_of("ruler", "places", key), len(chosen)).tolist()

    def worded(size: int) -> str:
        shown = [questions.documents[chosen[at]] for at in sorted(range(size), key=places.__getitem__)]
        listed = (_TEXTS["document"].format(number=number, text=text) for number, text in enumerate(shown, start=1))
        return str(_TEXTS["prompt"].format(context="\n\n".join(listed), question=question.text))

    answer = question.answers[0]
    return Draft(worded, len(question.gold), len(chosen), _TEXTS["prefix"], answer, question.answers)


@lru_cache(maxsize=2)
def _tiny(name: str) -> Questions:
    """Return questions on the made-up world's test people: a fact of one (squad), a comparison of two (hotpot)."""
    drawn = draws(key_of("ruler", "tiny", name), 0, _TINY_QUESTIONS, 4)
    facts = [dict(world.two_facts(row)) for row in drawn]
    names = [world.name_of("test", person) for person in range(_TINY_QUESTIONS)]
    texts = [f"{each}\n{world.passage(each, list(has.items()))}" for each, has in zip(names, facts, strict=True)]
    documents = sorted(texts)
    numbers = {text: number for number, text in enumerate(documents)}
    asked = []
    for person, (each, has) in enumerate(zip(names, facts, strict=True)):
        relation, value = next(iter(has.items()))
        if name == "squad":
            asked.append(Question(world.question(each, relation), (value,), (numbers[texts[person]],)))
            continue
        # The other person's own value is told, and is another.
        around = (at % _TINY_QUESTIONS for at in count(person + 1))
        second = next(at for at in around if facts[at].get(relation, value) != value)
        shown = [person, second, *islice(around, _HOTPOT_DOCUMENTS - 2)]
        pair = sorted((each, names[second]))
        text = f"Is {value} the {relation} of {pair[0]} or of {pair[1]}?"
        asked.append(Question(text, (each,), tuple(sorted({numbers[texts[at]] for at in shown}))))
    return Questions(asked, documents)
