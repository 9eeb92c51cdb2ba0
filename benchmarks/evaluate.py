"""Evaluation of a base model and its adapters: one engine of kvray beside one plain vLLM engine per model.

Usage: ``python benchmarks/evaluate.py [--adapters 8] [--rows 256]``; ``--reference 2`` runs the plain engines of the
first two adapters alone and takes the others to last as long; ``--threshold`` measures from how many rows on an
adapter is sooner answered merged than batched (``kvray.models.lora.MERGED_ROWS``).

All start-ups are in the times, each engine is a fresh process, one after the other, with the same options of vLLM and
all CPUs. The adapters are of kvray-tiny, made by peft with a small random B. kvray runs a sweep whose datasets and
finetunes are in its store, as ``kvray run`` does, Ray included. The references are a script of ten lines around
``vllm.LLM``: with ``enable_lora`` and one adapter each; and with the merged weights as the model, whose merging is not
counted.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RANK = 8


def sweep(adapters: int, rows: int, how: str) -> dict[str, Any]:
    """Return the sweep, as a mapping; ``rows`` are asked of each model."""
    questions = max(1, rows // 2)
    return {
        "name": f"evaluate-{how}",
        "base_model": "kvray-tiny",
        "datasets": {"kv": {"task": "simple_kv", "rows": 16, "dictionaries": 2}},
        "finetune": {"seeds": list(range(adapters)), "lora_rank": RANK, "learning_rate": 3.0e-3},
        "evaluate": {"mdqa": {"task": "mdqa", "documents": 3, "positions": [1, 3], "questions": questions}},
        "adapters": how,
        "runtime": {"num_cpus": os.cpu_count(), "object_store_memory": 200 * 2**20},
    }


def make(document: dict[str, Any], home: Path) -> tuple[Path, list[Path]]:
    """Commit a sweep's datasets and finetunes; return its file and the adapters' directories."""
    from kvray.driver.run import prepare
    from kvray.generate.job import build, shard_name
    from kvray.store.store import Store
    from kvray.tasks.base import Task

    file, store = home / f"{document['name']}.json", Store(home / "store")
    file.write_text(json.dumps(document))
    planned, base = prepare(str(file))
    adapters: list[Path] = []
    for artefact in planned.artefacts:
        if isinstance(artefact.params, Task):
            content: dict[str, Any] = {shard_name(0): build(artefact.params, base, range(artefact.rows))}
        elif artefact.kind == "finetune":
            adapters.append(random_adapter(base.location, home / f"adapter-{len(adapters)}", len(adapters)))
            content = {path.name: path for path in adapters[-1].iterdir() if path.suffix != ".md"}
        else:
            continue
        entries = [store.write(artefact.id, name, data) for name, data in content.items()]
        store.commit(**artefact.identity(), files=entries)
    return file, adapters


def random_adapter(base: str, home: Path, seed: int) -> Path:
    """Save an adapter whose B is small and random, once."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    if home.exists():
        return home
    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets)
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(home)
    return home


def merge(base: str, adapter: Path, home: Path) -> Path:
    """Save the base model with an adapter merged into it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).merge_and_unload()
    merged.save_pretrained(home)
    AutoTokenizer.from_pretrained(base).save_pretrained(home)
    return home


def plain(model: str, adapter: str | None, asked: str, answers: str) -> None:
    """Answer prompts by one engine, as a script around vLLM does; ``asked`` and ``answers`` are JSON files."""
    from kvray.evaluate.engines.base import Serving
    from kvray.evaluate.engines.vllm import VllmEngine, engine_options
    from kvray.models.reference import resolve
    from kvray.sweep.model import Runtime

    VllmEngine.prepare(0, os.cpu_count() or 1)
    import vllm
    from vllm.lora.request import LoRARequest

    given = json.loads(Path(asked).read_text())
    # The options of kvray's own engine, so that batches and caches are alike.
    options = engine_options(Serving(resolve(model), Runtime(), ranks=(RANK,) if adapter else ()), given["length"])
    llm = vllm.LLM(**{name: value for name, value in options.items() if name != "worker_extension_cls"})
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=given["max_tokens"], stop=given["stop"] or None)
    lora = LoRARequest("adapter", 1, adapter) if adapter else None
    prompts = [{"prompt_token_ids": tokens} for tokens in given["prompts"]]
    outputs = llm.generate(prompts, sampling, lora_request=lora, use_tqdm=False)
    Path(answers).write_text(json.dumps([output.outputs[0].text for output in outputs]))


def prompts(file: Path, store: Path) -> dict[str, Any]:
    """Return what every model is asked: token ids of the prompts in asking order, and how answers end."""
    from kvray.driver.run import prepare
    from kvray.evaluate.questions import DatasetQuestions, engine_length
    from kvray.models.reference import load_tokenizer
    from kvray.planning.artefacts import PredictionsJob
    from kvray.store.store import Store

    planned, base = prepare(str(file))
    job = next(each.params for each in planned.artefacts if isinstance(each.params, PredictionsJob))
    assert job.dataset_id
    asked = DatasetQuestions(Store(store).read_table(job.dataset_id), job.task)
    asked.prepare(range(len(asked)), load_tokenizer(base), 2**15)
    requests = [asked.requests[row][0] for row in range(len(asked))]
    return {
        "prompts": [request.tokens.tolist() for request in requests],
        "length": engine_length([len(request.tokens) + request.max_tokens for request in requests], 2**15),
        "max_tokens": requests[0].max_tokens,
        "stop": list(requests[0].stop),
    }


def timed(*command: str) -> float:
    """Return the seconds that a command takes in a process of its own; its output is shown if it fails."""
    started = time.perf_counter()
    # Ray's workers give way to other processes by default, the references would not.
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return seconds


def compare(adapters: int, rows: int, reference: int) -> None:
    """Print the table: seconds of each way, and how many times kvray's one engine is as fast."""
    from kvray.models.reference import resolve
    from kvray.store.store import Store

    with tempfile.TemporaryDirectory(prefix="kvray-benchmark-") as scratch:
        home, base, me = Path(scratch), resolve("kvray-tiny").location, os.path.abspath(__file__)
        files = {how: make(sweep(adapters, rows, how), home) for how in ("merged", "batched")}
        paths = files["merged"][1]
        asked = home / "prompts.json"
        asked.write_text(json.dumps(prompts(files["merged"][0], home / "store")))
        merged = [merge(base, path, home / f"merged-{number}") for number, path in enumerate(paths[:reference])]

        ways: dict[str, float] = {}
        for how, (file, _) in files.items():
            store = ["--store", str(home / "store")]
            ways[f"kvray, one engine, {how}"] = timed("-m", "kvray.cli", "run", str(file), *store)
            if how == "merged":  # the base's predictions are shared: the second way is to make them, too
                base_cells = [each for each in Store(home / "store").manifests("predictions") if len(each.needs) == 1]
                for each in base_cells:
                    Store(home / "store").discard(each.id)
        base_s = timed(me, "--plain", base, "", str(asked), str(home / "base.out"))
        share = adapters / reference
        ways["vLLM, an engine with LoRA per adapter"] = base_s + share * sum(
            timed(me, "--plain", base, str(path), str(asked), str(home / f"{path.name}.out"))
            for path in paths[:reference]
        )
        ways["vLLM, an engine per merged adapter"] = base_s + share * sum(
            timed(me, "--plain", str(path), "", str(asked), str(home / f"{path.name}.out")) for path in merged
        )
        manifests = Store(home / "store").manifests("predictions")
        engines = {engine["id"] for each in manifests for engine in each.measurements["engines"]}
        print(
            f"kvray-tiny and {adapters} adapters, {rows} rows of MDQA each, {os.cpu_count()} CPUs; "
            f"plain engines of {reference} adapters were run"
        )
        best = min(seconds for way, seconds in ways.items() if way.startswith("kvray"))
        for way, seconds in ways.items():
            print(f"{way:<42}{seconds:>8.0f} s{seconds / best:>8.2f}")
        equal = same(home, manifests, merged)
        print(f"{equal:.1%} of merged answers are those of an engine of the merged weights")
        print(f"{len(engines)} engines of kvray in {len(files)} runs")


def same(home: Path, manifests: list[Any], merged: list[Path]) -> float:
    """Return the share of kvray's merged answers that a plain engine of the merged weights gives, too."""
    from kvray.store.store import Store

    given = [each for each in manifests if each.recipe.get("adapters") == "merged"]
    pairs: list[float] = []
    for path in merged:
        theirs = json.loads((home / f"{path.name}.out").read_text())
        ours = [Store(home / "store").read_table(each.id)["answer"].to_pylist() for each in given]
        pairs.append(max(sum(a == b for a, b in zip(one, theirs, strict=True)) / len(theirs) for one in ours))
    return sum(pairs) / len(pairs)


def threshold(adapters: int, rows: int) -> None:
    """Print what an adapter costs before its first answer and per row, batched and merged, in one live engine."""
    import numpy as np

    from kvray.evaluate.engines.base import Adapter, Request, Serving
    from kvray.evaluate.engines.vllm import VllmEngine
    from kvray.evaluate.served import Probe, pick
    from kvray.models.reference import resolve
    from kvray.sweep.model import Runtime

    VllmEngine.prepare(0, os.cpu_count() or 1)
    base = resolve("kvray-tiny")
    with tempfile.TemporaryDirectory(prefix="kvray-benchmark-") as scratch, contextlib.ExitStack():
        home = Path(scratch)
        file, paths = make(sweep(adapters, rows, "batched"), home)
        asked = prompts(file, home / "store")
        tokens = [np.array(each, np.int32) for each in asked["prompts"]]
        engine = VllmEngine(Serving(base, Runtime(), ranks=(RANK,) * adapters))
        engine.start(asked["length"])
        probe = Probe(engine, pick(tokens))
        costs: dict[str, list[tuple[float, float]]] = {"batched": [], "merged": []}
        for number, path in enumerate(paths, 1):
            adapter = Adapter(path.name, number, path)
            for how, times in costs.items():
                started = time.perf_counter()
                if how == "batched":
                    engine.exchange(None)
                    ready = time.perf_counter()
                    engine.load(adapter)
                else:
                    engine.exchange(path)
                    ready = started
                probe.check(path.name, adapter if how == "batched" else None)
                begun = time.perf_counter()
                served = adapter if how == "batched" else None
                like: dict[str, Any] = {"max_tokens": asked["max_tokens"], "stop": tuple(asked["stop"])}
                requests = [(row, Request(each, adapter=served, **like)) for row, each in enumerate(tokens)]
                for _ in engine.answer(requests):
                    pass
                times.append((begun - ready, (time.perf_counter() - begun) / len(tokens)))
        batched, merged = (np.median(np.array(times), axis=0) for times in costs.values())
        for how, (before, per_row) in (("batched", batched), ("merged", merged)):
            print(f"{how:<8}{before:>8.2f} s before the first row{1000 * per_row:>8.1f} ms per row")
        print(f"merged is sooner from {(merged[0] - batched[0]) / (batched[1] - merged[1]):.0f} rows on")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--reference", type=int)
    parser.add_argument("--threshold", action="store_true")
    parser.add_argument("--plain", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        model, adapter, asked, answers = given.plain
        plain(model, adapter or None, asked, answers)
    elif given.threshold:
        threshold(given.adapters, given.rows)
    else:
        compare(given.adapters, given.rows, min(given.reference or given.adapters, given.adapters))


if __name__ == "__main__":
    main()
