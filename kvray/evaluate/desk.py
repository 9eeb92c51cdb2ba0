"""Writings by chunk: which prompts are still to be answered, where their replies go, when a writing is whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kvray.errors import KvrayError
from kvray.evaluate import chunks
from kvray.evaluate.chunks import Reply
from kvray.models.reference import BaseModelRef
from kvray.models.tokenizer import token_counter
from kvray.planning.artefacts import Artefact, WritingJob
from kvray.store import failures
from kvray.store.manifest import FileEntry
from kvray.store.schemas import WRITING_SCHEMA
from kvray.store.store import Store

_FACTS = b"kvray"


def job_of(cell: Artefact) -> WritingJob:
    """Return the job of a writing."""
    if not isinstance(cell.params, WritingJob):
        raise TypeError(f"{cell.id} is no writing")
    return cell.params


@dataclass(frozen=True)
class Parcel:
    """A chunk to be written: its prompts, in order."""

    cell: Artefact
    index: int
    prompts: list[str]


class Desk:
    """The prompts of some writings: what of them is still to be answered, and where answers go.

    Attributes:
        parcels: the chunks of this part that are not there yet.
    """

    def __init__(
        self,
        store: Store,
        cells: Sequence[Artefact],
        base: BaseModelRef,
        part: int,
        parts: int,
        report: Callable[[int], None],
    ) -> None:
        """Read the sources of the tasks and look what is there; a writing that is whole is committed."""
        self._store = store
        self._report = report
        self._prompts: dict[str, list[str]] = {}
        self._done = 0
        self.parcels: list[Parcel] = []
        dealt = 0
        for cell in cells:
            try:
                prompts = job_of(cell).task.to_write(token_counter(base))
            except KvrayError as error:
                failures.note(store, cell.id, str(error))
                continue
            self._prompts[cell.id] = prompts
            for index in range(chunks.chunk_count(len(prompts))):
                ours, dealt = dealt % parts == part, dealt + 1
                if self._read(cell.id, index) is None:
                    span = chunks.span(index, len(prompts))
                    self.parcels += [Parcel(cell, index, prompts[span.start : span.stop])] if ours else []
                elif ours:
                    self._done += len(chunks.span(index, len(prompts)))
            self._commit_if_whole(cell)
        report(self._done)

    def finish(self, parcel: Parcel, replies: Sequence[Reply], facts: dict[str, Any]) -> None:
        """Write a chunk, and commit its writing if that was the last one, by whichever engine."""
        first = chunks.span(parcel.index, len(self._prompts[parcel.cell.id])).start
        table = _table(first, parcel.prompts, replies, facts)
        self._store.write_table(parcel.cell.id, chunks.chunk_name(parcel.index), table)
        self._commit_if_whole(parcel.cell)
        self._done += len(parcel.prompts)
        self._report(self._done)

    def _read(self, artefact_id: str, index: int) -> pa.Table | None:
        """Return a chunk that is there whole and answers exactly these prompts; None otherwise."""
        table = self._store.read_file_table(artefact_id, chunks.chunk_name(index))
        if table is None or table.schema.names != WRITING_SCHEMA.names:
            return None
        prompts = self._prompts[artefact_id]
        span = chunks.span(index, len(prompts))
        return table if table["prompt"].to_pylist() == prompts[span.start : span.stop] else None

    def _commit_if_whole(self, cell: Artefact) -> None:
        entries: list[FileEntry] = []
        tables: list[pa.Table] = []
        for index in range(chunks.chunk_count(len(self._prompts[cell.id]))):
            table = self._read(cell.id, index)
            entry = self._store.entry(cell.id, chunks.chunk_name(index)) if table is not None else None
            if table is None or entry is None:
                return
            tables.append(table)
            entries.append(entry)
        self._store.commit(**cell.identity(), files=entries, schema=WRITING_SCHEMA, measurements=_summary(tables))


def _table(first: int, prompts: Sequence[str], replies: Sequence[Reply], facts: dict[str, Any]) -> pa.Table:
    columns = {
        "index": range(first, first + len(prompts)),
        "prompt": prompts,
        "text": [reply.answer or "" for reply in replies],
        **{name: [getattr(reply, name) for reply in replies] for name in WRITING_SCHEMA.names[3:]},
    }
    arrays = [pa.array(columns[field.name], field.type) for field in WRITING_SCHEMA]
    table = pa.Table.from_arrays(arrays, schema=WRITING_SCHEMA)
    return table.replace_schema_metadata({_FACTS: json.dumps(facts, sort_keys=True)})


def _summary(tables: Sequence[pa.Table]) -> dict[str, Any]:
    """Return the facts of a writing: rows, cut off and not asked, tokens, seconds and each different engine."""
    notes = [dict(json.loads((table.schema.metadata or {}).get(_FACTS, b"{}"))) for table in tables]
    whole = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    engines = {json.dumps(note["engine"], sort_keys=True): note["engine"] for note in notes if "engine" in note}
    return {
        "rows": whole.num_rows,
        "cut_off": pc.sum(pc.equal(whole["finish_reason"], "length")).as_py() or 0,
        "too_long": pc.sum(pc.equal(whole["finish_reason"], chunks.TOO_LONG)).as_py() or 0,
        "prompt_tokens": pc.sum(whole["prompt_tokens"]).as_py() or 0,
        "output_tokens": pc.sum(whole["output_tokens"]).as_py() or 0,
        "seconds": round(sum(note.get("seconds", 0.0) for note in notes), 3),
        "engines": list(engines.values()),
    }
