"""Seconds for four LoRA finetunes through ``kvray run``, beside transformers' Trainer with peft, a process for each.

Both train kvray-tiny on the same rows of simple_kv, on one core, with the same batches, from start to finish: imports,
starts and loads included. kvray's dataset is committed beforehand; the others read it as a file. The table has a
finetune of a few steps, which is nearly all start, and one of the quickstart's size. Below it are the bytes of an
attention finetune and of its checkpoint beside those of the base model.

    python benchmarks/finetune.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import kvray
from kvray.finetune.checkpoints import FILE
from kvray.finetune.encode import encode
from kvray.finetune.placement import Shape
from kvray.finetune.train import train
from kvray.models.changed import CHANGED
from kvray.models.reference import BUNDLED, load_tokenizer, resolve
from kvray.store.store import Store
from kvray.sweep.model import Finetune, Runtime

SEEDS = (0, 1, 2, 3)
RATE = 3e-3


def plain(rows: Path, seed: int, out: Path) -> None:
    """Finetune as the libraries' examples do: prompt and answer, loss on the answer alone, padding to the longest."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED["kvray-tiny"])
    model = AutoModelForCausalLM.from_pretrained(BUNDLED["kvray-tiny"], dtype=torch.float32)
    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=targets))

    def encoded(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_dict=False
        )
        answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}

    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        num_train_epochs=2,
        learning_rate=RATE,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )
    data = [encoded(json.loads(line)) for line in rows.read_text().splitlines()]
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    )
    trainer.train()
    model.save_pretrained(out)


def sweep(rows: int, **finetune: Any) -> kvray.Sweep:
    return kvray.Sweep(
        name="benchmark",
        base_model="kvray-tiny",
        datasets={"kv": kvray.tasks.SimpleKV(rows=rows, dictionaries=20)},
        finetune={"epochs": 2, "learning_rate": RATE, **finetune},
        runtime={"num_cpus": 1, "object_store_memory": 100_000_000},
    )


def run(file: Path, store: Path) -> float:
    """Run a sweep in a process of its own; return the seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "kvray.cli", "run", str(file), "--store", str(store)], check=True)
    return time.perf_counter() - started


def compare(rows: int, folder: Path) -> tuple[float, float]:
    """Return the seconds of kvray and of the libraries for four finetunes on so many rows."""
    store, file, data = folder / "store", folder / "sweep.yaml", folder / "rows.jsonl"
    sweep(rows, seeds=[9]).to_yaml(file)
    run(file, store)  # makes the dataset
    (dataset,) = (each.id for each in Store(store).manifests("dataset"))
    table = Store(store).read_table(dataset, columns=["prompt", "answer"])
    data.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    sweep(rows, seeds=list(SEEDS)).to_yaml(file)
    ours = run(file, store)
    started = time.perf_counter()
    for seed in SEEDS:
        command = [sys.executable, __file__, "--plain", str(data), str(seed), str(folder / f"plain-{seed}")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return ours, time.perf_counter() - started


def sizes(folder: Path) -> None:
    """Print what an attention finetune takes in the store, and its checkpoint while it trains."""
    base = resolve("kvray-tiny")
    rows = encode(load_tokenizer(base), [f"Say {number}." for number in range(32)], [str(n) for n in range(32)])
    checkpoints = Runtime(checkpoint_every_steps=1)
    train(base, rows, Finetune(method="attention"), 0, folder, shape=Shape(1, 1, 0), runtime=checkpoints)
    whole = sum(each.stat().st_size for each in BUNDLED["kvray-tiny"].glob("*.safetensors"))
    for what, file in (("attention finetune", folder / "model" / CHANGED), ("its checkpoint", folder / FILE)):
        size = file.stat().st_size
        print(f"{what}: {size:,} bytes, {size / whole:.2f} of the base model's {whole:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[32, 350], help="rows of each finetune")
    parser.add_argument("--plain", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        plain(Path(given.plain[0]), int(given.plain[1]), Path(given.plain[2]))
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for every process of either
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    print(f"{len(SEEDS)} LoRA finetunes of kvray-tiny on simple_kv with 20 dictionaries, 2 epochs; one core; seconds")
    print(f"{'rows':>5}  {'kvray':>7}  {'Trainer + peft':>14}  {'ratio':>5}")
    with tempfile.TemporaryDirectory() as folder:
        for rows in given.rows:
            place = Path(folder) / str(rows)
            place.mkdir()
            ours, theirs = compare(rows, place)
            print(f"{rows:>5}  {ours:>7.1f}  {theirs:>14.1f}  {theirs / ours:>5.2f}")
        sizes(Path(folder) / "sizes")


if __name__ == "__main__":
    main()
