"""Finetunes by a fine-tuning API: upload the training file, create the job, poll it, commit the model's name.

The store's document ``api/<artefact id>.json`` records the file's id, then the job's, before either is waited for: a
killed driver goes on there. One that was killed before it wrote finds the job at the API.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import pyarrow as pa

from kvray.console import Advance, say
from kvray.errors import CellError, InputError, KvrayError
from kvray.finetune.openai_jobs import GONE, Tuning, hyperparameters
from kvray.finetune.storage import job_of, read_whole, select
from kvray.models.chat import json_lines
from kvray.models.openai import MODEL_FILE, Api, ApiError, RejectedError, run_async
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime

JOBS_AT_ONCE = 3
"""Jobs at a time without ``runtime.concurrent_finetunes``: what OpenAI lets an account have. Our choice."""
FIRST_POLL_S = 2.0
"""Seconds until a job is asked about again; each further wait is half as long again."""
LONGEST_POLL_S = 30.0


def finetune(
    artefacts: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime, advance: Advance
) -> list[Outcome]:
    """Make finetunes by the API, whose datasets are committed, and commit their models' names. Needs no Ray.

    Returns one outcome per artefact, in order; a failed one leaves the others alone. ``advance`` is told how many have
    ended, and what the others do. Raises InputError, before anything is sent, for no key, no such URL, or epochs that
    are no whole number; ApiError if the API refuses every request of this run (jobs that were created are found again).
    """
    if not artefacts:
        return []
    for artefact in artefacts:
        epochs = job_of(artefact).finetune.epochs
        if epochs != round(epochs):
            raise InputError(f"finetune.epochs: found {epochs:g}; expected a whole number for {base.name}")
    api = Api(runtime.api_base_url, runtime.api_timeout_s, runtime.api_retries)
    stage = _Stage(artefacts, store, base, api, advance)
    run_async(stage.run(runtime.concurrent_finetunes or JOBS_AT_ONCE))
    return [Outcome(artefact.id, stage.errors[artefact.id]) for artefact in artefacts]


def document_name(artefact_id: str) -> str:
    """Return the name of the store's document on a finetune under way at the API."""
    return f"api/{artefact_id}.json"


@dataclass
class _Stage:
    artefacts: Sequence[Artefact]
    store: Store
    base: BaseModelRef
    api: Api
    advance: Advance
    errors: dict[str, str | None] = field(default_factory=dict)
    states: dict[str, str | None] = field(default_factory=dict)
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, at_once: int) -> None:
        slots = asyncio.Semaphore(at_once)
        try:
            async with aclosing(self.api), asyncio.TaskGroup() as group:
                for artefact in self.artefacts:
                    group.create_task(self._guarded(artefact, slots))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _guarded(self, artefact: Artefact, slots: asyncio.Semaphore) -> None:
        async with slots:
            try:
                await self._make(artefact)
                self.errors[artefact.id] = None
            except ApiError:
                raise
            except KvrayError as error:
                self.errors[artefact.id] = str(error)
            self._show(artefact, None)

    async def _make(self, artefact: Artefact) -> None:
        started = time.monotonic()
        job = job_of(artefact)
        tuning = Tuning(self.api, self.base.location, artefact.fingerprint, job.seed, job.finetune)
        note = self._read(artefact)
        enter = self._known if "job" in note else self._start
        state = await enter(artefact, tuning, note)
        wait = FIRST_POLL_S
        while state["status"] not in ("succeeded", *GONE):
            self._show(artefact, str(state["status"]))
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, LONGEST_POLL_S)
            state = await self._known(artefact, tuning, note)
        if state["status"] in GONE:
            # The next run is to start another.
            self.store.delete_document(document_name(artefact.id))
            raise CellError(f"fine-tuning job {state['id']} {self.api.address.redact(_ending(state))}")
        if not state.get("fine_tuned_model"):
            raise CellError(f"fine-tuning job {state['id']} succeeded without a model's name")
        self._commit(artefact, note, state, time.monotonic() - started)

    async def _start(self, artefact: Artefact, tuning: Tuning, note: dict[str, Any]) -> dict[str, Any]:
        """Return the finetune's job, found or created, and note it."""
        async with self.reading:
            data, mixture = await asyncio.to_thread(self._training_file, artefact)
        note |= {"api": self.api.address.url, "data": mixture}
        job = await tuning.find()
        if job is None:
            self._show(artefact, "uploading")
            if "file" not in note:
                note["file"] = await tuning.upload(data)
                self._write(artefact, note)
            job = await tuning.create(note["file"])
        note["job"] = job["id"]
        self._write(artefact, note)
        say(f"kvray: finetune: job {job['id']} makes {artefact.id}")
        return job

    async def _known(self, artefact: Artefact, tuning: Tuning, note: dict[str, Any]) -> dict[str, Any]:
        try:
            return await tuning.job(note["job"])
        except RejectedError as error:
            raise CellError(
                f"fine-tuning job {note['job']} of this finetune cannot be asked about: {error}; to start another, "
                f"delete {document_name(artefact.id)} in {self.store.uri}"
            ) from None

    def _training_file(self, artefact: Artefact) -> tuple[bytes, dict[str, Any]]:
        """Return the JSON lines of an epoch, dataset by dataset, and the mixture's measurements for the manifest."""
        read = cache(partial(read_whole, self.store))
        mixture = select(job_of(artefact), self.base, read)
        system = artefact.recipe.get("system_message")
        parts = [json_lines(read(part.name).take(pa.array(part.rows)), system) for part in mixture.parts]
        return b"".join(parts), mixture.measurements()

    def _read(self, artefact: Artefact) -> dict[str, Any]:
        """Return the note of a finetune, {} if there is none; CellError if it is under way at another API."""
        document = document_name(artefact.id)
        data = self.store.read_document(document)
        if data is None:
            return {}
        try:
            note = dict(json.loads(data))
            elsewhere = note["api"] != self.api.address.url
        except (ValueError, KeyError, TypeError) as error:
            raise CellError(f"{document} in {self.store.uri} cannot be read ({error!r}); delete it") from None
        if elsewhere:
            raise CellError(
                f"it is under way at {note['api']} (job {note.get('job', 'not created yet')}), expected "
                f"{self.api.address.url}; set runtime.api_base_url, or delete {document} in {self.store.uri}"
            )
        return note

    def _write(self, artefact: Artefact, note: dict[str, Any]) -> None:
        data = (json.dumps(note, indent=1, sort_keys=True) + "\n").encode()
        self.store.write_document(document_name(artefact.id), data)

    def _commit(self, artefact: Artefact, note: dict[str, Any], job: dict[str, Any], waited: float) -> None:
        made = {
            "model": job["fine_tuned_model"],
            "base_model": job.get("model"),
            "api": self.api.address.url,
            "job": job["id"],
            "training_file": job.get("training_file"),
            "trained_tokens": job.get("trained_tokens"),
            "hyperparameters": hyperparameters(job),
            "seed": job.get("seed"),
        }
        data = (json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
        entry = self.store.write(artefact.id, MODEL_FILE, data)
        begun, ended = job.get("created_at"), job.get("finished_at")
        measurements = {
            **note["data"],
            **{name: made[name] for name in ("model", "api", "job", "trained_tokens", "hyperparameters")},
            "seconds": float(ended - begun) if begun and ended else round(waited, 3),
            "device": "API",
        }
        self.store.commit(**artefact.identity(), files=[entry], measurements=measurements)

    def _show(self, artefact: Artefact, state: str | None) -> None:
        """Show the progress of all, once one is in another state; None: it has ended."""
        self.states[artefact.id] = state
        under_way = Counter(each for each in self.states.values() if each)
        notes = [f"{number} {each}" for each, number in sorted(under_way.items())]
        failed = sum(error is not None for error in self.errors.values())
        self.advance(len(self.errors), ", ".join([*notes, *([f"{failed} failed"] if failed else [])]))


def _ending(job: dict[str, Any]) -> str:
    if job["status"] == "cancelled":
        return "was cancelled at the API"
    error = job.get("error") or {}
    why = error.get("message") or "the API does not say why"
    return f"failed: {why}" + (f" ({error['code']})" if error.get("code") else "")
