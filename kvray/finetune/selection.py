"""Which rows of which datasets a finetune reads, decided by their tokens as they are trained on. No Ray here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvray.errors import DamagedArtefactError
from kvray.finetune import encode
from kvray.models.reference import BaseModelRef, load_tokenizer
from kvray.planning.artefacts import FinetuneJob
from kvray.planning.mixture import Mixture, mix
from kvray.store.store import Store
from kvray.tasks.chat import plain_text, prompts_of

COLUMNS = ("example_id", "prompt", "answer")
"""What training reads of a dataset; of chats, the ``history`` too."""

Read = Callable[[str], pa.Table]
"""Returns :data:`COLUMNS` of a dataset by its id, all rows."""

_counted: dict[tuple[str, str], NDArray[np.int64]] = {}


def select(job: FinetuneJob, base: BaseModelRef, read: Read) -> Mixture:
    """Choose the rows of a finetune. A function of the job and the data alone, wherever it runs.

    Raises:
        InputError: the rows do not fit the chat template, or the mixture cannot be blended or has too few tokens.
    """
    return mix(job, lambda dataset: count(dataset, base, read))


def count(dataset: str, base: BaseModelRef, read: Read) -> NDArray[np.int64]:
    """Return the tokens of every row of a dataset, prompt and answer, encoded as for training; once per process.

    A model behind an API keeps its template to itself: there it is the plain tokens of prompt and answer.
    """
    key = dataset, base.token_identity
    if key not in _counted:
        table = read(dataset)
        texts = prompts_of(table), table["answer"].to_pylist()
        if base.api:
            from kvray.models.tokenizer import token_counter

            counter = token_counter(base)
            _counted[key] = counter(plain_text(texts[0])) + counter(texts[1])
        else:
            _counted[key] = encode.count(load_tokenizer(base), *texts, end_ids=limits(base)[1])
    return _counted[key]


def limits(base: BaseModelRef) -> tuple[int | None, set[int]]:
    """Return the model's context length, if it says one, and the ids that end its answers."""
    from transformers import AutoConfig

    base = base.here()
    trust = base.trust_remote_code
    whole = AutoConfig.from_pretrained(base.location, revision=base.revision, trust_remote_code=trust)
    config = whole.get_text_config().to_dict()
    ends = config.get("eos_token_id")
    return config.get("max_position_embeddings"), set(ends if isinstance(ends, list) else [ends]) - {None}


def read_whole(store: Store, dataset: str) -> pa.Table:
    """Return what training reads of a committed dataset.

    Raises:
        DamagedArtefactError: it does not match its manifest (sha256 of every file).
    """
    problems = store.problems(dataset, verify=True)
    if problems:
        raise DamagedArtefactError(f"{dataset} cannot be trained on: {'; '.join(problems)}")
    manifest = store.manifest(dataset)
    chats = manifest is not None and any(each["name"] == "history" for each in manifest.schema or ())
    return store.read_table(dataset, columns=[*COLUMNS, "history"] if chats else COLUMNS)
