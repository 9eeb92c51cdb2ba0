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
from kvray.models.openai import Api, ApiError, RejectedError, Result, plain
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
class Tuning:
    """The job of one finetune of ``model``, a name at the API; calls raise ApiError if it has no fine-tuning."""

    api: Api
    model: str
    fingerprint: str
    seed: int
    settings: Finetune

    @property
    def suffix(self) -> str:
        """Our part of the model's name: 18 characters, the fewest that a server of this kind takes."""
        return f"kvray-{self.fingerprint[:12]}"

    async def upload(self, data: bytes) -> str:
        """Return the id of a file with this content, uploaded unless the API has it; CellError if it is not taken."""
        name = f"kvray-{hashlib.sha256(data).hexdigest()[:16]}.jsonl"

        async def send(client: AsyncOpenAI) -> dict[str, Any]:
            async for file in _each(client.files.with_raw_response.list, purpose="fine-tune"):
                if file.get("filename") == name and file.get("bytes") == len(data) and file.get("status") != "error":
                    return file
            content = (name, data, "application/jsonl")
            return plain(await client.files.with_raw_response.create(file=content, purpose="fine-tune"), "id")

        return str((await self._call(send))["id"])

    async def find(self) -> dict[str, Any] | None:
        """Return the job, None if there is none that has not failed."""
        return await self._call(self._find)

    async def create(self, file: str) -> dict[str, Any]:
        """Return the job on a file, created unless it exists; CellError if refused, or cancelled for wrong epochs."""
        values = {
            "n_epochs": int(self.settings.epochs),
            "batch_size": self.settings.api_batch_size,
            "learning_rate_multiplier": self.settings.api_learning_rate_multiplier,
        }
        given = {name: value for name, value in values.items() if value != "auto"}  # the server's own choice
        body: dict[str, Any] = {
            "model": self.model,
            "training_file": file,
            "suffix": self.suffix,
            "seed": self.seed,
            "method": {"type": "supervised", "supervised": {"hyperparameters": given}},
            "metadata": {METADATA: self.fingerprint},
        }

        async def send(client: AsyncOpenAI) -> dict[str, Any]:
            # Looked for here too: an attempt that broke off may have made it.
            job = await self._find(client)
            return job or plain(await client.fine_tuning.jobs.with_raw_response.create(**body), "id", "status")

        job = await self._call(send)
        epochs, expected = hyperparameters(job).get("n_epochs", "auto"), values["n_epochs"]
        if epochs not in (expected, "auto"):
            await self._call(lambda client: _one(client.fine_tuning.jobs.with_raw_response.cancel, job["id"]))
            raise CellError(
                f"fine-tuning job {job['id']}: the API would train {epochs} epochs, expected {expected}; cancelled"
            )
        return job

    async def job(self, job_id: str) -> dict[str, Any]:
        """Return the current state of a job; RejectedError (404) if the API has none."""
        return await self.api.call(lambda client: _one(client.fine_tuning.jobs.with_raw_response.retrieve, job_id))

    async def _find(self, client: AsyncOpenAI) -> dict[str, Any] | None:
        async for job in _each(client.fine_tuning.jobs.with_raw_response.list):
            if job.get("status") not in GONE and self._is_own(job):
                return job
        return None

    def _is_own(self, job: Mapping[str, Any]) -> bool:
        noted = (job.get("metadata") or {}).get(METADATA)
        if noted is not None:
            return bool(noted == self.fingerprint)
        # Not every server keeps metadata; OpenAI's own returns the suffix under the first of these names.
        return self.suffix in (job.get("user_provided_suffix"), job.get("suffix"))

    async def _call(self, send: Callable[[AsyncOpenAI], Awaitable[Result]]) -> Result:
        try:
            return await self.api.call(send)
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
