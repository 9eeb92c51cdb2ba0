"""Questions with their documents: a file's, with random or retrieved distractors, or the made-up world's."""

from collections.abc import Callable, Iterator, Sequence

from kvray.errors import InputError
from kvray.tasks import world
from kvray.tasks.qa.base import Asked, DocumentsTask
from kvray.tasks.qa.passages import BETWEEN, Passage
from kvray.tasks.qa.questions import Question, normalise
from kvray.tasks.rng import below, draws, key_of, permutation, shuffled


class _Chosen:
    """The questions that were chosen of a file; an InputError names one without the passage that is to be shown."""

    def __init__(self, task: DocumentsTask, chosen: Sequence[Question]) -> None:
        self.chosen = chosen
        missing = next((question for question in chosen if not question.passage), None)
        if task.documents and missing:
            raise InputError(f"{task.source}: {missing.text!r} has no gold passage ('ctxs' with isgold, or 'text')")

    def gold(self, number: int) -> Question:
        return self.chosen[number]


class RandomDistractors(_Chosen):
    """Distractors drawn at random from passages, of those that hold no accepted answer.

    ``apart`` leaves out those of the gold passage's own article, which may be the same text cut in another place.
    """

    def __init__(
        self, task: DocumentsTask, passages: Sequence[Passage], chosen: Sequence[Question], apart: bool = False
    ) -> None:
        super().__init__(task, chosen)
        self.documents = max(1, task.documents)
        self.key = key_of(task.task, task.VERSION, task.seed, "files")
        self.passages = [(title, passage, normalise(f"{title} {passage}")) for title, passage in passages]
        self.apart = apart

    def ask(self, number: int) -> Asked:
        """Raise an InputError if too few passages hold none of the question's answers.

        An answer is held where the scorer would find it, even within a word; where too few passages are left so ("S"),
        only as words of their own.
        """
        asked = self.chosen[number]
        forbidden = [normal for answer in asked.answers if (normal := normalise(answer))]
        documents = self._drawn(asked, lambda normal: any(answer in normal for answer in forbidden))
        if len(documents) < self.documents:
            documents = self._drawn(asked, lambda normal: any(f" {answer} " in f" {normal} " for answer in forbidden))
        if len(documents) < self.documents:
            raise InputError(
                f"documents: {self.documents} asked for, but only {len(documents) - 1} of {len(self.passages)} "
                f"passages to draw from hold no answer to {asked.text!r}"
            )
        return asked, documents

    def _drawn(self, asked: Question, holds: Callable[[str], bool]) -> list[Passage]:
        """Return the gold document and others, as many as can be drawn, whose normalised text does not ``hold``."""
        documents = {asked.passage: asked.title}
        own = f"{BETWEEN}{asked.title}{BETWEEN}" if self.apart and asked.title else None
        # The draws belong to the question, not to its index in the list: more questions change no prompt.
        row = int(asked.id[:8], 16)
        for stream in range(1, 50):
            if len(documents) == self.documents or not self.passages:
                break
            drawn = draws(self.key, row, row + 1, 4 * self.documents, stream)[0]
            for pick in below(drawn, len(self.passages)).tolist():
                title, passage, normal = self.passages[pick]
                if len(documents) == self.documents or holds(normal):
                    continue
                if own is None or own not in f"{BETWEEN}{title}{BETWEEN}":
                    documents.setdefault(passage, title)
        return [(title, passage) for passage, title in documents.items()]


class RetrievedDistractors(_Chosen):
    """The other passages of the question's own row, the best ranked ones; an InputError if there are too few.

    They keep the retriever's order; ``reorder`` draws another for each question (as ``--use-random-ordering`` does in
    lost-in-the-middle's scripts: the distractors change places, the gold document keeps its own).
    """

    def __init__(self, task: DocumentsTask, chosen: Sequence[Question], reorder: bool = False) -> None:
        super().__init__(task, chosen)
        self.key = key_of(task.task, task.VERSION, task.seed, "order") if reorder else None
        self.others = max(1, task.documents) - 1
        for asked in chosen:
            if len(asked.distractors) < self.others:
                raise InputError(
                    f"documents: {task.documents} with distractors: retrieved takes {self.others} passages beside the "
                    f"gold one, but {task.source} has {len(asked.distractors)} for {asked.text!r}; give a file of "
                    "lost-in-the-middle's qa_data/20_total_documents (or 10, 30), or distractors: random"
                )

    def ask(self, number: int) -> Asked:
        asked = self.chosen[number]
        others: Sequence[Passage] = asked.distractors[: self.others]
        if self.key is not None:
            others = shuffled(others, key_of(self.key, asked.id))
        return asked, [(asked.title, asked.passage), *others]


class TinyQuestions:
    """Questions about people of the made-up world, whose facts are drawn anew for each question.

    Closed book, their answers can only be guessed. An InputError if documents outnumber the people to tell apart.
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
        documents = {self._person(number): (asked.title, asked.passage)}
        for person, facts in self._candidates(number):
            if len(documents) == self.documents:
                break
            if person not in documents and not any(value == asked.answers[0] for _, value in facts):
                name = world.name_of(self.group, person)
                documents[person] = (name, world.passage(name, facts))
        return asked, list(documents.values())

    def _person(self, number: int) -> int:
        return int(self.order[number % self.people])

    def _candidates(self, number: int) -> Iterator[tuple[int, list[tuple[str, str]]]]:
        """Yield (person, facts) for further documents, in rounds of as many as a prompt has."""
        for stream in range(1, 1000):
            for drawn in draws(self.key, number * self.documents, (number + 1) * self.documents, 4, stream):
                yield int(below(drawn[3], self.people)), world.two_facts(drawn)
        raise InputError(f"documents: no {self.documents} documents without the answer could be drawn")
