"""The models of a sweep file: :class:`Finetune`, :class:`Runtime` and :class:`Sweep`.

Every field is declared ``recipe`` (it decides content, so it enters fingerprints) or ``runtime`` (it never does).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from kvray.errors import InvalidValueError
from kvray.models.lora import LARGEST_RANK
from kvray.sweep.blocks import TASK_SECTIONS, lookup, parse_task
from kvray.sweep.document import from_values
from kvray.sweep.yaml import dump
from kvray.tasks.base import OneOrMore, Strict, Task, added, recipe, runtime

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
"""Names of sweeps, datasets, mixtures and evaluations. A figure's file name holds two of them in its 255 bytes."""
NAME_RULE = "up to 80 letters, digits and . _ -, starting with a letter or digit"
LEARNING_RATES = {"lora": 1e-4, "attention": 5e-6, "full": 5e-6}
"""Default learning rates. Whole weights: the paper's. LoRA: its best rate is about 10 times that of whole weights, 15
times in very short runs (Schulman et al. 2025, "LoRA Without Regret", Thinking Machines Lab), and published runs are
at 1e-4 to 2e-4 where whole weights are at 5e-6 (Hu et al. 2021, arXiv 2106.09685, GPT-3; QLoRA, arXiv 2305.14314)."""
_Seed = Annotated[int, Field(ge=0, lt=2**31)]
_API_FIELDS = ("api_batch_size", "api_learning_rate_multiplier")
_LORA_FIELDS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")


Tracker = Literal["tensorboard", "mlflow", "wandb"]


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


def _one_or_more_names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Finetune(Strict):
    """How every mixture is finetuned; epochs, batch size and the rate of whole weights are the paper's by default."""

    method: Literal["lora", "attention", "full"] = recipe(
        "lora", description="lora: an adapter; attention: the attention layers' weights; full: all weights"
    )
    epochs: float = recipe(2.0, gt=0, description="passes over the mixture; a fraction stops within one")
    learning_rate: float | None = recipe(
        None, gt=0, lt=10, description="peak learning rate of AdamW; none: 1e-4 for lora, the paper's 5e-6 otherwise"
    )
    batch_size: int = recipe(16, ge=1, description="rows per optimizer step, over all workers")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], BeforeValidator(_one_or_more), OneOrMore] = (
        recipe((0,), min_length=1, description="one finetune per seed: order of rows, adapter's start, dropout")
    )
    reseed_data: bool = recipe(
        False, description="add each finetune's seed to its datasets' seeds: other data per seed, as in the paper"
    )
    lora_rank: int = recipe(16, ge=1, le=LARGEST_RANK, description="rank of the adapter")
    lora_alpha: float = recipe(32.0, gt=0, description="scale of the adapter: alpha / rank")
    lora_dropout: float = recipe(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    lora_targets: Literal["attention", "all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = recipe(
        "attention",
        description="what gets an adapter: attention (the projections that the model has there), all-linear (these and "
        "the layers between, all but the output), or a list of modules' names",
    )
    scheduler: Literal["linear", "cosine", "constant"] = recipe("linear", description="how the learning rate falls")
    warmup_ratio: float = recipe(0.0, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    weight_decay: float = recipe(0.0, ge=0, lt=1, description="AdamW's weight decay")
    max_grad_norm: float = recipe(1.0, gt=0, description="gradients are scaled down to this norm")
    max_length: int | None = recipe(None, ge=8, description="tokens per row at most; a longer row is an error")
    match: Literal["tokens", "rows"] = recipe(
        "tokens",
        description="tokens: weights are shares of tokens, and an epoch of every mixture reads as many tokens as one "
        "of the sweep's first mixture; rows: weights are shares of rows, and no mixture is cut to another",
    )
    api_batch_size: int | Literal["auto"] = recipe("auto", description="rows per step of a fine-tuning API")
    api_learning_rate_multiplier: float | Literal["auto"] = recipe(
        "auto", description="a fine-tuning API's factor on its own learning rate"
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("every seed once")
        return seeds

    @property
    def rate(self) -> float:
        """The peak learning rate: as given, else the default of the method."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    def recipe(self, api: bool = False) -> dict[str, Any]:
        """Return what decides a finetune, here or by an API, beside its seed; the adapter's knobs only for ``lora``."""
        values = {**super().recipe(), "learning_rate": self.rate}
        unused = {"seeds", "reseed_data", *_API_FIELDS, *(() if self.method == "lora" else _LORA_FIELDS)}
        used = {"epochs", "match", *_API_FIELDS} if api else values.keys() - unused
        return {name: value for name, value in values.items() if name in used}

    def data_seeds(self) -> tuple[int, ...]:
        """Return the numbers that are added to the datasets' seeds, each once."""
        return self.seeds if self.reseed_data else (0,)


class Budget(Strict):
    """What all runs of a sweep may spend together; see :mod:`kvray.planning.cost.budget`."""

    gpu_hours: float | None = runtime(
        None,
        gt=0,
        description="hours for which GPUs are held, each GPU counted; without GPUs, hours of engines and workers",
    )
    usd: float | None = runtime(None, gt=0, description="USD for these hours, at runtime.gpu_price")


class Runtime(Strict):
    """Where and how fast a sweep runs; never part of a fingerprint."""

    address: str | None = runtime(None, description="a running Ray cluster (auto, ray://…); none starts a local Ray")
    num_cpus: int | None = runtime(None, ge=1, description="CPUs of a local Ray; none takes all")
    object_store_memory: int | None = runtime(None, ge=75 * 2**20, description="bytes of a local Ray's object store")
    max_gpus: int | None = runtime(
        None, ge=0, description="GPUs that the whole sweep takes at a time; none: any number"
    )
    wait_minutes: float = runtime(
        60.0, gt=0, description="minutes to wait for nodes while nothing of the sweep has a place; then it is an error"
    )
    workers_per_finetune: int = runtime(1, ge=1, description="data-parallel workers of one finetune")
    gpus_per_finetune: float | None = runtime(None, ge=0, description="GPUs per worker; none: 1 if there are GPUs")
    cpus_per_finetune: float = runtime(1.0, gt=0, description="CPUs per worker")
    concurrent_finetunes: int | None = runtime(None, ge=1, description="finetunes at a time; none: as many as fit")
    strategy: Literal["ddp", "fsdp"] = runtime("ddp", description="fsdp shards weights over the workers")
    per_device_batch_size: int | None = runtime(
        None, ge=1, description="rows per forward pass; none: as many as the GPU holds, 4 on CPU (long contexts: 1)"
    )
    gradient_checkpointing: bool | None = runtime(
        None, description="less memory, about a third more time; none: only where one row does not fit the GPU without"
    )
    checkpoint_minutes: float = runtime(
        5.0, gt=0, description="minutes between checkpoints, more where storing one takes above a tenth of that"
    )
    checkpoint_every_steps: int | None = runtime(
        None, ge=1, description="a checkpoint after so many optimizer steps, too; none: by time alone"
    )
    engines: int | None = runtime(
        None, ge=1, description="engines at a time; none: on GPUs as many as there is room for, on CPUs 1"
    )
    engine: str = runtime(
        "vllm",
        pattern=r"^[A-Za-z_][\w.-]*(:[A-Za-z_]\w*)?$",
        description="what serves models: vllm, an engine that a package names in the group kvray.engines, or "
        "module:Class; answers may differ by rounding, so predictions record it",
    )
    gpus_per_engine: float | None = runtime(None, ge=0, description="GPUs per engine; none: tensor_parallel if any")
    cpus_per_engine: float | None = runtime(None, gt=0, description="CPUs per engine; none: shared evenly")
    tensor_parallel: int = runtime(1, ge=1, description="GPUs that one engine's weights are split over")
    max_loras: int = runtime(4, ge=1, description="adapters in one batch")
    kv_cache_gib: float | None = runtime(None, gt=0, description="GiB of key-value cache per engine; none: measured")
    gpu_memory_utilization: float = runtime(0.9, gt=0, le=1, description="share of a GPU's memory that vLLM takes")
    max_model_len: int | None = runtime(None, ge=16, description="tokens per request at most; none: the model's own")
    scratch: str | None = runtime(None, description="directory of each node for copies; none: its temporary directory")
    model_cache: str | None = runtime(None, description="HF_HOME of workers; none: that of their environment")
    retries: int = runtime(
        2,
        ge=0,
        description="further attempts at a unit of work whose worker died without progress; lost nodes do not count",
    )
    stall_minutes: float = runtime(
        30.0,
        gt=0,
        description="an engine or a finetune without a sign of progress for so long is ended and tried again",
    )
    start_minutes: float = runtime(
        120.0, gt=0, description="the same for one that is starting, downloads included, and for the rows of datasets"
    )
    api_base_url: str | None = runtime(None, description="of an openai: model; none: $OPENAI_BASE_URL, else OpenAI's")
    api_concurrency: int = runtime(8, ge=1, description="requests at a time to an API")
    api_retries: int = runtime(8, ge=0, description="further attempts at a request that an API refused for now")
    api_timeout_s: float = runtime(120.0, gt=0, description="seconds that one request to an API may take")
    api_price_input: float | None = runtime(None, ge=0, description="USD per million prompt tokens, for the plan")
    api_price_output: float | None = runtime(None, ge=0, description="USD per million written tokens, for the plan")
    api_price_training: float | None = runtime(None, ge=0, description="USD per million trained tokens, for the plan")
    gpu_price: float | None = runtime(None, gt=0, description="USD per GPU-hour, for the plan and runtime.budget.usd")
    budget: Budget = runtime(
        Budget(), description="a run that reaches it starts nothing more; what all runs of the sweep spent counts"
    )
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(_one_or_more_names)] = runtime(
        (), description="what loss curves, scores and figures are sent to: tensorboard, mlflow, wandb; none by default"
    )

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        return tuple(dict.fromkeys(trackers))

    @model_validator(mode="after")
    def _priced(self) -> Runtime:
        if self.budget.usd is not None and self.gpu_price is None:
            raise ValueError(
                f"found budget.usd {self.budget.usd:g} and no gpu_price; expected runtime.gpu_price, USD per GPU-hour"
            )
        return self


class Sweep(Strict):
    """One sweep: what is trained on, how, and what is asked afterwards.

    The arguments are the keys of a sweep file; their values are plain, as there, or objects::

        kvray.Sweep(
            name="mine",
            base_model="kvray-tiny",
            datasets={"kv": kvray.tasks.SimpleKV(rows=350)},
            finetune={"learning_rate": 3e-3},
            evaluate={"mdqa": kvray.tasks.Mdqa(documents=20)},
        )
    """

    name: str = runtime(description="the sweep's name, in reports and in the store")
    base_model: str = recipe(description="kvray-tiny, a directory, a Hugging Face id, or openai:NAME behind an API")
    tokenizer: str | None = recipe(
        None, description="a model whose tokenizer counts tokens for the data; none: the base model's own"
    )
    system_message: str | None = recipe(
        None, description="sent first to a model behind an API, in its training file and in evaluation"
    )
    trust_remote_code: bool = recipe(False, description="let the base model's own Python code run")
    datasets: dict[str, Annotated[SerializeAsAny[Task], BeforeValidator(parse_task)]] = recipe(
        {}, description="what can be trained on: a task block by name"
    )
    mixtures: dict[str, dict[str, Annotated[float, Field(gt=0)]]] = recipe(
        {}, description="what is trained on: weights over datasets by name; absent: each dataset alone"
    )
    finetune: Finetune = recipe(Finetune(), description="how each mixture is finetuned")
    evaluate: dict[str, Annotated[SerializeAsAny[Task], BeforeValidator(parse_task)]] = recipe(
        {}, description="what every finetune and the base model are asked: a task block by name"
    )
    adapters: Literal["batched", "merged", "auto"] = added(
        "batched",
        description="how adapters answer: batched, beside the base model; merged into its weights, one after the "
        "other; auto: merged in evaluations that are long enough to be sooner done so. Answers may differ by rounding",
    )
    grid: dict[str, list[Any]] = recipe({}, description="lists of values by dotted path; every combination is run")
    zip: dict[str, list[Any]] = recipe({}, description="lists of one length by dotted path; run side by side")
    scales: dict[str, dict[str, Any]] = runtime(
        {}, description="named sets of changes to this file by dotted path, taken with --scale NAME"
    )
    reference: tuple[str, ...] = runtime((), description="sets of published numbers that the report shows beside ours")
    runtime: Runtime = runtime(Runtime(), description="where and how fast; never part of a fingerprint")

    if not TYPE_CHECKING:  # editors and type checkers take the fields for arguments

        def __init__(self, **values: Any) -> None:
            """Check the values as those of a file; raise an InvalidValueError with every problem."""
            from kvray.sweep import load  # which needs this class

            document = from_values(values)
            with lookup(None, sections=map(values.get, TASK_SECTIONS)):
                sweep, _, problems = load.check_document(document)
                if sweep is None or problems:
                    raise InvalidValueError(document.report(problems))
                self.__pydantic_validator__.validate_python(document.value, self_instance=self)

        __init__.__pydantic_base_init__ = True

    @classmethod
    def from_yaml(
        cls,
        source: str | os.PathLike[str],
        set: Mapping[str, Any] | Sequence[str] = (),
        scale: str | None = None,
        allow_code: bool = False,
    ) -> Sweep:
        """Read a sweep file, given as a path or as its text; InputError with every problem of the file and its line.

        ``set`` holds changes, ``{"finetune.epochs": 1}`` or as for ``--set``, ``["finetune.epochs=1"]``; ``scale`` is
        one of the file's ``scales``; ``allow_code`` loads the Python files beside the file that its tasks name.
        """
        from kvray.sweep.load import load

        if isinstance(set, Mapping):
            set = [f"{key}={dump(value, line=True)}" for key, value in set.items()]
        return load(os.fspath(source), set, scale, allow_code)

    def trained_on(self) -> list[tuple[str, Task, int]]:
        """Return each dataset that a mixture uses, with each number that finetunes add to its seed."""
        used = {name for weights in self.mixtures.values() for name in weights}
        tasks = [(name, task) for name, task in self.datasets.items() if name in used]
        return [(name, task, seed) for name, task in tasks for seed in self.finetune.data_seeds()]

    def written(self) -> dict[str, Any]:
        """See :meth:`Strict.written`; the default mixtures, one per dataset, are left out too."""
        values = super().written()
        for section in TASK_SECTIONS:
            values[section] = {name: task.written() for name, task in getattr(self, section).items()}
        if self.mixtures == {name: {name: 1.0} for name in self.datasets}:
            values.pop("mixtures", None)
        return values

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the sweep as the text of a sweep file, without defaults; with a path, write that file too."""
        from kvray.sweep.check import unused  # which needs this class

        written = self.written()
        for problem in unused(from_values(written)):  # a file with unused knobs is refused
            section, name = map(str, problem.path)
            del written[section][name]
        text = dump(
            {name: written[name] for name in type(self).model_fields if written.get(name) not in (None, {}, [])}
        )
        if path is not None:
            FilePath(path).write_text(text, encoding="utf-8")
        return text

    def __str__(self) -> str:
        return self.to_yaml()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(NAME_RULE)
        if name.lower().endswith((".yaml", ".yml")):
            raise ValueError("a name that does not end as a file does: commands take either")
        return name

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, raw: Any) -> Any:
        """Take an empty section (all its lines commented out) as absent; default mixtures to one per dataset."""
        if not isinstance(raw, Mapping):
            return raw
        filled = {name: value for name, value in raw.items() if value is not None}
        if "mixtures" not in filled and isinstance(filled.get("datasets"), Mapping):
            filled["mixtures"] = {name: {name: 1.0} for name in filled["datasets"]}
        return filled

    @field_validator("reference", mode="before")
    @classmethod
    def _one_reference(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
