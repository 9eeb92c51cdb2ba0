"""Finetunes that a fine-tuning API makes: training file up, job created, polled to its end, the model's name committed.

What is under way stands in the store's document ``api/<artefact id>.json`` before it is waited for: the file's id, then
the job's. A driver that was killed goes on there. One that was killed before it wrote finds the job at the API.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from kvray.console import Advance, say, track
from kvray.errors import CellError, InputError, KvrayError
from kvray.finetune.openai_jobs import GONE, JobSpec, Tuning, hyperparameters
from kvray.finetune.selection import read_whole, select
from kvray.models.openai import MODEL_FILE, Api, ApiError, RejectedError
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact, FinetuneJob
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime

JOBS_AT_ONCE = 3
"""Jobs at a time where ``runtime.concurrent_finetunes`` does not say: what OpenAI lets an account have. Ours."""
FIRST_POLL_S = 2.0
"""Before a job is asked about again; half as long again each time."""
LONGEST_POLL_S = 30.0


def finetune(artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime) -> list[Outcome]:
    """Make finetunes by the API and commit their models' names. Needs no Ray.

    Args:
        artefacts: finetunes to make; their datasets are committed.
        store: where datasets are and models' names go.
        base: the base model, with ``base.api``.
        runtime: where the API is, jobs at a time, retries.

    Returns:
        One outcome per artefact, in order; a failed one leaves the others alone.

    Raises:
        InputError: no key, no such URL, or epochs that are no whole number; nothing was sent.
        ApiError: the API serves nothing of this; jobs that were created are found again.
    """
    if not artefacts:
        return []
    for artefact in artefacts:
        epochs = _params(artefact).finetune.epochs
        if epochs != round(epochs):
            raise InputError(f"finetune.epochs: found {epochs:g}; expected a whole number for {base.name}")
    api = Api(runtime.api_base_url, runtime.api_timeout_s, runtime.api_retries)
    with track("finetune", len(artefacts), "finetunes") as advance:
        stage = _Stage(artefacts, store, base, runtime, api, advance)
        asyncio.run(stage.run())
    return [Outcome(artefact.id, stage.errors[artefact.id]) for artefact in artefacts]


def document_name(artefact_id: str) -> str:
    """Return where the store keeps what is under way at the API for a finetune."""
    return f"api/{artefact_id}.json"


def training_lines(table: pa.Table, system: str | None) -> bytes:
    """Return rows as the JSON lines that fine-tuning APIs read: an optional system message, prompt, answer.

    Args:
        table: its columns ``prompt`` and ``answer``.
        system: the system message; None for none.
    """
    first = [{"role": "system", "content": system}] if system else []
    lines = []
    for prompt, answer in zip(table["prompt"].to_pylist(), table["answer"].to_pylist(), strict=True):
        messages = [*first, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def _params(artefact: Artefact) -> FinetuneJob:
    if not isinstance(artefact.params, FinetuneJob):
        raise TypeError(f"{artefact.id} is no finetune: its params are {type(artefact.params).__name__}")
    return artefact.params


class _Stage:
    """All finetunes of one call."""

    def __init__(
        self,
        artefacts: Sequence[Artefact],
        store: Store,
        base: BaseModelRef,
        runtime: Runtime,
        api: Api,
        advance: Advance,
    ) -> None:
        self.errors: dict[str, str | None] = {}
        self._artefacts = artefacts
        self._store = store
        self._base = base
        self._slots = asyncio.Semaphore(runtime.concurrent_finetunes or JOBS_AT_ONCE)
        self._reading = asyncio.Lock()
        self._api = api
        self._tuning = Tuning(api)
        self._advance = advance
        self._states: dict[str, str] = {}

    async def run(self) -> None:
        """Make all of them."""
        try:
            async with self._api, asyncio.TaskGroup() as group:
                for artefact in self._artefacts:
                    group.create_task(self._guarded(artefact))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _guarded(self, artefact: Artefact) -> None:
        async with self._slots:
            try:
                await self._make(artefact)
                self.errors[artefact.id] = None
            except ApiError:
                raise
            except KvrayError as error:
                self.errors[artefact.id] = str(error)
            self._states.pop(artefact.id, None)
            self._tell()

    async def _make(self, artefact: Artefact) -> None:
        """Bring one finetune from wherever it is to its commit."""
        started = time.monotonic()
        note = self._read(artefact)
        job = await self._known(artefact, note) if "job" in note else await self._started(artefact, note)
        wait = FIRST_POLL_S
        while job["status"] not in ("succeeded", *GONE):
            self._states[artefact.id] = str(job["status"])
            self._tell()
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, LONGEST_POLL_S)
            job = await self._known(artefact, note)
        if job["status"] in GONE:
            # The next run is to start another.
            self._store.delete_document(document_name(artefact.id))
            raise CellError(f"fine-tuning job {job['id']} {self._api.address.redact(_ending(job))}")
        if not job.get("fine_tuned_model"):
            raise CellError(f"fine-tuning job {job['id']} succeeded without a model's name")
        self._commit(artefact, note, job, time.monotonic() - started)

    async def _started(self, artefact: Artefact, note: dict[str, Any]) -> dict[str, Any]:
        """Return the job of a finetune of which no job is noted: the one at the API, or a new one."""
        params = _params(artefact)
        spec = JobSpec.of(self._base.location, artefact.fingerprint, params.seed, params.finetune)
        async with self._reading:
            data, facts = await asyncio.to_thread(self._training_file, artefact)
        note |= {"api": self._api.address.url, "data": facts}
        job = await self._tuning.find(spec)
        if job is None:
            self._states[artefact.id] = "uploading"
            self._tell()
            if "file" not in note:
                note["file"] = await self._tuning.upload(data)
                self._write(artefact, note)
            job = await self._tuning.create(spec, note["file"])
        note["job"] = job["id"]
        self._write(artefact, note)
        say(f"kvray: finetune: job {job['id']} makes {artefact.id}")
        return job

    async def _known(self, artefact: Artefact, note: dict[str, Any]) -> dict[str, Any]:
        """Return the noted job of a finetune as it is now."""
        try:
            return await self._tuning.job(note["job"])
        except RejectedError as error:
            raise CellError(
                f"fine-tuning job {note['job']} of this finetune cannot be asked about: {error}; to start another, "
                f"delete {document_name(artefact.id)} in {self._store.uri}"
            ) from None

    def _training_file(self, artefact: Artefact) -> tuple[bytes, dict[str, Any]]:
        """Return the JSON lines of an epoch, dataset by dataset, and what the manifest is to tell of them."""
        tables: dict[str, pa.Table] = {}

        def read(dataset: str) -> pa.Table:
            if dataset not in tables:
                tables[dataset] = read_whole(self._store, dataset)
            return tables[dataset]

        mixture = select(_params(artefact), self._base, read)
        system = artefact.recipe.get("system_message")
        parts = [training_lines(read(part.name).take(pa.array(part.rows)), system) for part in mixture.parts]
        return b"".join(parts), mixture.facts()

    def _read(self, artefact: Artefact) -> dict[str, Any]:
        """Return the note of a finetune, {} if there is none.

        Raises:
            CellError: it is under way at another API.
        """
        document = document_name(artefact.id)
        data = self._store.read_document(document)
        if data is None:
            return {}
        try:
            note = dict(json.loads(data))
            elsewhere = note["api"] != self._api.address.url
        except (ValueError, KeyError, TypeError) as error:
            raise CellError(f"{document} in {self._store.uri} cannot be read ({error!r}); delete it") from None
        if elsewhere:
            raise CellError(
                f"it is under way at {note['api']} (job {note.get('job', 'not created yet')}), expected "
                f"{self._api.address.url}; set runtime.api_base_url, or delete {document} in {self._store.uri}"
            )
        return note

    def _write(self, artefact: Artefact, note: dict[str, Any]) -> None:
        data = (json.dumps(note, indent=1, sort_keys=True) + "\n").encode()
        self._store.write_document(document_name(artefact.id), data)

    def _commit(self, artefact: Artefact, note: dict[str, Any], job: dict[str, Any], waited: float) -> None:
        told = {
            "model": job["fine_tuned_model"],
            "base_model": job.get("model"),
            "api": self._api.address.url,
            "job": job["id"],
            "training_file": job.get("training_file"),
            "trained_tokens": job.get("trained_tokens"),
            "hyperparameters": hyperparameters(job),
            "seed": job.get("seed"),
        }
        data = (json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
        entry = self._store.write_bytes(artefact.id, MODEL_FILE, data)
        begun, ended = job.get("created_at"), job.get("finished_at")
        facts = {
            **note["data"],
            **{name: told[name] for name in ("model", "api", "job", "trained_tokens", "hyperparameters")},
            "seconds": float(ended - begun) if begun and ended else round(waited, 3),
            "device": "API",
        }
        self._store.commit(**artefact.identity(), files=[entry], measurements=facts)

    def _tell(self) -> None:
        notes = [f"{count} {state}" for state, count in sorted(Counter(self._states.values()).items())]
        failed = sum(error is not None for error in self.errors.values())
        self._advance(len(self.errors), ", ".join([*notes, *([f"{failed} failed"] if failed else [])]))


def _ending(job: dict[str, Any]) -> str:
    """Return how a job ended without a model, in words, with what the server says of it."""
    if job["status"] == "cancelled":
        return "was cancelled at the API"
    error = job.get("error") or {}
    why = error.get("message") or "the API does not say why"
    return f"failed: {why}" + (f" ({error['code']})" if error.get("code") else "")
