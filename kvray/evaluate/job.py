"""What an engine's seat does: predictions of the evaluate stage, and writings, which datasets are made of."""

import os
from collections.abc import Mapping
from pathlib import Path

from kvray.evaluate.cells import Cells
from kvray.evaluate.engines.base import Serving, engine_class
from kvray.evaluate.pull import Puller
from kvray.evaluate.served import MERGED, model_of
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact, PredictionsJob
from kvray.planning.work import Seat, Source
from kvray.store.places.scratch import scratch_directory
from kvray.store.store import Store
from kvray.sweep.model import Runtime


def engine(
    source: Source,
    seat: Seat,
    *,
    store: Store,
    base: BaseModelRef,
    runtime: Runtime,
    cells: Mapping[str, Artefact],
    counted_by: BaseModelRef | None = None,
) -> None:
    """Answer units of ``cells`` by one engine until the source ends: a :data:`~kvray.planning.work.Work`.

    One engine serves the base model and all of its finetunes, in this process; an API is asked from it. A cell that
    cannot be made is told to the source and leaves the others alone.

    Args:
        source: gives units, whose artefacts are in ``cells``.
        seat: what this process may use.
        store: holds datasets and finetunes, and gets the answers.
        base: the base model, or a writer.
        runtime: the sweep's.
        cells: all predictions of the sweep, or all writings of ``base``, by their ids.
        counted_by: the model whose tokenizer measures the prompts of writings; None: ``base``.

    Raises:
        InputError: an API has no key or no valid URL, or vLLM cannot serve the model.
        ResourceError: vLLM does not run on this node.
        ApiError: the API will serve nothing of this.
        StoreError: the store cannot be written.
    """
    source.join()
    if runtime.model_cache and not base.api:  # an API is asked from the driver's own process
        os.environ["HF_HOME"] = runtime.model_cache
    kind = engine_class(base, runtime)
    kind.prepare(seat.gpus, seat.threads)
    finetunes = {model: cell.params for cell in cells.values() if (model := model_of(cell))}
    beside = [job for model, job in finetunes.items() if isinstance(job, PredictionsJob) and not model.endswith(MERGED)]
    ranks = tuple(job.finetune.lora_rank for job in beside if job.finetune and job.finetune.method == "lora")
    models = len({model_of(cell) for cell in cells.values()})
    serving = Serving(base, runtime, seat.gpus, seat.threads, models, ranks)
    with scratch_directory(runtime.scratch, "evaluate") as scratch:
        asked = Cells(store, base, cells, kind.READS_TEXT, counted_by)
        Puller(source, asked, store, kind, serving, Path(scratch)).run()
