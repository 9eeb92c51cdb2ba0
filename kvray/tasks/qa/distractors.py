"""Questions with their documents: a file's, with random or retrieved distractors, or the made-up world's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvray.errors import InputError
from kvray.tasks import world
from kvray.tasks.qa import questions
from kvray.tasks.qa.base import Asked, DocumentsTask
from kvray.tasks.qa.questions import Question
from kvray.tasks.rng import below, draws, key_of, permutation


def holds(passage: str, answers: Sequence[str]) -> bool:
    """Tell whether a passage contains an answer, both normalised."""
    return any(answer and answer in passage for answer in answers)


class RandomDistractors:
    """Distractors drawn at random: gold passages of other questions that hold no accepted answer."""

    def __init__(self, task: DocumentsTask, pool: Sequence[Question], chosen: Sequence[Question]) -> None:
        self.documents = max(1, task.documents)
        self.chosen = chosen
        self.key = key_of(task.task, task.VERSION, task.seed, "files")
        unique: dict[str, Question] = {}
        for question in pool:
            if question.passage:
                unique.setdefault(question.passage, question)
        self.pool = list(unique.values())
        self.normal = [questions.normalise(f"{question.title} {question.passage}") for question in self.pool]

    def gold(self, number: int) -> Question:
        return self.chosen[number]

    def ask(self, number: int) -> Asked:
        """Raise an InputError if too few passages hold none of the question's answers."""
        asked = self.chosen[number]
        forbidden = [questions.normalise(answer) for answer in asked.answers]
        titles, texts, taken = [asked.title], [asked.passage], {asked.passage}
        # The draws belong to the question, not to its index in the list: more questions change no prompt.
        row = int(asked.id[:8], 16)
        for stream in range(1, 50):
            if len(texts) == self.documents:
                break
            for pick in below(draws(self.key, row, row + 1, 4 * self.documents, stream)[0], len(self.pool)).tolist():
                passage = self.pool[pick].passage
                if len(texts) < self.documents and passage not in taken and not holds(self.normal[pick], forbidden):
                    taken.add(passage)
                    titles.append(self.pool[pick].title)
                    texts.append(passage)
        if len(texts) < self.documents:
            raise InputError(
                f"documents: {self.documents} asked for, but only {len(texts) - 1} passages of the source "
                f"hold no answer to {asked.text!r}"
            )
        return Asked(asked, titles, texts)


class RetrievedDistractors:
    """The other passages of the question's own row, in the retriever's order; an InputError if there are too few."""

    def __init__(self, task: DocumentsTask, chosen: Sequence[Question]) -> None:
        self.chosen = chosen
        self.others = max(1, task.documents) - 1
        for asked in chosen:
            if len(asked.distractors) < self.others:
                raise InputError(
                    f"documents: {task.documents} with distractors: retrieved takes {self.others} passages beside the "
                    f"gold one, but {task.source} has {len(asked.distractors)} for {asked.text!r}; give a file of "
                    "lost-in-the-middle's qa_data/20_total_documents (or 10, 30), or distractors: random"
                )

    def gold(self, number: int) -> Question:
        return self.chosen[number]

    def ask(self, number: int) -> Asked:
        asked = self.chosen[number]
        others = asked.distractors[: self.others]
        titles, texts = [title for title, _ in others], [text for _, text in others]
        return Asked(asked, [asked.title, *titles], [asked.passage, *texts])


class TinyQuestions:
    """Questions about people of the made-up world, whose facts are drawn anew for each question.

    Closed book they are the same questions, whose answers can only be guessed. An InputError if more documents are
    asked for than there are people to tell apart.
    """

    def __init__(self, task: DocumentsTask) -> None:
        self.documents = max(1, task.documents)
        self.group: world.Group = "train" if task.split == "train" else "test"
        self.people = world.group_size(self.group)
        if task.documents > self.people // 2:
            raise InputError(
                f"documents: {task.documents} are more than the tiny world can tell apart ({self.people // 2})"
            )
        self.key = key_of(task.task, task.VERSION, task.seed, "tiny", self.group)
        # The first ``people`` questions ask about different people; more start over with other facts.
        self.order = permutation(key_of(task.task, task.VERSION, task.seed, self.group), self.people)

    def gold(self, number: int) -> Question:
        drawn = draws(self.key, number, number + 1, 4)[0]
        name = world.name_of(self.group, self._person(number))
        asked, other = world.two_facts(drawn)
        # The asked fact comes first or second by the draw, so that its place in the document tells nothing.
        passage = world.passage(name, [other, asked] if int(drawn[3]) & 1 else [asked, other])
        relation, value = asked
        question = world.question(name, relation)
        return Question(f"{world.TINY}-{self.group}-{number:06d}-{relation}", question, (value,), name, passage)

    def ask(self, number: int) -> Asked:
        """Return a question with its documents; no other document holds its answer."""
        asked = self.gold(number)
        titles, texts, taken = [asked.title], [asked.passage], {self._person(number)}
        for person, facts in self._candidates(number):
            if len(texts) == self.documents:
                break
            if person in taken or any(value == asked.answers[0] for _, value in facts):
                continue
            taken.add(person)
            titles.append(world.name_of(self.group, person))
            texts.append(world.passage(titles[-1], facts))
        return Asked(asked, titles, texts)

    def _person(self, number: int) -> int:
        return int(self.order[number % self.people])

    def _candidates(self, number: int) -> Iterator[tuple[int, list[tuple[str, str]]]]:
        """Yield (person, facts) for further documents, in rounds of as many as a prompt has."""
        for stream in range(1, 1000):
            for drawn in draws(self.key, number * self.documents, (number + 1) * self.documents, 4, stream):
                yield int(below(drawn[3], self.people)), world.two_facts(drawn)
        raise InputError(f"documents: no {self.documents} documents without the answer could be drawn")
