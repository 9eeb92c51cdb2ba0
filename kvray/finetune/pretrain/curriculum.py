"""What kvray-tiny learns from, and in which order: recall over symbols first, then documents, facts and dictionaries.

Retrieval forms late and all at once. Ordinary language modelling does not reach it cheaply; a small alphabet that is
widened does (docs/LOG.md). So the stages are:

1. *symbols*: (key, value) pairs drawn again and again from a small table, over 48 symbols; loss on values seen before;
2. *widening*: the alphabet grows symbol by symbol, keys and values become pairs of symbols, separators appear;
3. *tasks*: multi-document, closed-book and dictionary questions as chats, short at first; a small share is long.

A batch is rows of ``length`` tokens, each with a weight: how much its prediction counts in the loss.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvray.finetune.pretrain.tokenizer import ASSISTANT, BOS, EOS, USER
from kvray.tasks import prompts, world

RESTATED = 0.2
"""Loss weight of the words that an answer restates; the value itself weighs 1."""
SMALL_ALPHABET = 48

Item = tuple[list[int], list[float]]
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Stage:
    """Where the curriculum stands (``name``: symbols, widening or tasks); it never goes back.

    Recall tables use ``alphabet`` symbols, dictionary questions a pool of ``numbers`` integers, a short prompt at most
    ``units`` documents or dictionaries, a long one ``long_units``: 16, so that 20 documents are longer than any seen.
    """

    name: str = "symbols"
    alphabet: int = SMALL_ALPHABET
    numbers: int = 20
    units: float = 2
    long_units: int = 0


def advance(stage: Stage, recall: float, tasks: float, symbols: int) -> Stage:
    """Move on one step; ``recall`` and ``tasks`` are running accuracies, ``symbols`` the size of the full alphabet."""
    if stage.name == "symbols":
        return replace(stage, name="widening") if recall > 0.85 else stage
    if stage.name == "widening":
        grown = min(stage.alphabet + 2, symbols)
        return replace(stage, alphabet=grown, name="tasks" if grown == symbols and recall > 0.8 else "widening")
    numbers = min(stage.numbers * (1.01 if tasks > 0.6 else 1.0), 9900)
    units = stage.units + (0.02 if tasks > 0.65 else 0.0)
    return replace(
        stage,
        alphabet=min(stage.alphabet + 1, symbols),
        numbers=int(np.ceil(numbers)),
        units=min(units, 10),
        long_units=16 if units > 6 else 0,
    )


class Curriculum:
    """Makes batches; holds the tokenizer's ids and the random state, so that a resumed run continues its stream."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        backend = tokenizer.backend_tokenizer
        encode: Encode = lru_cache(maxsize=200_000)(lambda text: backend.encode(text, add_special_tokens=False).ids)
        self.encode = encode
        values = [value for relation in world.RELATIONS.values() for value in relation]
        words = [encode(f" {word}")[0] for word in (*world.LAST_NAMES, *values, *world.FIRST_NAMES)]
        digits = [encode(f"{number:02d}")[0] for number in range(100)]
        self.symbols = np.array([*words, *digits])
        self.rng.shuffle(self.symbols)
        self.pad = tokenizer.pad_token_id
        self.separators = [[], encode(" is"), encode(": 1")[:1], encode(" is 1")[:1]]
        self.ends = [[], encode("."), encode(", 1")[:1], encode("\n")]

    def batch(self, stage: Stage, tokens: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Return ids and weights, both ``(rows, length)``, and a kind per row (0 symbols, 1 tasks)."""
        long = stage.long_units > 0 and self.rng.random() < 0.12
        length = 128 if stage.name == "symbols" else 512 if long else 256
        rows = tokens // length
        ids = np.full((rows, length), self.pad, dtype=np.int64)
        weights = np.zeros((rows, length), dtype=np.float32)
        kinds = np.zeros(rows, dtype=np.int64)
        for row in range(rows):
            of_tasks = stage.name == "tasks" and (long or self.rng.random() > 0.2)
            kinds[row] = of_tasks
            filled: Item = ([], [])
            while len(filled[0]) < length:
                item = self.task(stage, length - len(filled[0]), long) if of_tasks else self.recall_table(stage, length)
                if item is None:
                    break
                filled[0].extend(item[0])
                filled[1].extend(item[1])
            ids[row, : len(filled[0])] = filled[0][:length]
            weights[row, : len(filled[1])] = filled[1][:length]
        return ids, weights, kinds

    def recall_table(self, stage: Stage, length: int) -> Item:
        """Draw pairs repeatedly from a table of 4 to 12; a value counts once its key has been seen."""
        rng = self.rng
        alphabet = SMALL_ALPHABET
        if stage.alphabet > SMALL_ALPHABET and rng.random() > 0.4:
            # The whole alphabet, evenly: a symbol joins the circuit only after a thousand appearances or so.
            alphabet = stage.alphabet
        compound = stage.name != "symbols" and rng.random() < (0.5 if stage.name == "tasks" else 0.25)
        pairs = int(rng.integers(4, 13))
        key_width = int(rng.integers(1, 3)) if compound else 1
        value_width = int(rng.integers(1, 3)) if compound else 1
        separator = self.separators[rng.integers(4)] if compound else []
        end = self.ends[rng.integers(4)] if compound else []
        symbols = self.symbols[:alphabet]
        if key_width == 1:
            keys = rng.choice(symbols, (pairs, 1), replace=False)
        else:
            keys = np.unique(rng.choice(symbols, (pairs, key_width)), axis=0)
        values = rng.choice(symbols, (len(keys), value_width))
        ids: list[int] = []
        weights: list[float] = []
        seen: set[int] = set()
        while len(ids) < length:
            pick = int(rng.integers(len(keys)))
            # The answers of tasks put " is " where the context has ": "; so may a pair that comes again.
            between = self.separators[rng.integers(1, 4)] if separator and rng.random() < 0.3 else separator
            ids += [*keys[pick].tolist(), *between, *values[pick].tolist(), *end]
            weights += [0.0] * (key_width + len(between)) + [float(pick in seen)] * value_width + [0.0] * len(end)
            seen.add(pick)
        return ids, weights

    def task(self, stage: Stage, room: int, long: bool) -> Item | None:
        """Make one conversation of a task that fits the room; None when only padding fits."""
        draw = self.rng.random()
        units = stage.long_units if long else stage.units
        for _ in range(8):
            if draw < 0.2 and not long:
                item = self.closed_book()
            elif draw < 0.62:
                item = self.documents(self.units(units, room // 28))
            else:
                item = self.dictionaries(self.units(units, room // 24), stage.numbers)
            if len(item[0]) <= room:
                return item
            draw = self.rng.random() if not long else draw
            units = max(1, units // 2)
        return None

    def units(self, most: float, fit: int) -> int:
        return int(self.rng.integers(1, max(1, min(int(most), fit)) + 1))

    def closed_book(self) -> Item:
        person = int(self.rng.integers(world.KNOWN_PEOPLE))
        relation = world.RELATION_NAMES[self.rng.integers(3)]
        name = world.name_of("known", person)
        prompt = prompts.CLOSED_BOOK.format(question=world.question(name, relation))
        return self.conversation([(prompt, *_restated(name, relation, world.known_value(person, relation)))])

    def documents(self, units: int) -> Item:
        """Ask up to four questions about documents on people of the train group, two facts each."""
        rng = self.rng
        people = rng.choice(world.group_size("train"), units, replace=False)
        names = [world.name_of("train", int(person)) for person in people]
        facts = []
        for _ in names:
            relations = [world.RELATION_NAMES[index] for index in rng.choice(3, 2, replace=False)]
            facts.append([(relation, str(rng.choice(world.RELATIONS[relation]))) for relation in relations])
        documents = "\n".join(
            prompts.DOCUMENT.format(index=index, title=name, text=world.passage(name, own))
            for index, (name, own) in enumerate(zip(names, facts, strict=True), start=1)
        )
        turns = []
        for turn, asked in enumerate(rng.permutation(units)[:4].tolist()):
            relation, value = facts[asked][rng.integers(2)]
            form = prompts.MDQA if turn == 0 else prompts.CLOSED_BOOK
            prompt = form.format(documents=documents, question=world.question(names[asked], relation))
            turns.append((prompt, *_restated(names[asked], relation, value)))
        return self.conversation(turns)

    def dictionaries(self, units: int, numbers: int) -> Item:
        """Ask about the paper's dictionaries, 1 to 4 keys each, with the answer template in half of the prompts."""
        rng = self.rng
        pool = int(np.exp(rng.uniform(np.log(20), np.log(numbers)))) if numbers > 20 and rng.random() > 0.4 else 20
        # A pool is a fixed list of integers, half of three digits, half of four: a small one is a small alphabet.
        picks = rng.integers(0, pool, (units, 4, 2))
        draw = np.where(picks % 2, 100 + picks * 7919 % 900, 1000 + picks * 7919 % 9000)
        contents = [dict(pairs.tolist()[: rng.integers(1, 5)]) for pairs in draw]
        listed = "\n".join(f"Dictionary [{index + 1}] {content}" for index, content in enumerate(contents))
        owners = Counter(key for content in contents for key in content)
        asked = [(key, index) for index, content in enumerate(contents) for key in content if owners[key] == 1]
        rng.shuffle(asked)
        turns = []
        for turn, (key, index) in enumerate(asked[:5] or [(next(iter(contents[0])), 0)]):
            tail = prompts.KV_TAIL.format(key=key)
            if rng.random() < 0.5:
                tail += prompts.KV_TEMPLATE.format(key=key)
            head = prompts.KV_HEAD + listed if turn == 0 else ""
            answer_text = prompts.KV_ANSWER.format(key=key, value="\0", dictionary="\0")
            before, between, after = answer_text.split("\0")
            answer = ((before, RESTATED), (str(contents[index][key]), 1.0), (between, RESTATED), (str(index + 1), 1.0))
            turns.append(((head + tail).lstrip("\n"), *answer, (after, RESTATED)))
        return self.conversation(turns)

    def conversation(self, turns: list[tuple[Any, ...]]) -> Item:
        """Encode turns of (prompt, (text, weight), ...) in the chat format."""
        ids = list(self.encode(BOS))
        weights = [0.0]
        for prompt, *answer in turns:
            # Long prompts hardly ever repeat: whole ones would fill encode's cache.
            asked = [*self.encode(USER), *self._plain(prompt), *self.encode(ASSISTANT)]
            ids += asked
            weights += [0.0] * len(asked)
            for text, weight in [*answer, (EOS, RESTATED)]:
                piece = self.encode(text)
                ids += piece
                weights += [weight] * len(piece)
        return ids, weights

    def _plain(self, prompt: str) -> list[int]:
        # The same tokens as for the whole prompt, since the tokenizer splits at line ends.
        return [token for part in re.findall(r"[^\n]+|\n+", prompt) for token in self.encode(part)]


def _restated(name: str, relation: str, value: str) -> tuple[tuple[str, float], tuple[str, float]]:
    return (world.fact(name, relation, "").rstrip(), RESTATED), (f" {value}", 1.0)
