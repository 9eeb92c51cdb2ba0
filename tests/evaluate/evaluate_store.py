"""A small base model, adapters of every kind, a store with predictions to make; as a script, a worker that is killed.

Usage of the script: ``evaluate_store.py STORE BASE after-chunks N | before-commit | never``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kvray.models.reference import BUNDLED, BaseModelRef, resolve
from kvray.planning.artefacts import Artefact, PredictionsJob
from kvray.store.fingerprint import fingerprint
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.store.store import Store, artefact_id
from kvray.sweep.model import Finetune
from kvray.tasks.qa.recall import Recall

MODEL_LENGTH = 256
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def make_base(home: Path) -> BaseModelRef:
    """kvray-tiny's tokenizer on a random Mistral of two layers that takes 256 tokens and writes about ten."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(BUNDLED["kvray-tiny"], home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    small = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "max_position_embeddings": MODEL_LENGTH,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.3}
    config = json.loads((home / "config.json").read_text()) | small | heads
    (home / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(home))
    # A random model hardly ever ends its answer; with every tenth token as an end it does after about ten.
    model.generation_config.eos_token_id = [2, *range(3, model.config.vocab_size, 10)]
    model.save_pretrained(home)
    return resolve(str(home))


def make_adapter(base: BaseModelRef, home: Path, seed: int = 0, strength: float = 0.3, rank: int = 4) -> Path:
    """Save a peft adapter; of strength 0 its B is zero, so that it changes nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base.location)
    wrapped = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=strength) if strength else torch.nn.init.zeros_(weight)
    wrapped.save_pretrained(home)
    return home


def rename_modules(adapter: Path, home: Path) -> Path:
    """Copy an adapter with its weights under layers that the base model does not have: it matches no module."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, home)
    weights = load_file(home / "adapter_model.safetensors")
    moved = {name.replace("layers.", "layers.7"): value for name, value in weights.items()}
    save_file(moved, home / "adapter_model.safetensors")
    return home


def make_full(base: BaseModelRef, home: Path) -> Path:
    """Save the base model with other weights: a full finetune."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.location)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.neg_()
    model.save_pretrained(home)
    return home


def make_changed(base: BaseModelRef, home: Path, part: str = "q_proj", seed: int = 0) -> Path:
    """Save what a finetune of some tensors stores: those tensors, and the base's configuration."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    home.mkdir()
    tensors = load_file(Path(base.location) / "model.safetensors")
    changed = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in tensors.items() if part in name}
    save_file(changed, home / "changed.safetensors")
    shutil.copy(Path(base.location) / "config.json", home)
    return home


def example_table(rows: int, long_rows: tuple[int, ...] = ()) -> pa.Table:
    """Examples of about 20 tokens, two positions per question; those in ``long_rows`` do not fit the model."""
    rng = np.random.default_rng(0)
    return pa.Table.from_pylist(
        [
            {
                "example_id": f"e{i:05d}",
                "question_id": f"q{i // 2:05d}",
                "position": i % 2 + 1,
                "units": 2,
                "length": None,
                "prompt": f"Which is it: {', '.join(map(str, rng.integers(10, 99, 200 if i in long_rows else 4)))}?",
                "answer": "7",
                "references": ["7", "seven"],
                "prompt_tokens": 0,
            }
            for i in range(rows)
        ],
        schema=EXAMPLE_SCHEMA,
    )


def commit(store: Store, kind: Any, name: str, files: dict[str, Path | pa.Table], recipe: dict[str, Any]) -> str:
    """Commit an artefact of files and tables; return its id."""
    digest = fingerprint(recipe)
    made = artefact_id(kind, name, digest)
    entries = [store.write(made, file, content) for file, content in files.items()]
    store.commit(id=made, kind=kind, name=name, fingerprint=digest, recipe=recipe, needs=[], files=entries, schema=None)
    return made


def dataset(store: Store, table: pa.Table, name: str = "recall") -> str:
    """Commit a dataset in two shards, its rows in another order than they are asked in."""
    turned = table.take(np.arange(table.num_rows)[::-1])
    half = table.num_rows // 2
    files = {"data/shard-00000.parquet": turned.slice(0, half), "data/shard-00001.parquet": turned.slice(half)}
    return commit(store, "dataset", name, files, {"rows": table.num_rows, "name": name})


def finetune(store: Store, name: str, directory: Path) -> str:
    """Commit a directory of weights as a finetune."""
    return commit(store, "finetune", name, {path.name: path for path in directory.iterdir()}, {"name": name})


def predictions(store: Store, dataset_id: str, finetune_id: str | None) -> Artefact:
    """Return the artefact of predictions still to be made."""
    name = finetune_id.rpartition("/")[2].split("-")[0] if finetune_id else None
    needs = [dataset_id, *([finetune_id] if finetune_id else [])]
    recipe = {"decoding": {"temperature": 0.0}}
    digest = fingerprint(recipe, needs)
    rows = store.read_table(dataset_id, ["example_id"]).num_rows
    return Artefact(
        id=artefact_id("predictions", f"recall-{name or 'base'}", digest),
        kind="predictions",
        name=f"recall-{name or 'base'}",
        fingerprint=digest,
        recipe=recipe,
        needs=tuple(needs),
        rows=rows,
        tokens=0,
        labels={"evaluation": "facts", "mixture": name, "finetune": name and "lora", "seed": 0 if name else None},
        params=PredictionsJob(Recall(), dataset_id, finetune_id, _settings(store, finetune_id)),
    )


def _settings(store: Store, finetune_id: str | None) -> Finetune | None:
    if finetune_id is None:
        return None
    names = {path.name for path in Path(store.path(finetune_id)).iterdir()}
    return Finetune(lora_rank=4) if "adapter_config.json" in names else Finetune(method="full")


def main(uri: str, base: str, death: str, *rest: str) -> None:
    """Answer every dataset of the store by the base model, and die by SIGKILL as told."""
    from local_driver import evaluate

    class Dying(Store):
        def create(self, artefact_id: str, name: str, table: Any) -> Any:
            entry = super().create(artefact_id, name, table)
            Dying.written += 1
            if death == "after-chunks" and Dying.written == int(rest[0]):
                os.kill(os.getpid(), signal.SIGKILL)
            return entry

        def commit(self, **given: Any) -> Any:
            if death == "before-commit":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().commit(**given)

        written = 0

    store = Dying(uri)
    cells = [predictions(store, manifest.id, None) for manifest in store.manifests("dataset")]
    print(evaluate(store, resolve(base), *cells))


if __name__ == "__main__":
    main(*sys.argv[1:])
