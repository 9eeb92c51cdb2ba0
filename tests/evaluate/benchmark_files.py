"""The questions of the task files in sweeps/tasks; as a script, writes them there."""

from __future__ import annotations

import json
from pathlib import Path

from kvray.tasks import world

HOME = Path(__file__).parents[2] / "sweeps" / "tasks"
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


if __name__ == "__main__":
    for file, content in files().items():
        (HOME / file).write_text(content)
