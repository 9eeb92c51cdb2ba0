"""Write docs/tasks.md from the tasks themselves: what each asks, an example, its knobs, its score, where it comes from.

python docs/make_tasks.py           writes docs/tasks.md beside this file
python docs/make_tasks.py --check   says whether it is up to date (exit status 1 if not)
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvray.cli import samples
from kvray.models.reference import resolve
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY, Task
from kvray.tasks.ruler import aggregation, tracing
from kvray.tasks.ruler.subtasks import SUBTASKS

PAGE = Path(__file__).with_name("tasks.md")
SETTINGS: dict[str, list[str]] = {
    "simple_kv": ["dictionaries=4"],
    "several_kv": ["dictionaries=4"],
    "multi_subkey_kv": ["dictionaries=3"],
    "mdqa": ["documents=3", "position=2"],
    "multidoc_qa": ["documents=3"],
    "in2": ["segment_tokens=40", "length_min=240", "length_max=320"],
    "needle": ["lengths=[160]"],
    "flenqa": ["lengths=[250]"],
    "kv_retrieval": ["keys=3", "positions=2"],
    "ruler": ["tasks=niah_multikey_2", "lengths=[700]"],
    "val_probing": ["pieces=4", "positions=2"],
    "messages": ["source=sweeps/data/chats.jsonl"],
}
"""What an example is made small by; the defaults are in the table of knobs."""
SHOWN_LINES = 14
RULERS = {
    "niah_single_1": "repeat; words, numbers; k 1, v 1, q 1; 128; all",
    "niah_single_2": "essay; words, numbers; k 1, v 1, q 1; 128; all",
    "niah_single_3": "essay; words, uuids; k 1, v 1, q 1; 128; all",
    "niah_multikey_1": "essay; words, numbers; k 4, v 1, q 1; 128; all",
    "niah_multikey_2": "needle; words, numbers; k 1, v 1, q 1; 128; all",
    "niah_multikey_3": "needle; uuids, uuids; k 1, v 1, q 1; 128; all",
    "niah_multivalue": "essay; words, numbers; k 1, v 4, q 1; 128; all",
    "niah_multiquery": "essay; words, numbers; k 1 (at least q), v 1, q 4; 128; all",
    "vt": "noise; num_chains 1, num_hops 4; one example; 30; all",
    "cwe": "freq_cw 30, freq_ucw 3, num_cw 10; one example; 120; all",
    "fwe": "alpha 2.0, coded_wordlen 6; 50 (not part of the length); all",
    "qa_1": "squad; 32; part",
    "qa_2": "hotpotqa; 32; part",
}
"""What RULER's ``scripts/synthetic.yaml``, ``constants.py`` and defaults of arguments say of its tasks, in its words:
haystack, types of keys and values, their numbers, ``tokens_to_generate``, ``string_match_…``."""
HEAD = """# Tasks

What can stand under `datasets:` (to train on) and `evaluate:` (to ask) of a sweep. Each task shows an example by
`kvray sample TASK`, with any knob as `--set knob=value`; a knob in *italics* says where, not what, and changes no
artefact's identity. Sources are a path, an http(s) address, `s3://`, `gs://`, or `hf://datasets/ORG/NAME[/FILE]`;
`tiny` is the bundled model's made-up world and needs no file. This page is written by `python docs/make_tasks.py`.
"""


def page() -> str:
    """Return the whole page."""
    load_all()
    names = sorted(REGISTRY, key=lambda name: (not REGISTRY[name].TRAINABLE, name))
    index = "\n".join(f"| [`{name}`](#{name}) | {_use(REGISTRY[name])} | {_first(REGISTRY[name])} |" for name in names)
    table = f"| task | use | what it asks |\n|---|---|---|\n{index}\n"
    sections = [_section(name, REGISTRY[name]) for name in names]
    return "\n".join([HEAD, table, *sections])


def _section(name: str, task: type[Task]) -> str:
    module = inspect.getdoc(sys.modules[task.__module__]) or ""
    parts = [f"## {name}\n", _markdown(module) + "\n"]
    if task.BRINGS_EXAMPLES:
        parts += [f"`{' '.join(['kvray sample', name, *(f'--set {each}' for each in SETTINGS.get(name, []))])}`\n"]
        parts += ["```text", *_example(name), "```\n"]
    own_outcome = task.outcome is not Task.outcome
    told = f" Outcomes: {' '.join((inspect.getdoc(task.outcome) or '').split())}" if own_outcome else ""
    parts += [f"**Scored:** {_markdown(task.rule())}{told} At most {task.MAX_OUTPUT_TOKENS} tokens are written.\n"]
    parts += ["| knob | default | |", "|---|---|---|", *_knobs(task), ""]
    parts += [*_ruler(), ""] if name == "ruler" else []
    return "\n".join(parts)


def _ruler() -> Iterator[str]:
    """Yield a table of RULER's tasks as they are made here, beside what RULER's own files say of each."""
    yield "| task | haystack | hidden | asked with | answer | scored | RULER |"
    yield "|---|---|---|---|---|---|---|"
    made = samples.task_of("ruler", None, ["rows=1", "lengths=[2048]"])
    by_name = {row["subtask"]: row for row in samples.rows(made, resolve(samples.DEFAULT_BASE), len(SUBTASKS))}
    hidden = {
        "vt": f"a chain of {tracing.VARIABLES} variables, after one worked example",
        "cwe": f"{aggregation.COMMON} words 30 times, others 3 times, after one worked example",
        "fwe": "3 words of a zeta distribution, alpha 2, whose first is noise",
    }
    for name, each in SUBTASKS.items():
        needles = f"keys ({each.key}s): {each.keys}, {each.value}s of each: {each.values}, keys asked: {each.queries}"
        shown = {"retrieval": needles, "qa": "the gold documents"}.get(each.category) or hidden[name]
        begun = re.sub(r"for .* mentioned", "for … mentioned", by_name[name]["answer_prefix"])
        match = "share of all" if each.match == "all" else "any"
        cells = [
            f"`{name}`",
            each.haystack,
            shown,
            f"{re.sub(r'[0-9]{5}', '…', begun)}",
            f"{each.answer_tokens} tokens",
        ]
        yield f"| {' | '.join([*cells, match, RULERS[name]])} |"


def _markdown(docstring: str) -> str:
    return re.sub(r":(?:mod|func|class):`([^`]+)`", r"`\1`", docstring.strip()).replace("``", "`")


def _example(name: str) -> Iterator[str]:
    made = samples.task_of(name, None, SETTINGS.get(name, []))
    (row,) = samples.rows(samples.with_rows(made, 1), resolve(samples.DEFAULT_BASE), 1)
    *earlier, prompt, answer = (message["content"] for message in row["messages"])
    yield from (line for text in earlier for line in _shortened(text))
    yield from _shortened(prompt)
    yield f"--> {answer}"
    yield f"accepted: {json.dumps(row['references'], ensure_ascii=False)}"


def _shortened(text: str) -> list[str]:
    lines = [line if len(line) <= 160 else f"{line[:110]} […] {line[-40:]}" for line in text.rstrip("\n").split("\n")]
    if len(lines) > SHOWN_LINES:
        half = SHOWN_LINES // 2
        lines = [*lines[:half], f"[… {len(lines) - 2 * half} lines …]", *lines[-half:]]
    return lines


def _knobs(task: type[Task]) -> Iterator[str]:
    for name, field in task.model_fields.items():
        if name == "task":
            continue
        shown = f"*{name}*" if task.identity(name) == "runtime" else name
        default = "" if field.is_required() else json.dumps(_plain(field.get_default(call_default_factory=True)))
        about = (field.description or "").replace("|", "\\|")
        yield f"| {shown} | {('`' + default + '`') if default else ''} | {about} |"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _use(task: type[Task]) -> str:
    return "train, ask" if task.TRAINABLE else "ask"


def _first(task: type[Task]) -> str:
    return (inspect.getdoc(task) or "").partition("\n")[0]


if __name__ == "__main__":
    text = page()
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text() != text:
            sys.exit(f"{PAGE.name} is out of date: python docs/make_tasks.py")
    else:
        PAGE.write_text(text)
