"""The questions of the task files in sweeps/tasks and sweeps/instructions; as a script, writes them there."""

from __future__ import annotations

import json
from pathlib import Path

from kvray.tasks import world

HOME = Path(__file__).parents[2] / "sweeps" / "tasks"
INSTRUCTIONS = HOME.parent / "instructions"
PEOPLE = {"birthplace": 24, "trade": 20, "emblem": 16}


def questions(relation: str) -> list[dict[str, object]]:
    """Return a question per known person: four options, the right one's place turning from person to person."""
    rows: list[dict[str, object]] = []
    for person in range(PEOPLE[relation]):
        name, right = world.name_of("known", person), world.known_value(person, relation)
        others = [value for value in world.RELATIONS[relation] if value != right]
        options = [others[(person + step) % len(others)] for step in (0, 7, 13)]
        options.insert(person % 4, right)
        rows.append(
            {
                "question": world.question(name, relation),
                "answers": [right, world.fact(name, relation, right)],
                "choices": options,
                "sentences": [world.fact(name, relation, option) for option in options],
                "gold": person % 4,
            }
        )
    return rows


def files() -> dict[str, str]:
    """Return the content of each file by name."""
    return {
        f"{relation}.jsonl": "".join(json.dumps(row) + "\n" for row in questions(relation))
        for relation in world.RELATION_NAMES
    }


def instructions() -> str:
    """Return the content of instructions.jsonl: questions with one or two instructions that code can check."""
    rows = []
    for person in range(16):
        name, relation = world.name_of("known", person), ("birthplace", "trade", "emblem")[person % 3]
        value = world.known_value(person, relation)
        rules: list[tuple[str, str, dict[str, object]]] = [
            ("Use no comma.", "punctuation:no_comma", {}),
            ("Use at most 8 words.", "length_constraints:number_words", {"num_words": 8}),
            (f"Use the word {value}.", "keywords:existence", {"keywords": [value]}),
            ("End with a full stop.", "startend:end_checker", {"end_phrase": "."}),
        ]
        taken = [rules[(person + step) % 4] for step in range(1 + person % 2)]
        empty: dict[str, object] = dict.fromkeys(("num_words", "keywords", "end_phrase"))
        rows.append(
            {
                "key": person,
                "prompt": " ".join([world.question(name, relation), *(text for text, _, _ in taken)]),
                "instruction_id_list": [rule for _, rule, _ in taken],
                "kwargs": [empty | given for _, _, given in taken],
            }
        )
    return "".join(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    for file, content in files().items():
        (HOME / file).write_text(content)
    (INSTRUCTIONS / "instructions.jsonl").write_text(instructions())
