"""Questions of a file with their documents: random distractors, or those that a retriever found for each question."""

from __future__ import annotations

from collections.abc import Sequence

from kvray.errors import InputError
from kvray.tasks.qa import questions
from kvray.tasks.qa.base import Asked, DocumentsTask
from kvray.tasks.qa.questions import Question
from kvray.tasks.rng import below, draws, key_of


class RandomDistractors:
    """The gold passages of other questions that hold no accepted answer, drawn at random."""

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
        """Return a question with its gold passage."""
        return self.chosen[number]

    def ask(self, number: int) -> Asked:
        """Return a question with its documents.

        Raises:
            InputError: too few passages hold none of its answers.
        """
        asked = self.chosen[number]
        forbidden = [questions.normalise(answer) for answer in asked.answers]
        titles, texts, taken = [asked.title], [asked.passage], {asked.passage}
        # The draws belong to the question, not to its place in the list: more questions change no prompt.
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
    """The passages beside the gold one in the question's own row, in the order in which the retriever ranked them."""

    def __init__(self, task: DocumentsTask, chosen: Sequence[Question]) -> None:
        """Check every question.

        Raises:
            InputError: a question has too few passages.
        """
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
        """Return a question with its gold passage."""
        return self.chosen[number]

    def ask(self, number: int) -> Asked:
        """Return a question with its documents."""
        asked = self.chosen[number]
        others = asked.distractors[: self.others]
        return Asked(
            asked, [asked.title, *(title for title, _ in others)], [asked.passage, *(text for _, text in others)]
        )


def holds(passage: str, answers: Sequence[str]) -> bool:
    """Tell whether a passage holds an answer, both normalised."""
    return any(answer and answer in passage for answer in answers)
