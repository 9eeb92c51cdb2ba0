"""Fine-tuning behind an OpenAI-compatible API: files and jobs, each made once however often a call is repeated.

A call that broke off may have been carried out. So an upload first looks for a file named by its content's hash, and a
new job for one with the finetune's fingerprint in its metadata or suffix: nothing is paid twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvray.errors import CellError
from kvray.models.openai import Api, ApiError, RejectedError, plain
from kvray.sweep.model import Finetune

if TYPE_CHECKING:
    from openai import AsyncOpenAI

METADATA = "kvray"
"""Key of the finetune's fingerprint in a job's metadata."""
GONE = ("failed", "cancelled")
"""States in which a job ends without a model; another job may be started then."""
_PAGE = 100
_ABSENT = (404, 405)


@dataclass(frozen=True)
class JobSpec:
    """A job to create; ``model`` is the base model's name at the API, the finetune's fingerprint identifies the job."""

    model: str
    fingerprint: str
    seed: int
    settings: Finetune

    @property
    def epochs(self) -> int:
        """Passes over the file; the settings hold a whole number."""
        return round(self.settings.epochs)

    @property
    def suffix(self) -> str:
        """Our part of the model's name: 18 characters, the fewest that a server of this kind takes."""
        return f"kvray-{self.fingerprint[:12]}"

    def body(self, file: str) -> dict[str, Any]:
        """Return the request that creates the job on an uploaded file; "auto" leaves a value to the server."""
        hyperparameters: dict[str, Any] = {"n_epochs": self.epochs}
        if self.settings.api_batch_size != "auto":
            hyperparameters["batch_size"] = self.settings.api_batch_size
        if self.settings.api_learning_rate_multiplier != "auto":
            hyperparameters["learning_rate_multiplier"] = self.settings.api_learning_rate_multiplier
        return {
            "model": self.model,
            "training_file": file,
            "suffix": self.suffix,
            "seed": self.seed,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            "metadata": {METADATA: self.fingerprint},
        }

    def matches(self, job: Mapping[str, Any]) -> bool:
        """Return whether a job of the API is this one and has not failed."""
        if job.get("status") in GONE:
            return False
        noted = (job.get("metadata") or {}).get(METADATA)
        if noted is not None:
            return bool(noted == self.fingerprint)
        # Not every server keeps metadata; OpenAI's own returns the suffix under the first of these names.
        return self.suffix in (job.get("user_provided_suffix"), job.get("suffix"))


class Tuning:
    """The fine-tuning endpoints of an API."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def upload(self, data: bytes) -> str:
        """Return the id of a training file with this content, uploaded unless the API has it.

        Raises:
            ApiError: the API has no fine-tuning, or serves nothing of this run.
            CellError: it does not take the file.
        """
        name = f"kvray-{hashlib.sha256(data).hexdigest()[:16]}.jsonl"

        async def send(client: AsyncOpenAI) -> dict[str, Any]:
            async for file in _each(client.files.with_raw_response.list, purpose="fine-tune"):
                if file.get("filename") == name and file.get("bytes") == len(data) and file.get("status") != "error":
                    return file
            content = (name, data, "application/jsonl")
            return plain(await client.files.with_raw_response.create(file=content, purpose="fine-tune"), "id")

        return str((await self._call(send))["id"])

    async def find(self, spec: JobSpec) -> dict[str, Any] | None:
        """Return the job of a finetune, None if there is none; errors as :meth:`upload`."""

        async def send(client: AsyncOpenAI) -> dict[str, Any]:
            return {"job": await _find(client, spec)}

        job: dict[str, Any] | None = (await self._call(send))["job"]
        return job

    async def create(self, spec: JobSpec, file: str) -> dict[str, Any]:
        """Return the job of a finetune on an uploaded file, created unless it exists; errors as :meth:`upload`.

        A job that would train for another number of epochs is cancelled, with a CellError.
        """

        async def send(client: AsyncOpenAI) -> dict[str, Any]:
            # Here too: an attempt that broke off may have made it.
            job = await _find(client, spec)
            if job is None:
                raw = await client.fine_tuning.jobs.with_raw_response.create(**spec.body(file))
                job = plain(raw, "id", "status")
            return job

        job = await self._call(send)
        epochs = hyperparameters(job).get("n_epochs", spec.epochs)
        if epochs not in (spec.epochs, "auto"):
            await self._call(lambda client: _one(client.fine_tuning.jobs.with_raw_response.cancel, job["id"]))
            raise CellError(
                f"fine-tuning job {job['id']}: the API would train {epochs} epochs, expected {spec.epochs}; cancelled"
            )
        return job

    async def job(self, job_id: str) -> dict[str, Any]:
        """Return the current state of a job; RejectedError (404) if the API has none, ApiError if it serves nothing."""
        return await self._api.call(lambda client: _one(client.fine_tuning.jobs.with_raw_response.retrieve, job_id))

    async def _call(self, send: Callable[[AsyncOpenAI], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        try:
            return await self._api.call(send)
        except RejectedError as error:
            if error.status in _ABSENT:
                raise ApiError(f"{error}: no fine-tuning there, or not at that URL (most end in /v1)") from None
            raise


def hyperparameters(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters that a job states; {} if it states none."""
    supervised = (job.get("method") or {}).get("supervised") or {}
    return dict(supervised.get("hyperparameters") or job.get("hyperparameters") or {})


async def _one(action: Callable[[str], Awaitable[Any]], job_id: str) -> dict[str, Any]:
    return plain(await action(job_id), "id", "status")


async def _find(client: AsyncOpenAI, spec: JobSpec) -> dict[str, Any] | None:
    async for job in _each(client.fine_tuning.jobs.with_raw_response.list):
        if spec.matches(job):
            return job
    return None


async def _each(listing: Callable[..., Awaitable[Any]], **given: Any) -> AsyncIterator[dict[str, Any]]:
    after: dict[str, Any] = {}
    while True:
        page = plain(await listing(limit=_PAGE, **given, **after), "data")
        for item in page["data"]:
            yield item
        last = page["data"][-1].get("id") if page["data"] else None
        # A server that knows no pages would give the same one for ever.
        if not page.get("has_more") or last in (None, after.get("after")):
            return
        after = {"after": last}
