"""What the cells of a lane ask; a question set is read once, however many cells ask it."""

import contextlib
from collections.abc import Mapping
from typing import Any

from kvray.errors import CellError, KvrayError
from kvray.evaluate.questions import DatasetQuestions, Questions, WritingPrompts
from kvray.models.reference import BaseModelRef, load_tokenizer, tokenizer_place
from kvray.models.tokenizer import token_counter
from kvray.planning.artefacts import Artefact, PredictionsJob, WritingJob
from kvray.store.store import Store


class Cells:
    """Predictions or writings that ``base`` and its finetunes are to make, by their ids."""

    def __init__(
        self,
        store: Store,
        base: BaseModelRef,
        cells: Mapping[str, Artefact],
        as_text: bool,
        counted_by: BaseModelRef | None,
    ) -> None:
        """Read nothing yet; ``as_text``, ``counted_by``: see :attr:`.Engine.READS_TEXT`, :func:`.job.engine`."""
        self._store = store
        self._base = base
        self._cells = cells
        self._as_text = as_text
        self._counted_by = counted_by or base
        self._read: dict[tuple[str | None, str], Questions | CellError] = {}

    def __getitem__(self, artefact_id: str) -> Artefact:
        return self._cells[artefact_id]

    def questions(self, cell: Artefact) -> Questions:
        """Return what a cell asks; KvrayError if its dataset is not committed, or cannot be read or asked."""
        job = cell.params
        if not isinstance(job, WritingJob | PredictionsJob):
            raise TypeError(f"{cell.id} asks nothing")
        key = (job.dataset_id if isinstance(job, PredictionsJob) else None), job.task.model_dump_json()
        if key not in self._read:
            try:
                self._read[key] = self._load(cell, job)
            except CellError as error:
                self._read[key] = error
        found = self._read[key]
        if isinstance(found, CellError):
            raise CellError(str(found))
        return found

    def longest(self, tokenizer: Any, limit: int) -> int:
        """Return about how many tokens the longest request takes, of all cells whose datasets are committed.

        Benchmarks of other libraries are left out: loading one can take minutes.
        """
        datasets = {cell.id: self._dataset(cell) for cell in self._cells.values()}
        states = self._store.states(one for one in datasets.values() if one)
        known: dict[int, Questions] = {}
        for cell in self._cells.values():
            if isinstance(cell.params, WritingJob) or states.get(datasets[cell.id] or "") == "committed":
                with contextlib.suppress(KvrayError):  # which is told when the cell is asked
                    questions = self.questions(cell)
                    known[id(questions)] = questions
        return max((each.longest(tokenizer, limit) for each in known.values()), default=0)

    def _dataset(self, cell: Artefact) -> str | None:
        return cell.params.dataset_id if isinstance(cell.params, PredictionsJob) else None

    def labels(self, cell: Artefact) -> dict[str, Any]:
        """Return the columns that are the same in all rows of a cell."""
        job = cell.params
        if not isinstance(job, PredictionsJob):
            return {}
        return {
            **cell.labels,
            "dataset": job.dataset_id,
            "task": job.task.task,
            "base_model": self._base.name,
            "adapter": job.finetune_id.rpartition("/")[2] if job.finetune_id else None,
        }

    def _load(self, cell: Artefact, job: WritingJob | PredictionsJob) -> Questions:
        if isinstance(job, WritingJob):
            return WritingPrompts(job.task, token_counter(self._counted_by))
        if job.dataset_id is not None:
            examples = self._store.read_table(job.dataset_id)
            return DatasetQuestions(examples, job.task, cell.recipe.get("system_message"))
        from kvray.evaluate.lm_eval.questions import BenchmarkQuestions

        tokenizer = None if self._as_text else load_tokenizer(self._base)
        return BenchmarkQuestions(job.task, tokenizer, tokenizer_place(self._base))
