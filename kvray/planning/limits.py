"""Checks in the plan what a run would refuse: counted rows, settings and resources against model and workers."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from kvray.errors import Path, Problem
from kvray.models import lora
from kvray.models.files import ModelFiles, linear_modules
from kvray.models.memory import Batch, Decoder, Training, decoder_of
from kvray.models.reference import BaseModelRef
from kvray.planning.lengths import Lengths
from kvray.sweep.model import Finetune, Runtime, Sweep
from kvray.tasks.base import Task
from kvray.tasks.lm_eval import LmEval
from kvray.tasks.problems import unknown

FEW = 0.05  # share of an evaluation's prompts up to which prompts too long for the model are a warning, not an error
USUAL_GPU = 24
"""GB of the usual small GPU (A10G, L4, RTX 4090); what needs more is said, as the plan knows no GPU."""


@dataclass(frozen=True)
class Limits:
    """Limits of a base model, as far as its files state them."""

    base: BaseModelRef
    trained: int | None = None  # tokens of a training row
    served: int | None = None  # tokens of prompt and answer in vLLM
    modules: frozenset[str] = frozenset()  # that can get an adapter, each with its parent: ``self_attn.q_proj``
    width: int | None = None  # features of a token between layers
    architecture: str | None = None
    decoder: Decoder | None = None


def limits_of(base: BaseModelRef, files: ModelFiles | None, tensors: Collection[str] = ()) -> Limits:
    """Return a model's limits according to its files and the names of its weights; none of what they do not tell."""
    modules = linear_modules(tensors)
    if files is None or base.api:
        return Limits(base, modules=modules)
    lengths, sizes = (files.trained_length, files.served_length), decoder_of(files.config)
    return Limits(base, *lengths, modules, files.width, files.architecture, sizes)


def resolved(finetune: Finetune, limits: Limits) -> Finetune:
    """Return a finetune with the names of the modules that get an adapter in place of what they are called together.

    Where the model's files do not tell them, attention is :data:`kvray.models.lora.ATTENTION`.
    """
    targets = finetune.lora_targets
    if finetune.method != "lora" or not isinstance(targets, str):
        return finetune
    names = lora.target_names(targets, limits.modules)
    names = names or (lora.ATTENTION if targets == "attention" else (targets,))  # refused, or the model is unreachable
    return finetune.model_copy(update={"lora_targets": names})


def problems(sweep: Sweep, limits: Limits, lengths: Callable[[Task], Lengths]) -> Iterator[Problem]:
    """Yield what the model or the workers would refuse of one variant; its grid is ignored."""
    finetune, runtime = sweep.finetune, sweep.runtime
    if sweep.mixtures:
        yield from _finetune_problems(finetune, runtime, limits)
        if finetune.method == "lora" and not limits.base.api:
            yield from _adapter_problems(sweep, limits)
    if runtime.gpus_per_engine and runtime.tensor_parallel > 1 and runtime.gpus_per_engine != runtime.tensor_parallel:
        text = f"found {runtime.gpus_per_engine:g} with tensor_parallel {runtime.tensor_parallel}"
        yield Problem(("runtime", "gpus_per_engine"), f"{text}; expected as many GPUs, or none given")
    tokens: dict[Path, tuple[int | None, int | None]] = {
        ("finetune", "max_length"): (finetune.max_length, limits.trained if sweep.mixtures else None),
        ("runtime", "max_model_len"): (runtime.max_model_len, limits.served),
    }
    for path, (length, most) in tokens.items():
        if length and most and length > most:
            yield Problem(path, f"found {length:,}; expected at most {most:,}, the context of {limits.base.name}")
    for name, task, seed in sweep.trained_on():
        if text := _long_rows(finetune.max_length, limits, lengths(task.reseeded(seed))):
            yield Problem(("datasets", name), text)
    for name, task in sweep.evaluate.items():
        share, text = _long_prompts(task, runtime, limits, lengths(task))
        if share > FEW:
            yield Problem(("evaluate", name), text)


def warnings(sweep: Sweep, limits: Limits, lengths: Callable[[Task], Lengths]) -> Iterator[Problem]:
    """Yield a finetune that needs a large GPU, and evaluations with a few prompts that are too long for the model."""
    tasks = [task.reseeded(seed) for _, task, seed in sweep.trained_on()]
    longest = max((int(lengths(task).trained.max(initial=0)) for task in tasks), default=0)
    least = least_memory(sweep.finetune, sweep.runtime, limits, longest) if longest else None
    if least is not None and least > USUAL_GPU * 1e9 and sweep.runtime.gpus_per_finetune != 0:
        held = "one GPU" if sweep.runtime.workers_per_finetune == 1 else "each worker's GPU"
        text = (
            f"found {sweep.finetune.method}, which takes at least {least / 1e9:.0f} GB of {held} for {limits.base.name}"
        )
        yield Problem(("finetune", "method"), f"{text} and rows of up to {longest:,} tokens; a smaller one is refused")
    for name, task in sweep.evaluate.items():
        share, text = _long_prompts(task, sweep.runtime, limits, lengths(task))
        if 0 < share <= FEW:
            yield Problem(("evaluate", name), f"{text}; rows that do not fit are left unanswered and are in no number")


def least_memory(finetune: Finetune, runtime: Runtime, limits: Limits, longest: int) -> int | None:
    """Return the bytes that a finetune takes at least of a GPU, with one row at a time; None if the model is unknown.

    As the finetune itself counts them (:func:`kvray.finetune.fit.fit`), without logits, of which there are few.
    """
    if limits.decoder is None:
        return None
    targets = resolved(finetune, limits).lora_targets
    workers = runtime.workers_per_finetune if runtime.strategy == "fsdp" else 1
    targets = () if isinstance(targets, str) else targets
    training = Training(limits.decoder, finetune.method, targets, finetune.lora_rank, True, workers)
    return training.peak(Batch(longest, 1, longest, 0), runtime.gradient_checkpointing is not False)


def _finetune_problems(finetune: Finetune, runtime: Runtime, limits: Limits) -> Iterator[Problem]:
    if limits.base.api:
        if not float(finetune.epochs).is_integer():
            text = f"found {finetune.epochs:g}; expected a whole number for {limits.base.name}"
            yield Problem(("finetune", "epochs"), text)
        return
    workers, rows = runtime.workers_per_finetune, finetune.batch_size
    if rows % workers:
        fits = ", ".join(str(number) for number in range(1, rows + 1) if rows % number == 0)
        text = f"found {workers}, which cannot share finetune.batch_size {rows} evenly; "
        text += f"expected one of {fits}, or a batch_size that is a multiple of {workers}"
        yield Problem(("runtime", "workers_per_finetune"), text)
    if workers > 1 and 0 < (runtime.gpus_per_finetune or 0) < 1:
        text = f"found {runtime.gpus_per_finetune:g} with {workers} workers_per_finetune; "
        text += "expected whole GPUs, since the workers of one finetune cannot share a GPU"
        yield Problem(("runtime", "gpus_per_finetune"), text)


def _adapter_problems(sweep: Sweep, limits: Limits) -> Iterator[Problem]:
    asked, name = sweep.finetune.lora_targets, limits.base.name
    if limits.architecture in lora.UNSERVED and sweep.evaluate and sweep.runtime.engine == "vllm":
        text = f"found lora; vLLM serves no adapters of {limits.architecture}, the class of {name}; expected attention "
        yield Problem(("finetune", "method"), f"{text}or full, or a runtime.engine that does")
    known = sorted({module.rpartition(".")[2] for module in limits.modules})
    for target in () if isinstance(asked, str) or not known else asked:
        if target not in known:
            yield Problem(("finetune", "lora_targets"), unknown(target, known, f"modules of {name}"))
    if not isinstance(asked, str) or lora.target_names(asked, limits.modules):
        return
    if known:
        text = f"found {asked!r}, but {name} has no projections of its own in attention; expected all-linear, or a list"
        yield Problem(("finetune", "lora_targets"), f"{text} among {', '.join(known)}")
    elif asked != "attention" and limits.architecture is not None:
        text = f"found {asked!r}, but the files of {name} do not tell its modules (it has experts, or its weights are "
        yield Problem(("finetune", "lora_targets"), f"{text}no safetensors); expected attention, or a list of names")


def _long_rows(own: int | None, limits: Limits, lengths: Lengths) -> str:
    """Return the message for rows longer than ``own``, the sweep's limit, or the context; empty if all fit."""
    context = limits.trained
    most = own or context
    if most is None or limits.base.api or not lengths.real or int(lengths.trained.max()) <= most:
        return ""
    what = "finetune.max_length" if own else f"the context of {limits.base.name}"
    ways = "make the prompts shorter"
    if own and (context is None or context > own):
        ways += f", or raise finetune.max_length (the model takes {context:,})" if context else ", or raise it"
    return (
        f"found rows of up to {int(lengths.trained.max()):,} tokens, prompt and answer (too long: "
        f"{_of(int((lengths.trained > most).sum()), lengths)}); expected at most {most:,}, {what}. Rows are never "
        f"cut: {ways}"
    )


def _long_prompts(task: Task, runtime: Runtime, limits: Limits, lengths: Lengths) -> tuple[float, str]:
    """Return the share of an evaluation's prompts that leave no room for an answer, and the message for it."""
    room = [length for length in (runtime.max_model_len, limits.served) if length]
    if not room or limits.base.api:
        return 0.0, ""
    most = min(room)
    what = "runtime.max_model_len" if runtime.max_model_len == most else f"the context of {limits.base.name}"
    if isinstance(task, LmEval):
        length = task.most_tokens()
        least = f"length {length:,}" if length and length <= most else f"{most:,}, {what}"
        room_left = min(most, length or most)
        if (written := task.max_tokens or 0) >= room_left:
            return 1.0, f"found max_tokens {written:,}; expected less than {least}: the prompt needs room too"
        if (longest := max(task.lengths(), default=0)) > room_left:
            text = f"found max_seq_lengths of up to {longest:,}; expected at most {least}"
            return 1.0, f"{text}: a longer prompt would lose its beginning"
        return 0.0, ""
    both = lengths.asked + (task.MAX_OUTPUT_TOKENS if lengths.written is None else lengths.written)
    over = int((both > most).sum())
    if not lengths.real or not over:
        return 0.0, ""
    longest = int(lengths.asked[both.argmax()])
    return (
        over / len(lengths.asked),
        f"found prompts of up to {longest:,} tokens, and {int(both.max()) - longest} for the answer "
        f"(too long: {_of(over, lengths)}); expected at most {most:,} together, {what}; ask with shorter prompts",
    )


def _of(over: int, lengths: Lengths) -> str:
    number = len(lengths.asked)
    return f"{over:,} of {number:,}" if lengths.whole else f"{over:,} of {number:,} that were counted"
