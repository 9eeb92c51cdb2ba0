"""How far a finetune can move a model at most: by its rate, its method and its number of updates. No model is read.

AdamW moves a weight by about the learning rate at most per update (Kingma & Ba 2015, arXiv 1412.6980, section 2.1), so
over a finetune by the sum of its rates, ``s``. Inputs of a layer are normalized, so their features are of size 1, ``n``
of them (the width). What a layer adds to each of its outputs, themselves of about that size, is then at most

- ``n s`` where its weights are trained: the bound by which rates fall with the width (Yang et al. 2022, arXiv
  2203.03466);
- ``(alpha / r) |B| |A x|``, summed over the rank ``r``, for LoRA. B starts at zero and A even between plus and minus
  ``1 / sqrt(n)`` (peft), so ``A x`` has ``r`` features of size ``1 / sqrt(3)``, and A's weights move by ``s``
  themselves: ``alpha (s / sqrt(3) + n s^2)``.

Far below 1 little can change. At 0.45 the paper's finetune learns (attention, 5e-6, 44 updates, width 4,096); at 0.30
kvray-tiny's changes nothing beyond noise (LoRA, 3e-4, 44 updates, width 128; docs/LOG.md has more). LoRA at the paper's
rate has 0.004.
"""

import math
from collections.abc import Iterable, Iterator

from kvray.planning.artefacts import Artefact, FinetuneJob
from kvray.sweep.model import Finetune

ENOUGH = 1 / 3
"""Least movement at which a finetune is known to learn; between the calibrations above, of which there are few."""
USUAL_WIDTH = 4096
"""Of a 7B model; taken where the model's files are out of reach."""


def updates(finetune: Finetune, rows: int) -> int:
    """Return the number of optimizer steps on a mixture whose epoch has ``rows``, as ``finetune.batches.schedule``."""
    return max(1, round(finetune.epochs * math.ceil(rows / finetune.batch_size)))


def movement(finetune: Finetune, steps: int, width: int) -> float:
    """Return how far each output of a layer can move at most, as a share of its size; see the module's docstring."""
    return _moved(finetune, _path(finetune, finetune.rate, steps), width)


def sufficient_rate(finetune: Finetune, steps: int, width: int) -> float:
    """Return the learning rate that moves a model by twice :data:`ENOUGH`, rounded up to one digit."""
    goal = 2 * ENOUGH
    if finetune.method == "lora":  # the root of alpha (s / sqrt(3) + n s^2) = goal
        first = finetune.lora_alpha / math.sqrt(3)
        path = 2 * goal / (first + math.sqrt(first**2 + 4 * finetune.lora_alpha * width * goal))
    else:
        path = goal / width
    rate = path / _path(finetune, 1.0, steps)
    digit = 10.0 ** math.floor(math.log10(rate))
    return math.ceil(round(rate / digit, 6)) * digit


def too_gentle(artefacts: Iterable[Artefact], width: int | None) -> Iterator[str]:
    """Yield a warning per kind of finetune that can hardly change the model: of its mixture with the fewest updates.

    ``width`` is the model's number of features, None if unknown.
    """
    least: dict[str, tuple[float, int, FinetuneJob, str]] = {}
    n = width or USUAL_WIDTH
    for artefact in artefacts:
        job = artefact.params
        if not isinstance(job, FinetuneJob) or not artefact.rows:
            continue
        steps = updates(job.finetune, artefact.rows)
        found = movement(job.finetune, steps, n), steps, job, str(artefact.labels["mixture"])
        label = str(artefact.labels["finetune"])
        least[label] = min(least.get(label, found), found, key=lambda each: each[0])
    for label, (moved, steps, job, mixture) in least.items():
        if moved < ENOUGH:
            rate = sufficient_rate(job.finetune, steps, n)
            assumed = "" if width else ", the width of a 7B model,"
            number = f"{steps:,} update{'s' if steps > 1 else ''}"
            yield (
                f"finetune {label}: {number} at learning rate {job.finetune.rate:g} (mixture {mixture}) move what a "
                f"layer of {n:,} features{assumed} puts out by {moved:.2g} of its size at most, too little to count on "
                f"any change. Set finetune.learning_rate: {rate:.1e} or higher, or give it more rows or epochs"
            )


def _path(finetune: Finetune, rate: float, steps: int) -> float:
    """Return the sum of the learning rates of all updates: its rise, and its fall or constant stretch."""
    rise = finetune.warmup_ratio / 2
    rest = 1 - finetune.warmup_ratio
    return rate * steps * (rise + (rest if finetune.scheduler == "constant" else rest / 2))


def _moved(finetune: Finetune, path: float, width: int) -> float:
    if finetune.method == "lora":
        return finetune.lora_alpha * (path / math.sqrt(3) + width * path**2)
    return width * path
