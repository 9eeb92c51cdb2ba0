"""Questions and documents from the made-up world; facts are drawn anew for each question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kvray.errors import InputError
from kvray.tasks import world
from kvray.tasks.qa.base import Asked, DocumentsTask
from kvray.tasks.qa.questions import Question
from kvray.tasks.rng import below, draws, key_of
from kvray.tasks.world import TINY


class TinyQuestions:
    """The questions of one recipe. Without documents they are the same, and cannot be known: only guessed."""

    def __init__(self, task: DocumentsTask) -> None:
        """Prepare.

        Raises:
            InputError: more documents than there are people to tell apart.
        """
        self.documents = max(1, task.documents)
        self.group: world.Group = "train" if task.split == "train" else "test"
        people = world.group_size(self.group)
        if task.documents > people // 2:
            raise InputError(f"documents: {task.documents} are more than the tiny world can tell apart ({people // 2})")
        self.people = people
        self.key = key_of(task.task, task.VERSION, task.seed, "tiny", self.group)
        # The first ``people`` questions ask about different people; more start over with other facts.
        self.order = np.argsort(
            draws(key_of(task.task, task.VERSION, task.seed, self.group), 0, people, 1)[:, 0], kind="stable"
        )

    def gold(self, number: int) -> Question:
        """Return a question with its gold passage."""
        words = draws(self.key, number, number + 1, 4)[0]
        name = world.name_of(self.group, self._person(number))
        facts = _facts(words)
        relation, value = facts[0]
        # The asked fact comes first or second by the draw, so that its place in the document tells nothing.
        told = facts[::-1] if words[3] & np.uint64(1) else facts
        return Question(
            f"{TINY}-{self.group}-{number:06d}-{relation}",
            world.question(name, relation),
            (value,),
            name,
            world.passage(name, told),
        )

    def ask(self, number: int) -> Asked:
        """Return a question with its documents; no other document holds its answer."""
        asked = self.gold(number)
        titles, texts, taken = [asked.title], [asked.passage], {self._person(number)}
        for person, facts in _candidates(self.key, number, self.people, self.documents):
            if len(texts) == self.documents:
                break
            if person in taken or any(said == asked.answers[0] for _, said in facts):
                continue
            taken.add(person)
            titles.append(world.name_of(self.group, person))
            texts.append(world.passage(titles[-1], facts))
        return Asked(asked, titles, texts)

    def _person(self, number: int) -> int:
        return int(self.order[number % self.people])


def _facts(words: Any) -> list[tuple[str, str]]:
    """Two facts of different relations from three words; the first is the one that a question asks."""
    first = int(below(words[0], 3))
    second = (first + 1 + int(words[0] & np.uint64(1))) % 3
    made = []
    for relation, word in ((world.RELATION_NAMES[first], words[1]), (world.RELATION_NAMES[second], words[2])):
        made.append((relation, world.RELATIONS[relation][int(below(word, len(world.RELATIONS[relation])))]))
    return made


def _candidates(key: int, number: int, people: int, documents: int) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Yield (person, facts) to fill the documents with; more rounds follow when one is used up."""
    for stream in range(1, 1000):
        for words in draws(key, number * documents, (number + 1) * documents, 4, stream):
            yield int(below(words[3], people)), _facts(words[:3])
    raise InputError(f"documents: no {documents} documents without the answer could be drawn")
