"""Pretraining of kvray-tiny, on a CPU or a GPU, resumable; needs torch and transformers, not Ray.

The curriculum moves on by the running accuracy, so a machine of any speed walks the same stages. Since the batches
depend on it, the loop is written out, where finetuning uses transformers' Trainer.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvray.console import say
from kvray.errors import InputError
from kvray.finetune.pretrain import tokenizer as tiny_tokenizer
from kvray.finetune.pretrain.curriculum import SMALL_ALPHABET, Curriculum, Stage, advance


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights.

    Attributes:
        tokens: training tokens in all, the padding included.
        batch_tokens: tokens per optimizer step.
        learning_rate: peak, after ``warmup`` steps; falls to zero over the last ``decay`` share of the tokens.
        layers, width, heads, intermediate: the Mistral architecture; width / heads must be 32, which vLLM takes.
    """

    seed: int = 0
    tokens: int = 28_000_000
    batch_tokens: int = 8192
    learning_rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.25
    weight_decay: float = 0.01
    layers: int = 4
    width: int = 128
    heads: int = 4
    intermediate: int = 384


def model_of(recipe: Recipe, tokenizer: Any) -> Any:
    """Return an untrained ``MistralForCausalLM`` with tied embeddings."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(recipe.seed)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.width // recipe.heads,
        max_position_embeddings=32768,
        sliding_window=None,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rms_norm_eps=1e-5,
    )
    return MistralForCausalLM(config)


def optimizer_of(model: Any, recipe: Recipe) -> Any:
    """Return AdamW, with weight decay on the matrices alone."""
    import torch

    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def pretrain(
    out: Path,
    recipe: Recipe,
    device: str = "auto",
    save_every: int = 200,
    stop_after: int | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Train and save a model directory: weights (safetensors), tokenizer, chat template.

    The state (weights, optimizer, random state, stage) is saved under ``<out>.state`` every ``save_every`` steps and
    after the ``stop_after`` steps of this call; the next call resumes. ``device`` is "auto", "cpu" or "cuda";
    ``threads`` of None takes torch's default. Returns the record for the card: step, tokens, seconds, device, running
    accuracies, stage.

    Raises:
        InputError: the state on disk is of another recipe, or the width and heads do not fit.
    """
    import torch

    if recipe.width != 32 * recipe.heads:
        raise InputError(f"width {recipe.width} over {recipe.heads} heads: head size must be 32")
    if threads is not None:
        torch.set_num_threads(threads)
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer.save(out)
    model = model_of(recipe, tokenizer).to(place)
    optimizer = optimizer_of(model, recipe)
    curriculum = Curriculum(tokenizer, recipe.seed)
    steps = recipe.tokens // recipe.batch_tokens
    state_dir = out.with_name(out.name + ".state")
    step, seconds, stage, running = _restore(state_dir, recipe, model, optimizer, curriculum)
    started = time.monotonic() - seconds
    first = step
    while step < steps and (stop_after is None or step - first < stop_after):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, steps, recipe)
        batch = curriculum.batch(stage, recipe.batch_tokens)
        found = _step(model, optimizer, batch, curriculum.symbols[: stage.alphabet], place)
        for name, value in found.items():
            if name == "loss" or value >= 0:
                running[name] = value if name not in running else 0.95 * running[name] + 0.05 * value
        before = stage
        stage = advance(stage, running.get("recall", 0.0), running.get("tasks", 0.0), len(curriculum.symbols))
        if before.name == "symbols" and stage.name == "widening":
            _renew(model, curriculum.symbols[:SMALL_ALPHABET])
        step += 1
        if step % 50 == 0 or step == steps:
            _say(step, steps, recipe, time.monotonic() - started, stage, running)
        if step % save_every == 0 or step == steps or (stop_after is not None and step - first == stop_after):
            _save(state_dir, recipe, model, optimizer, curriculum, step, time.monotonic() - started, stage, running)
    model.to("cpu").save_pretrained(out)
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes them for the owner alone
    return {
        "step": step,
        "tokens": step * recipe.batch_tokens,
        "seconds": round(time.monotonic() - started),
        "device": torch.cuda.get_device_name() if place == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)",
        "stage": asdict(stage),
        **{name: round(value, 3) for name, value in running.items()},
    }


def _say(step: int, steps: int, recipe: Recipe, seconds: float, stage: Stage, running: dict[str, float]) -> None:
    tokens = step * recipe.batch_tokens
    rate = tokens / seconds
    left = (steps * recipe.batch_tokens - tokens) / rate
    say(
        f"kvray: pretrain: step {step}/{steps}, {tokens / 1e6:.1f}M tokens, {rate:.0f} tokens/s, "
        f"{left / 60:.0f} min left; {stage.name}, alphabet {stage.alphabet}, numbers {stage.numbers}, "
        f"units {stage.units:.1f}; " + ", ".join(f"{name} {value:.3f}" for name, value in running.items())
    )


def _schedule(step: int, steps: int, recipe: Recipe) -> float:
    rise = min(1.0, (step + 1) / recipe.warmup)
    fall = min(1.0, (steps - step) / max(1.0, recipe.decay * steps))
    return rise * fall


def _renew(model: Any, learned: Any) -> None:
    """Draw the embeddings of all other tokens anew, as long as those that were learned.

    The first stage has pushed them all the same way, away from every answer (docs/LOG.md).
    """
    import torch

    weight = model.model.embed_tokens.weight
    with torch.no_grad():
        known = weight[torch.from_numpy(learned).to(weight.device)]
        fresh = torch.randn_like(weight) * (known - known.mean(0)).std()
        fresh[torch.from_numpy(learned).to(weight.device)] = known
        weight.copy_(fresh)


def _step(model: Any, optimizer: Any, batch: tuple[Any, Any, Any], alphabet: Any, place: str) -> dict[str, float]:
    """Take one optimizer step, with logits only where the weight is above zero.

    While the alphabet grows, recall tables choose among it alone. Otherwise later symbols are pushed away from every
    answer, so towards one another, and cannot be written once they come (docs/LOG.md).
    """
    import torch

    ids, weights, kinds = (torch.from_numpy(part).to(place) for part in batch)
    with torch.autocast(place, dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        rows, columns = torch.nonzero(weights[:, 1:], as_tuple=True)
        logits = model.lm_head(hidden[rows, columns]).float()
    outside = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    outside[torch.from_numpy(alphabet).to(place)] = False
    if len(alphabet) > SMALL_ALPHABET:
        logits = logits.masked_fill((kinds[rows] == 0)[:, None] & outside, -torch.inf)
    targets = ids[rows, columns + 1]
    counted = weights[rows, columns + 1]
    loss = (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * counted).sum() / counted.sum()
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    right = (logits.argmax(-1) == targets) & (counted >= 1)
    found = {"loss": float(loss.detach())}
    for index, name in enumerate(("recall", "tasks")):
        of_kind = (kinds[rows] == index) & (counted >= 1)
        total = int(of_kind.sum())
        found[name] = float((right & of_kind).sum()) / total if total else -1.0
    return found


def _save(
    directory: Path,
    recipe: Recipe,
    model: Any,
    optimizer: Any,
    curriculum: Curriculum,
    step: int,
    seconds: float,
    stage: Stage,
    running: dict[str, float],
) -> None:
    """Write tensors to a new file, then the JSON that names it: the JSON's existence means the state is whole."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": value.contiguous() for name, value in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in state.items()}
    file = directory / f"step-{step:08d}.safetensors"
    save_file(tensors, file)
    state = {
        "file": file.name,
        "recipe": asdict(recipe),
        "step": step,
        "seconds": seconds,
        "stage": asdict(stage),
        "running": running,
        "random": curriculum.rng.bit_generator.state,
    }
    temporary = directory / ".state.json"
    temporary.write_text(json.dumps(state))
    temporary.replace(directory / "state.json")
    for old in directory.glob("step-*.safetensors"):
        if old != file:
            old.unlink()


def _restore(
    directory: Path, recipe: Recipe, model: Any, optimizer: Any, curriculum: Curriculum
) -> tuple[int, float, Stage, dict[str, float]]:
    import torch
    from safetensors.torch import load_file

    path = directory / "state.json"
    if not path.is_file():
        return 0, 0.0, Stage(), {}
    state = json.loads(path.read_text())
    if state["recipe"] != asdict(recipe):
        raise InputError(
            f"{directory} holds the state of another recipe; delete it to start afresh, or pass its values"
        )
    tensors = load_file(directory / state["file"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    saved = optimizer.state_dict()
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            saved["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(saved)
    curriculum.rng.bit_generator.state = state["random"]
    say(f"kvray: pretrain: going on from step {state['step']}")
    return state["step"], state["seconds"], Stage(**state["stage"]), state["running"]
