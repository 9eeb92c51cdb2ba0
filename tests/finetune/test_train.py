"""A finetune changes what its method says, the same however many workers run it and however often it is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from transformers import TrainerControl, TrainerState

from kvray.errors import CellError, InputError
from kvray.finetune.checkpoints import FILE, Saving
from kvray.finetune.fit import Fit
from kvray.finetune.model import Resident, attention_projections, load, prepare, save
from kvray.finetune.placement import Shape, batch_shape
from kvray.finetune.train import train, training_arguments
from kvray.models.changed import compose
from kvray.store.schemas import LOSS_SCHEMA
from kvray.sweep.model import Finetune, Runtime

SHAPE = Shape(workers=1, cpus=1, gpus=0)
ONE = {"shape": SHAPE, "runtime": Runtime()}
QUICK = {"learning_rate": 3e-3, "epochs": 2}


def weights(directory: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {name: value for file in sorted(directory.glob("*.safetensors")) for name, value in load_file(file).items()}


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.fixture(scope="module")
def lora(mini, rows, tmp_path_factory):
    """An undisturbed LoRA finetune in this process: 4 steps."""
    out = tmp_path_factory.mktemp("lora")
    return train(mini, rows, Finetune(**QUICK), 0, out, **ONE), out / "model"


def test_a_lora_finetune_learns_and_leaves_an_adapter_that_moves_the_base(mini, rows, lora):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    done, model = lora
    assert sorted(path.name for path in model.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert [row["step"] for row in done.log] == [1, 2, 3, 4]
    assert done.log[-1]["loss"] < done.log[0]["loss"] - 0.02
    assert done.log[-1]["epoch"] == 2.0
    assert done.log[-1]["tokens"] == 2 * int(rows.lengths.sum())
    assert done.log[0]["learning_rate"] == pytest.approx(3e-3)
    assert pa.Table.from_pylist(done.log, schema=LOSS_SCHEMA).to_pylist() == done.log
    base = AutoModelForCausalLM.from_pretrained(mini.location)
    ids = torch.from_numpy(rows.ids[0].astype(np.int64))[None]
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, str(model))(ids).logits
    assert (adapted - plain).abs().max() > 1e-3


def test_an_adapter_names_its_base_as_the_user_did_and_vllm_would_take_it(mini, lora):
    config = json.loads((lora[1] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == mini.name
    refused = ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")
    assert not any(config.get(name) for name in (*refused, "modules_to_save"))  # vllm/lora/peft_helper.py
    assert (config["r"], config["bias"], config["init_lora_weights"]) == (16, "none", True)


def test_full_trains_all_weights_and_leaves_a_whole_model(mini, rows, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train(mini, rows, Finetune(method="full", **QUICK), 0, tmp_path, **ONE)
    before, model = weights(Path(mini.location)), tmp_path / "model"
    assert changed(before, weights(model)) == set(before)
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(os.listdir(model))
    assert (model / "generation_config.json").is_file()
    config, own = (json.loads((home / "config.json").read_text()) for home in (model, Path(mini.location)))
    assert config["dtype"] == own["dtype"]
    assert (
        AutoTokenizer.from_pretrained(model).chat_template == AutoTokenizer.from_pretrained(mini.location).chat_template
    )
    AutoModelForCausalLM.from_pretrained(model)


def test_attention_leaves_the_tensors_that_changed_which_over_the_base_make_the_model(mini, rows, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    resident = Resident(mini, SHAPE, Runtime())
    taught = resident.model("attention")
    train(mini, rows, Finetune(method="attention", **QUICK), 0, tmp_path, **ONE)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["changed.safetensors", "config.json"]
    before, after = weights(Path(mini.location)), weights(tmp_path / "model")
    assert after.keys() == {f"{name}.weight" for name in attention_projections(taught)} and len(after) == 8
    assert all(not np.array_equal(before[name], after[name]) for name in after)
    assert all(after[name].dtype == before[name].dtype for name in after)
    composed = AutoModelForCausalLM.from_pretrained(compose(mini, tmp_path / "model", tmp_path / "whole"))
    assert changed(before, weights(tmp_path / "whole")) == set(after)
    taught.load_state_dict({name: torch.from_numpy(value) for name, value in after.items()}, strict=False)
    ids = torch.from_numpy(rows.ids[0].astype(np.int64))[None]
    with torch.no_grad():
        ours, plain = composed(ids).logits, AutoModelForCausalLM.from_pretrained(mini.location)(ids).logits
        assert torch.equal(ours, taught(ids).logits) and (ours - plain).abs().max() > 1e-3


def test_changed_tensors_are_put_over_no_other_base(mini, rows, tmp_path):
    train(mini, rows, Finetune(method="attention", epochs=0.1), 0, tmp_path, **ONE)
    with pytest.raises(InputError, match=r"base_model: found .* \(sha256:0\); .* holds changed tensors of sha256:"):
        compose(replace(mini, identity="sha256:0"), tmp_path / "model", tmp_path / "whole")


def test_finetunes_one_after_the_other_on_one_base_are_those_of_fresh_processes(mini, rows, tmp_path):
    recipes = [
        {"lora_dropout": 0.1, **QUICK},
        {"method": "attention", **QUICK},
        {"method": "full", "epochs": 0.1},
        {"method": "attention", **QUICK, "learning_rate": 1e-3},
        {"lora_targets": "all-linear", "lora_rank": 4, **QUICK},
        {"lora_dropout": 0.1, **QUICK},
    ]
    runtime = {"gradient_checkpointing": True}
    resident = Resident(mini, SHAPE, Runtime())
    for number, recipe in enumerate(recipes):
        out, every = tmp_path / f"resident-{number}", Runtime(**runtime)
        train(mini, rows, Finetune(**recipe), number % 5, out, shape=SHAPE, runtime=every, resident=resident)
    for number in (1, 3, 4):
        fresh = tmp_path / f"fresh-{number}"
        asked = ask(tmp_path, mini, rows, recipes[number], runtime, out=str(fresh), seed=number)
        assert start(asked).wait(120) == 0
        ours, theirs = (
            {path.name: path.read_bytes() for path in sorted((home / "model").iterdir())}
            for home in (tmp_path / f"resident-{number}", fresh / "0")
        )
        assert ours == theirs
    first, last = (weights(tmp_path / f"resident-{number}/model") for number in (0, 5))
    assert all(np.array_equal(first[name], last[name]) for name in first)


def test_gradient_checkpointing_and_the_micro_batch_change_rounding_alone(mini, rows, lora, tmp_path):
    other = Runtime(per_device_batch_size=7, gradient_checkpointing=True)
    done = train(mini, rows, Finetune(**QUICK), 0, tmp_path, shape=SHAPE, runtime=other)
    assert [row["loss"] for row in done.log] == pytest.approx([row["loss"] for row in lora[0].log], abs=1e-5)


def test_another_seed_is_another_finetune(mini, rows, lora, tmp_path):
    done = train(mini, rows, Finetune(**QUICK), 1, tmp_path, **ONE)
    assert done.log[-1]["loss"] != lora[0].log[-1]["loss"]


def test_a_loss_that_is_no_number_fails_the_cell(mini, rows, tmp_path):
    from safetensors.numpy import save_file

    # Weights too large for any finite logit: what a learning rate far too high makes of them, but at once.
    broken = tmp_path / "broken"
    shutil.copytree(mini.location, broken)
    too_large = {name: value * np.float32(1e30) for name, value in weights(broken).items()}
    save_file(too_large, broken / "model.safetensors", {"format": "pt"})
    base = replace(mini, location=str(broken))
    with pytest.raises(CellError, match=r"loss is (nan|inf).*learning_rate"):
        train(base, rows, Finetune(**QUICK), 0, tmp_path, **ONE)


def ask(tmp_path: Path, mini, rows, recipe, runtime, **more) -> str:
    np.savez(tmp_path / "rows.npz", ids=np.concatenate(rows.ids), lengths=rows.lengths, answers=rows.answers)
    asked = {
        "base": mini.location,
        "rows": str(tmp_path / "rows.npz"),
        "recipe": recipe,
        "runtime": runtime,
        **more,
    }
    return json.dumps(asked)


def start(asked: str, rank: int = 0, world: int = 1, port: int = 0) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("train_process.py")
    group = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    threads = {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(port), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, str(script), asked], env={**os.environ, **threads, **(group if world > 1 else {})}
    )


def together(asked: str) -> list[int]:
    """Run two workers of one finetune; return their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [start(asked, rank, 2, port) for rank in range(2)]
    return [worker.wait(240) for worker in workers]


@pytest.mark.parametrize("method", ["lora", "attention", "full"])
def test_a_killed_finetune_resumes_at_its_step_and_ends_as_if_undisturbed(mini, rows, tmp_path, method):
    recipe = {"method": method, "epochs": 5, "learning_rate": 3e-3, "scheduler": "cosine", "weight_decay": 0.1}
    recipe |= {"lora_dropout": 0.1} if method == "lora" else {}
    runtime = {"checkpoint_every_steps": 3}
    every = {"shape": SHAPE, "runtime": Runtime(**runtime)}
    done = train(mini, rows, Finetune(**recipe), 0, tmp_path / "whole", **every)
    killed = start(ask(tmp_path, mini, rows, recipe, runtime, out=str(tmp_path / "cut"), kill_at=6))
    assert killed.wait(120) == -signal.SIGKILL
    assert not (tmp_path / "cut/0/model").exists()
    file, seen = tmp_path / "cut/0" / FILE, []
    again = train(
        mini,
        rows,
        Finetune(**recipe),
        0,
        tmp_path / "again",
        **every,
        resume_from=file,
        on_log=lambda row: seen.append(row["step"]),
    )
    assert seen == [7, 8, 9, 10]
    assert [row["step"] for row in again.log] == list(range(1, 11))
    assert [row["loss"] for row in again.log] == pytest.approx([row["loss"] for row in done.log], abs=1e-5)
    assert [row["learning_rate"] for row in again.log] == [row["learning_rate"] for row in done.log]
    assert [row["tokens"] for row in again.log] == [row["tokens"] for row in done.log]
    assert all(a["seconds"] < b["seconds"] for a, b in zip(again.log, again.log[1:], strict=False))
    ours, theirs = weights(tmp_path / "again/model"), weights(tmp_path / "whole/model")
    assert ours.keys() == theirs.keys()
    assert all(np.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
    # What trains, in float32, and Adam's two moments of it; names, the log and the schedule take some KB.
    assert file.stat().st_size < 3 * 4 * again.measurements["trained_parameters"] + 50_000


@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_a_finetune_ends_with_the_same_log_and_bytes_from_whichever_checkpoint_it_goes_on(mini, rows, tmp_path, warmup):
    recipe = Finetune(epochs=4, learning_rate=3e-3, scheduler="cosine", warmup_ratio=warmup, lora_dropout=0.1)
    every = {"shape": SHAPE, "runtime": Runtime(checkpoint_every_steps=1)}
    kept: dict[int, Path] = {}

    def keep(file: Path, step: int) -> None:
        kept[step] = Path(shutil.copy(file, tmp_path / f"{step}.safetensors"))

    def log(done) -> list[dict[str, object]]:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in done.log]

    whole = train(mini, rows, recipe, 0, tmp_path / "whole", **every, on_checkpoint=keep)
    assert list(kept) == list(range(1, 8))
    for step, file in kept.items():
        again = train(mini, rows, recipe, 0, tmp_path / str(step), **every, resume_from=file)
        assert log(again) == log(whole)
        assert again.measurements["resumed_at_step"] == step
        ours, theirs = weights(tmp_path / f"{step}/model"), weights(tmp_path / "whole/model")
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_checkpoints_are_written_by_time_and_seldom_where_that_takes_long(tmp_path):
    now, steps = 0.0, []
    saving = Saving(seconds=60.0, steps=None, clock=lambda: now)
    arguments = training_arguments(Finetune(), 0, tmp_path, 500, SHAPE, Runtime(), Fit(4, 1, False))
    state, control = TrainerState(max_steps=500), TrainerControl()
    saving.on_train_begin(arguments, state, control)
    for step in range(1, 501):
        now += 7.0
        state.global_step = step
        saving.on_step_end(arguments, state, control)
        if control.should_save:
            steps.append(step)
            now += 1.0 if len(steps) < 3 else 20.0
            control.should_save = False
            saving.on_save(arguments, state, control)
    assert steps[:4] == [9, 18, 27, 56]  # 9 steps are 63 s; 29 are the 200 s that 20 s of writing call for
    assert set(np.diff(steps[2:])) == {29}
    assert steps[-1] < 500, "the finished model follows the last step at once"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", ["lora", "attention"])
def test_two_workers_resume_each_others_checkpoints_and_those_of_one(mini, rows, tmp_path, strategy, method):
    recipe = {"method": method, "epochs": 2, "learning_rate": 3e-3}
    one = {"shape": SHAPE, "runtime": Runtime(checkpoint_every_steps=2)}
    done = train(mini, rows, Finetune(**recipe), 0, tmp_path / "one", **one)
    runtime = {"workers_per_finetune": 2, "strategy": strategy, "checkpoint_every_steps": 2}
    asked = ask(tmp_path, mini, rows, recipe, runtime, out=str(tmp_path / "two"))
    assert together(asked) == [0, 0]
    for number, file in enumerate([tmp_path / "one" / FILE, tmp_path / "two/0" / FILE]):
        more = {"out": str(tmp_path / str(number)), "resume_from": str(file)}
        assert together(ask(tmp_path, mini, rows, recipe, runtime, **more)) == [0, 0]
        log = json.loads((tmp_path / f"{number}/0/log.json").read_text())
        assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in done.log], abs=1e-4)
        ours, theirs = weights(tmp_path / f"{number}/0/model"), weights(tmp_path / "one/model")
        assert ours.keys() == theirs.keys()
        assert all(np.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


@pytest.mark.parametrize(
    "runtime", [{"strategy": "ddp"}, {"strategy": "fsdp", "gradient_checkpointing": True}], ids=["ddp", "fsdp"]
)
def test_two_workers_come_to_the_same_as_one(mini, rows, lora, tmp_path, runtime):
    asked = ask(tmp_path, mini, rows, QUICK, {"workers_per_finetune": 2, **runtime}, out=str(tmp_path / "out"))
    assert together(asked) == [0, 0]
    log = json.loads((tmp_path / "out/0/log.json").read_text())
    assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in lora[0].log], abs=1e-4)
    ours, theirs = weights(tmp_path / "out/0/model"), weights(lora[1])
    assert ours.keys() == theirs.keys()
    assert all(np.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)
    assert not (tmp_path / "out/1/model").exists()
    # accelerate drops FSDP on CPU workers without a word.
    assert json.loads((tmp_path / "out/0/strategy.json").read_text()) == runtime["strategy"]
    # Sharded weights are read once: the second worker has none before it gets its part.
    assert json.loads((tmp_path / "out/0/loaded.json").read_text())
    assert json.loads((tmp_path / "out/1/loaded.json").read_text()) == (runtime["strategy"] == "ddp")


@pytest.mark.parametrize(
    ("batch", "workers", "most", "shape"),
    [(16, 1, 4, (4, 4)), (16, 2, 16, (8, 1)), (12, 1, 5, (4, 3)), (7, 1, 4, (1, 7))],
)
def test_micro_batches_and_accumulation_make_up_the_batch(batch, workers, most, shape):
    assert batch_shape(batch, workers, most) == shape
    assert shape[0] * shape[1] * workers == batch


def test_a_batch_that_workers_cannot_share_is_an_error_that_says_what_fits():
    with pytest.raises(InputError, match=r"batch_size 16 .*workers_per_finetune 3; use 1, 2, 4, 8, 16 workers"):
        batch_shape(16, 3, 4)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"lora_targets": ("q_proj", "qproj")},
            r"'qproj' matches no linear module .*expected among down_proj, gate_proj",
        ),
        ({"lora_targets": ("lm_head",)}, "'lm_head' matches no linear module"),
    ],
)
def test_an_adapter_that_vllm_would_refuse_or_that_touches_nothing_is_an_error_before_training(
    mini, rows, tmp_path, recipe, message
):
    with pytest.raises(InputError, match=message):
        train(mini, rows, Finetune(**recipe), 0, tmp_path, **ONE)


def test_an_adapter_that_was_not_saved_whole_is_an_error(mini, tmp_path):
    import torch

    recipe = Finetune()
    model = prepare(load(mini, "lora", gpu=False, fsdp=False), recipe)
    # As a layer does that is wrapped to recompute its activations: peft knows none of its weights by name.
    layers = model.base_model.model.model.layers
    layers[0] = torch.nn.ModuleDict({"wrapped": layers[0]})
    state = {name.replace(".wrapped", ""): weight for name, weight in model.state_dict().items()}
    with pytest.raises(CellError, match="has 8 of the 16 weights that were trained"):
        save(model, state, mini, "lora", tmp_path)


def test_fsdp_shards_with_full_state_dicts_and_checkpoints_activations_itself(tmp_path):
    runtime = Runtime(strategy="fsdp", gradient_checkpointing=True)
    arguments = training_arguments(
        Finetune(), 0, tmp_path, 10, Shape(workers=2, cpus=1, gpus=0), runtime, Fit(4, 2, True)
    )
    assert arguments.fsdp is True
    assert not arguments.gradient_checkpointing
    assert arguments.fsdp_plugin_args["state_dict_type"] == "FULL_STATE_DICT"
    assert arguments.fsdp_plugin_args["activation_checkpointing"] is True
    assert 2 * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == 16
