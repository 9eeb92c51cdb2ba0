"""The adapters that one engine serves: each is fetched once, loaded once and checked once."""

from __future__ import annotations

from pathlib import Path

from kvray.errors import CellError
from kvray.evaluate.engines.vllm import Adapter, Engine
from kvray.evaluate.orders import job_of, model_directory, real_rank
from kvray.evaluate.probe import Probe
from kvray.planning.artefacts import Artefact
from kvray.store.store import Store


class Adapters:
    """Adapters by the finetune that made them.

    Attributes:
        ranks: the real rank of each.
    """

    def __init__(self, store: Store, scratch: Path) -> None:
        """Start with none.

        Args:
            store: where they are.
            scratch: where local copies go.
        """
        self.ranks: list[int] = []
        self._store = store
        self._scratch = scratch
        self._found: dict[str, Adapter] = {}
        self._checked: dict[str, str | None] = {}

    def __len__(self) -> int:
        return len(self._found)

    def of(self, cell: Artefact) -> Adapter | None:
        """Return the adapter that answers a cell; None for the base model (or a full finetune in its place)."""
        return self._found.get(job_of(cell).finetune_id or "")

    def fetch(self, cell: Artefact) -> None:
        """Copy a cell's adapter to a local disk, if it has one and that was not done.

        Raises:
            KvrayError: it is damaged, unreadable, or of a rank that vLLM does not serve.
        """
        name = job_of(cell).finetune_id
        if name is None or name in self._found:
            return
        path = model_directory(self._store.fetch(name, self._scratch / name.rpartition("/")[2]))
        self.ranks.append(real_rank(path))
        self._found[name] = Adapter(name.rpartition("/")[2], len(self._found) + 1, path)

    def check(self, cell: Artefact, engine: Engine, probe: Probe) -> None:
        """Load a cell's adapter, if it has one, and make sure that it is applied.

        Raises:
            CellError: vLLM refuses it, or it changes nothing; every cell of the adapter is told.
        """
        name = job_of(cell).finetune_id
        if name is None:
            return
        if name not in self._checked:
            try:
                engine.load(self._found[name])
                probe.check(self._found[name])
                self._checked[name] = None
            except CellError as error:
                self._checked[name] = str(error)
        problem = self._checked[name]
        if problem:
            raise CellError(problem)
