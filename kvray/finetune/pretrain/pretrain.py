"""Pretraining of kvray-tiny, on a CPU or a GPU, resumable; needs torch and transformers, not Ray.

The curriculum moves on by the running accuracy, so a machine of any speed walks the same stages. Since the batches
depend on it, the loop is written out, where finetuning uses transformers' Trainer.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvray.console import say
from kvray.errors import InputError
from kvray.finetune.pretrain.curriculum import SMALL_ALPHABET, Curriculum, Stage, advance
from kvray.finetune.pretrain.tokenizer import build


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights.

    ``tokens`` is all training tokens, padding included, ``batch_tokens`` those of an optimizer step; ``learning_rate``
    is reached after ``warmup`` steps and falls to zero over the last ``decay`` share of the tokens. The architecture is
    Mistral's; ``width / heads`` must be 32, which vLLM takes.
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
    accuracies, stage. Raises InputError if the state on disk is of another recipe, or the width and heads do not fit.
    """
    import torch

    if recipe.width != 32 * recipe.heads:
        raise InputError(f"width {recipe.width} over {recipe.heads} heads: head size must be 32")
    if threads is not None:
        torch.set_num_threads(threads)
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    out.mkdir(parents=True, exist_ok=True)
    state = out.with_name(f"{out.name}.state") / "state.safetensors"
    tokenizer = build()
    tokenizer.save_pretrained(out)
    training = _Training(recipe, tokenizer, place)
    training.restore(state)
    started = time.monotonic() - training.seconds
    steps = recipe.tokens // recipe.batch_tokens
    last = steps if stop_after is None else min(steps, training.step + stop_after)
    while training.step < last:
        training.advance(steps)
        training.seconds = time.monotonic() - started
        if training.step % 50 == 0 or training.step == steps:
            say(training.progress(steps))
        if training.step % save_every == 0 or training.step == last:
            training.save(state)
    training.model.to("cpu").save_pretrained(out)
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes them for the owner alone
    return {
        "step": training.step,
        "tokens": training.step * recipe.batch_tokens,
        "seconds": round(time.monotonic() - started),
        "device": torch.cuda.get_device_name() if place == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)",
        "stage": asdict(training.stage),
        **{name: round(value, 3) for name, value in training.running.items()},
    }


class _Training:
    """A model, its optimizer and curriculum after ``step`` steps; ``running`` averages the loss and accuracies."""

    def __init__(self, recipe: Recipe, tokenizer: Any, place: str) -> None:
        import torch
        from transformers import MistralConfig, MistralForCausalLM

        self.recipe = recipe
        self.place = place
        self.step, self.seconds, self.stage = 0, 0.0, Stage()
        self.running: dict[str, float] = {}
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
        self.model: Any = MistralForCausalLM(config).to(place)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        norms = [p for p in self.model.parameters() if p.ndim != 2]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
        self.optimizer: Any = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
        self.curriculum = Curriculum(tokenizer, recipe.seed)

    def advance(self, steps: int) -> None:
        rise = min(1.0, (self.step + 1) / self.recipe.warmup)
        fall = min(1.0, (steps - self.step) / max(1.0, self.recipe.decay * steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * (rise * fall)
        for name, value in self._optimize().items():
            self.running[name] = value if name not in self.running else 0.95 * self.running[name] + 0.05 * value
        before, symbols = self.stage, self.curriculum.symbols
        self.stage = advance(before, self.running.get("recall", 0.0), self.running.get("tasks", 0.0), len(symbols))
        if before.name == "symbols" and self.stage.name == "widening":
            self._renew_embeddings(symbols[:SMALL_ALPHABET])
        self.step += 1

    def progress(self, steps: int) -> str:
        tokens, stage = self.step * self.recipe.batch_tokens, self.stage
        rate = tokens / self.seconds
        left = (steps * self.recipe.batch_tokens - tokens) / rate
        return (
            f"kvray: pretrain: step {self.step}/{steps}, {tokens / 1e6:.1f}M tokens, {rate:.0f} tokens/s, "
            f"{left / 60:.0f} min left; {stage.name}, alphabet {stage.alphabet}, numbers {stage.numbers}, "
            f"units {stage.units:.1f}; " + ", ".join(f"{name} {value:.3f}" for name, value in self.running.items())
        )

    def save(self, path: Path) -> None:
        """Write the state to one file, whole or not at all: tensors, and the rest as JSON in its metadata."""
        from safetensors.torch import save_file

        tensors = {f"model.{name}": value.contiguous() for name, value in self.model.named_parameters()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in state.items()}
        document = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "stage": asdict(self.stage),
            "running": self.running,
            "random": self.curriculum.rng.bit_generator.state,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        save_file(tensors, temporary, {"state": json.dumps(document)})
        temporary.replace(path)

    def restore(self, path: Path) -> None:
        """Resume from a saved state, if there is one; InputError if it is of another recipe."""
        from safetensors import safe_open

        if not path.is_file():
            return
        with safe_open(path, "pt") as file:
            document = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
        if document["recipe"] != asdict(self.recipe):
            raise InputError(
                f"{path.parent} holds the state of another recipe; delete it to start afresh, or pass its values"
            )
        optimizer = self.optimizer.state_dict()
        for key, value in tensors.items():
            part, name = key.split(".", 1)
            if part == "optimizer":
                index, name = name.split(".")
                optimizer["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(optimizer)
        weights = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
        self.model.load_state_dict(weights, strict=False)  # the output layer shares its weights with the embeddings
        self.curriculum.rng.bit_generator.state = document["random"]
        self.step, self.seconds, self.running = document["step"], document["seconds"], document["running"]
        self.stage = Stage(**document["stage"])
        say(f"kvray: pretrain: going on from step {self.step}")

    def _optimize(self) -> dict[str, float]:
        """Take an optimizer step and return its loss and accuracies; logits only where the weight is above zero.

        While the alphabet grows, recall tables choose among it alone. Otherwise later symbols are pushed away from
        every answer, so towards one another, and cannot be written once they come (docs/LOG.md).
        """
        import torch

        batch = self.curriculum.batch(self.stage, self.recipe.batch_tokens)
        ids, weights, kinds = (torch.from_numpy(part).to(self.place) for part in batch)
        with torch.autocast(self.place, dtype=torch.bfloat16):
            hidden = self.model.model(input_ids=ids).last_hidden_state[:, :-1]
            rows, columns = torch.nonzero(weights[:, 1:], as_tuple=True)
            logits = self.model.lm_head(hidden[rows, columns]).float()
        if self.stage.alphabet > SMALL_ALPHABET:
            outside = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
            outside[torch.from_numpy(self.curriculum.symbols[: self.stage.alphabet]).to(self.place)] = False
            logits = logits.masked_fill((kinds[rows] == 0)[:, None] & outside, -torch.inf)
        targets, counted = ids[rows, columns + 1], weights[rows, columns + 1]
        loss = (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * counted).sum() / counted.sum()
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        measured = {"loss": float(loss.detach())}
        right = logits.argmax(-1) == targets
        for index, name in enumerate(("recall", "tasks")):
            of_kind = (kinds[rows] == index) & (counted >= 1)
            if of_kind.any():
                measured[name] = float((right & of_kind).sum()) / int(of_kind.sum())
        return measured

    def _renew_embeddings(self, learned: Any) -> None:
        """Draw all other embeddings anew, spread like these: stage one pushed them all one way (docs/LOG.md)."""
        import torch

        weight = self.model.model.embed_tokens.weight
        with torch.no_grad():
            known = weight[torch.from_numpy(learned).to(weight.device)]
            fresh = torch.randn_like(weight) * (known - known.mean(0)).std()
            fresh[torch.from_numpy(learned).to(weight.device)] = known
            weight.copy_(fresh)
