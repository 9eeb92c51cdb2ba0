"""Passages that random distractors are drawn from: other questions' gold passages, or a corpus, whole or in pieces.

Lost-in-the-middle's distractors are pieces of 100 words of one Wikipedia article each, under its title (those of DPR's
dump, Karpukhin et al. 2020, section 4.1), while its gold passages are shorter: 78 words on average. Pieces of 100 words
so give prompts of its lengths; whole gold passages of other questions give prompts that are a fifth shorter.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from operator import itemgetter

from kvray.errors import InputError
from kvray.tasks.qa.questions import Question
from kvray.tasks.sources import read
from kvray.tasks.sources.records import lacking

Passage = tuple[str, str]
"""Title and text."""
BETWEEN = "; "
"""What stands between the titles of a piece that was joined."""
FROM_CORPUS = 20_000
"""Passages taken of a corpus, its first: enough that questions hardly share any, and quickly read."""


def of_questions(pool: Sequence[Question], words: int | None) -> list[Passage]:
    """Return the different gold passages of questions, or what :func:`pieces` makes of them, article by article."""
    titles: dict[str, str] = {}
    for question in pool:
        if question.passage:
            titles.setdefault(question.passage, question.title)
    whole = [(title, passage) for passage, title in titles.items()]
    return whole if words is None else list(pieces(sorted(whole, key=itemgetter(0)), words))


def of_corpus(source: str, words: int | None) -> list[Passage]:
    """Return the first :data:`FROM_CORPUS` texts of a corpus's rows, or pieces of them; an InputError names a bad row.

    Rows have ``text``, an article or a passage, and ``title`` if they are to have one.
    """
    articles = _articles(source)
    return list(dict.fromkeys(islice(articles if words is None else pieces(articles, words), FROM_CORPUS)))


def pieces(passages: Iterable[Passage], words: int) -> Iterator[Passage]:
    """Yield (title, ``words`` words of its text), disjoint and in order; what is left over is left out.

    Neighbouring passages of one title are one article; those without a title stand alone. An article that is too short
    is joined with the next such ones, under all their titles.
    """
    titles: list[str] = []
    joined: list[str] = []
    for title, neighbours in groupby(passages, key=itemgetter(0)):
        texts = [text.split() for _, text in neighbours]
        for article in [list(chain.from_iterable(texts))] if title else texts:
            for start in range(0, len(article) - words + 1, words):
                yield title, " ".join(article[start : start + words])
            if len(article) < words:
                titles.append(title)
                joined += article
            if len(joined) >= words:
                yield BETWEEN.join(filter(None, titles)), " ".join(joined[:words])
                titles, joined = [], []


def _articles(source: str) -> Iterator[Passage]:
    for where, row in read.rows(source):
        text, title = row.get("text"), row.get("title")
        if not isinstance(text, str):
            raise lacking(row, "'text'", where)
        if not isinstance(title, str | None):
            raise InputError(f"{where}: 'title' must be a text; found {title!r:.60}")
        if text.strip():
            yield title or "", text
