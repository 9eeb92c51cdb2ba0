"""Does a sweep file of any content get an answer? Mutates the sweeps that ship and plans what comes out.

Half of the mutations change the text (bytes flipped, cut, repeated, inserted; aliases, tags, brackets), half change the
values (odd numbers and texts, keys renamed, blocks moved between files, grids over anything). Each case is what
``kvray plan`` does, offline, in this process; it may end in a plan or in messages (exit status 2), one line each, each
with its place and none twice. Anything else is a failure: another exception, or more CPU time than the limit. Case N of
a seed is always the same file. A failing file is kept.

    python benchmarks/fuzz_yaml.py                       3,000 cases, about three minutes
    python benchmarks/fuzz_yaml.py --cases 20000 --seed 7
    python benchmarks/fuzz_yaml.py --seed 7 --only 1234  one case, its file printed
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kvray.driver.run import prepare
from kvray.errors import InputError, Problem, SourceUnreachableError
from kvray.models.reference import BaseModelRef, resolve
from kvray.planning import inputs
from kvray.planning.cost.estimate import estimate
from kvray.store.store import Store
from kvray.sweep import load
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY
from kvray.tasks.sources import hub, read

ROOT = Path(__file__).parents[1]
READ_S = 2.0
"""CPU seconds in which a file is read and checked."""
PLAN_S = 20.0
"""CPU seconds in which what is right is planned; the sources of its tasks may be large."""
KEPT = ROOT / "build" / "fuzz"
STUCK_CPU_S, STUCK_S = 30.0, 300
"""CPU seconds, and seconds by the clock (of a busy machine), after which a case counts as hanging."""
PLACED = re.compile(r"(?:[^:]+\.yaml:\d+|--(?:set|scale|base-model)[^:]*): \S|[^:]+\.yaml: more problems")
SNIPPETS = (
    *("\t", "\0", "\x07", "\r", "\r\n", "\x85", "\u2028", "\ufeff", "é", "😀", "'", '"', "\\", "\\x00", '"\\ud800"'),
    *(
        "[",
        "]",
        "{",
        "}",
        ":",
        ": ",
        "- ",
        "? ",
        ",",
        "#",
        "&a ",
        "*a",
        "<<: *nq",
        "<<: {a: 1}",
        "<<: [*a, *a]",
        "| \n",
    ),
    *("> \n", "---\n", "...\n", "%YAML 1.2\n", "!!python/object:os.system ", "!!int ", "! ", "~", "null", "true", "no"),
    *(
        "${HOME}",
        "${NOT_SET}",
        "${NOT_SET:-3}",
        "$${X}",
        "${",
        ".nan",
        "-.inf",
        "1e999",
        "-1",
        "0",
        "0x10",
        "1_0",
        "1:30",
    ),
    *(
        "9" * 5000,
        "[" * 200,
        "{a: " * 60,
        "x" * 3000,
        "/dev/zero",
        "~nobodyatall/x",
        "../..",
        "s3://b/k",
        "hf://x",
        "openai:",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 64, 1000, 10**6, 10**9, 10**12, 2**31, 2**53, 2**63, -(2**63), 10**30),
    *(0.5, 1.5, -0.0, 1e-300, 1e18, 1e300, float("inf"), float("nan")),
    *("", " ", "x", "a b", "base", "none", "tiny", "null", "3", "1e5", "a\0b", "a\nb", "x" * 300, "é", "a/b", "a/b/c"),
    *(
        "tests",
        "/",
        "~nobodyatall/x",
        "/dev/zero",
        "sweeps",
        "openai:gpt-4",
        "openai:",
        "kvray-tiny",
        "file:///x",
        "hf://a/b",
    ),
    *(
        "s3://bucket/key",
        "http://localhost:1/x.jsonl",
        "random",
        "all",
        "train",
        "{question}",
        "{0}",
        "{x!r:>{y}}",
        "%s",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        [1, 1],
        [0],
        [3, 1],
        [10**9],
        ["x"],
        [{}],
        {"": 1},
        {"a": {}},
        {"task": "mdqa"},
        [[1], [2]],
    ),
)


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        kind: planned (or read, if it was not to be planned), refused, or failed.
        text: the messages, or the trace.
        read_s: CPU seconds of reading and checking.
        plan_s: CPU seconds of the plan.
    """

    kind: str
    text: str
    read_s: float
    plan_s: float = 0.0


@dataclass
class Case:
    """A mutated sweep: ``text`` goes into a file, ``scale`` and ``settings`` on the command line."""

    text: bytes
    scale: str | None
    settings: list[str] = field(default_factory=list)


class Stuck(BaseException):
    """A case that does not end; no ``except Exception`` on the way catches it."""


def originals() -> list[str]:
    """Return the texts of all sweeps that ship."""
    files = [
        path for path in sorted((ROOT / "sweeps").rglob("*.yaml")) if not {"tasks", "instructions"} & {*path.parts}
    ]
    return [path.read_text(encoding="utf-8") for path in files]


def case(seed: int, number: int, texts: list[str]) -> Case:
    """Return the case of a seed and a number."""
    dice = random.Random(f"{seed}/{number}")
    text = dice.choice(texts)
    # Most cases run at the small scale: only there do the checks behind the base model and the sources come to work.
    scale = dice.choice(["small", "small", "small", None, "tiny"]) if "\nscales:" in text else None
    settings = [_setting(dice) for _ in range(dice.choice([0, 0, 0, 1, 2]))]
    if number % 2:
        return Case(_mutated_text(dice, text, texts), scale, settings)
    return Case(_mutated_values(dice, text, texts).encode("utf-8", "surrogatepass"), scale, settings)


def _setting(dice: random.Random) -> str:
    key = dice.choice(
        ["name", "finetune.epochs", "evaluate.mdqa.questions", "grid.finetune.epochs", "a.b", "mixtures", ""]
    )
    return f"{key}={dice.choice([str(dice.choice(VALUES)), dice.choice(SNIPPETS)])}"


def _mutated_text(dice: random.Random, text: str, texts: list[str]) -> bytes:
    data = text.encode()
    for _ in range(dice.choice([1, 1, 1, 2, 3, 8])):
        at = dice.randrange(len(data) + 1)
        end = min(len(data), at + dice.choice([1, 1, 2, 5, 20, 80]))
        lines = data.split(b"\n")
        line = dice.randrange(len(lines))
        kind = dice.randrange(9)
        if kind == 0:
            data = data[:at] + bytes([dice.randrange(256)]) + data[end:]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:end] + data[at:end] * dice.choice([1, 1, 2, 50]) + data[end:]
        elif kind in (3, 4):
            data = data[:at] + dice.choice(SNIPPETS).encode() + data[dice.choice([at, end]) :]
        elif kind == 5:
            lines[line] = (
                dice.choice([b" ", b"  ", b"\t"]) + lines[line] if dice.random() < 0.5 else lines[line].lstrip()
            )
            data = b"\n".join(lines)
        elif kind == 6:
            data = b"\n".join([*lines[:line], *dice.choice(texts).encode().split(b"\n")[-12:], *lines[line:]])
        elif kind == 7:
            data = dice.choice(
                [data[:at], data.replace(b"\n", b"\r\n"), data.replace(b"\n", b"\r"), b"\xef\xbb\xbf" + data]
            )
        else:
            value = re.sub(
                rb": ([^\s{\[,]+)", lambda found: b": " + dice.choice(SNIPPETS).encode(), lines[line], count=1
            )
            data = b"\n".join([*lines[:line], value, *lines[line + 1 :]])
    return data


def _mutated_values(dice: random.Random, text: str, texts: list[str]) -> str:
    tree = yaml.safe_load(text)
    other = yaml.safe_load(dice.choice(texts))
    for _ in range(dice.choice([1, 1, 1, 2, 3, 8])):
        holder, key = dice.choice(list(_places(tree)))
        kind = dice.randrange(10)
        if kind in (0, 1, 2, 3):
            holder[key] = dice.choice(VALUES)
        elif kind == 4:
            from_holder, from_key = dice.choice(list(_places(other)))
            holder[key] = from_holder[from_key]
        elif kind == 5 and isinstance(holder, dict):
            near = str(key)[: dice.randrange(1, 9)] + dice.choice(["", "x", "s", ".", "é", "\n"])
            holder[
                dice.choice([near, near, str(key).upper(), dice.choice(VALUES[:40]), dice.choice(list(_knobs()))])
            ] = holder.pop(key)
        elif kind == 6:
            del holder[key]
        elif kind == 7:
            holder[key] = dice.choice([[holder[key]], [holder[key]] * 3, {"a": holder[key]}])
        elif kind == 8:
            block = tree.setdefault(dice.choice(["grid", "zip"]), {})
            path = dice.choice(
                [dice.choice(list(_knobs())), f"evaluate.{_name(dice, tree, 'evaluate')}.seed", "finetune.epochs"]
            )
            values = [dice.choice(VALUES) for _ in range(dice.choice([1, 2, 3, 40]))]
            if isinstance(block, dict):
                block[path] = dice.choice([values, [1, 2, 3], list(range(1, 5))])
        elif isinstance(holder, dict):
            holder[dice.choice(list(_knobs())).rpartition(".")[2]] = dice.choice(VALUES)
        if not isinstance(tree, dict) or not tree:
            break
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=dice.random() < 0.5)


def _name(dice: random.Random, tree: dict[str, Any], section: str) -> str:
    names = tree.get(section)
    return str(dice.choice(list(names))) if isinstance(names, dict) and names else "x"


def _knobs() -> Iterator[str]:
    from kvray.sweep.model import Finetune, Runtime

    yield from (f"finetune.{name}" for name in Finetune.model_fields)
    yield from (f"runtime.{name}" for name in Runtime.model_fields)
    yield from (f"datasets.kv-template.{name}" for cls in REGISTRY.values() for name in cls.model_fields)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (mapping or list, key) of everything below a value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def answer(given: Case, folder: Path, plan: bool = True) -> Outcome:
    """Read a case and, unless told otherwise, plan it as ``kvray plan`` does; judge what came of it."""
    file = folder / "case.yaml"
    file.write_bytes(given.text)
    started = time.process_time()
    read_s: float | None = None
    try:
        with _limit():
            try:
                load.read(str(file), given.settings, given.scale)
                read_s = time.process_time() - started
                started = time.process_time()
                if plan:
                    planned, _ = prepare(str(file), given.settings, None, given.scale, offline=True)
                    estimate(planned, Store(str(folder / "store"))).text()
                found = Outcome("planned" if plan else "read", "", read_s, time.process_time() - started)
            except InputError as error:
                taken = time.process_time() - started
                found = Outcome(
                    "refused", str(error), taken if read_s is None else read_s, 0.0 if read_s is None else taken
                )
    except (Exception, Stuck):
        return Outcome("failed", traceback.format_exc(), read_s or time.process_time() - started)
    wrong = _fault(found, str(file))
    return Outcome("failed", f"{wrong}\n{found.text}", found.read_s, found.plan_s) if wrong else found


def _fault(found: Outcome, file: str) -> str | None:
    """Return what is wrong with an answer, None if nothing is."""
    if found.read_s > READ_S:
        return f"reading and checking took {found.read_s:.1f} s"
    if found.plan_s > PLAN_S:
        return f"planning took {found.plan_s:.1f} s"
    lines = found.text.split("\n") if found.kind == "refused" else []
    for line in lines:
        if not PLACED.match(line) and not line.startswith(f"{file}: found "):
            return f"a message without a place: {line!r}"
        if not line.isprintable():
            return f"a message that is no plain line: {line!r}"
    return "a message twice" if len(set(lines)) < len(lines) else None


@contextmanager
def _limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Stuck(f"no answer within {STUCK_CPU_S} CPU seconds, or {STUCK_S} s")

    before = {each: signal.signal(each, stop) for each in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, STUCK_CPU_S)
    signal.alarm(STUCK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def no_network() -> Iterator[None]:
    """Let nothing on the network answer, whatever this machine reaches, and at once."""

    def model(name: str, tokenizer: str | None = None) -> BaseModelRef:
        try:
            remote = [each for each in (name, tokenizer) if each and each.count("/") == 1 and each[0] not in "./~"]
        except IndexError:
            remote = []
        if remote:
            raise SourceUnreachableError(Problem(("base_model",), f"the hub does not answer for {remote[0]}"))
        return resolve(name, tokenizer)

    def away(source: str, *_: object) -> Any:
        raise SourceUnreachableError(f"source: {source} cannot be read: no network")

    kept: list[tuple[Any, str, Callable[..., Any]]] = [
        (inputs, "resolve", inputs.resolve),
        (read, "_from_network", read._from_network),
        (hub, "digest", hub.digest),
        (hub, "download", hub.download),
    ]
    for place, name, _ in kept:
        setattr(place, name, model if name == "resolve" else away)
    try:
        yield
    finally:
        for place, name, function in kept:
            setattr(place, name, function)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run one case and print its file")
    arguments = parser.parse_args()
    load_all()
    texts = originals()
    kinds: Counter[str] = Counter()
    slowest: list[tuple[float, int]] = []
    started = time.monotonic()
    with no_network(), tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.cases) if arguments.only is None else [arguments.only]:
            given = case(arguments.seed, number, texts)
            found = answer(given, Path(folder))
            kinds[found.kind] += 1
            slowest = sorted([*slowest, (found.read_s + found.plan_s, number)], reverse=True)[:5]
            if arguments.only is not None:
                print(
                    given.text.decode(errors="replace"), given.scale, given.settings, found.kind, found.text, sep="\n"
                )
            elif found.kind == "failed":
                KEPT.mkdir(parents=True, exist_ok=True)
                (KEPT / f"{arguments.seed}-{number}.yaml").write_bytes(given.text)
                last = found.text.strip().splitlines()
                print(
                    f"case {number} ({given.scale}, {given.settings}): {' | '.join([last[0], *last[-3:]])[:600]}",
                    flush=True,
                )
    slow = [(round(seconds, 2), number) for seconds, number in slowest]
    print(
        f"{sum(kinds.values())} cases in {time.monotonic() - started:.0f} s: {kinds['planned']} planned, "
        f"{kinds['refused']} refused, {kinds['failed']} failed; slowest (CPU seconds, case): {slow}"
    )
    return 1 if kinds["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
