"""A dataset or a mixture as one file that trainers read, and what its card tells of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kvray.console import track
from kvray.driver.export.find import Found, base_of
from kvray.driver.export.formats import Columns, Encoding, Writer, arranged, described
from kvray.errors import DamagedArtefactError, InputError, need
from kvray.finetune.storage import read_whole, select
from kvray.models.openai import OPENAI_SYSTEM
from kvray.planning.artefacts import FinetuneJob
from kvray.store.manifest import Manifest
from kvray.store.schemas import CHAT_SCHEMA, DATASET, EXAMPLE_SCHEMA
from kvray.store.store import Store
from kvray.sweep.model import Finetune

_AXES = ("position", "length", "depth", "subtask", "condition")


@dataclass(frozen=True)
class Written:
    """The file that was written, and what its card tells."""

    file: str  # relative to the folder
    split: str  # train, or test of a dataset that is asked
    columns: pa.Schema
    rows: int
    prompt_tokens: int
    parts: list[dict[str, Any]]  # of each dataset: id, name, rows, tokens (encoded; None of a dataset alone), manifest
    axes: dict[str, list[tuple[Any, int]]]  # rows by place on each axis that the examples have
    first: dict[str, Any]  # the first row, as it is in the file


def write(found: Found, into: Path, columns: Columns, encoding: Encoding, base_model: str | None = None) -> Written:
    """Write a found dataset or mixture below the directory ``into``; memory stays flat for a dataset.

    Raises InputError for a mixture whose base model, whose tokenizer measures it, is not to be found, and
    DamagedArtefactError if a file in the store does not match its manifest.
    """
    mixture = found.what == "mixture"
    parts, tables, schema = _mixture(found, base_model) if mixture else _dataset(found)
    split = "test" if found.planned.labels.get("role") == "evaluate" else "train"
    name = f"data/{split}.{encoding}"
    path = into / name
    path.parent.mkdir(parents=True)
    system = found.document["sweep"].get("system_message") or OPENAI_SYSTEM if columns == "openai" else None
    total, rows, tokens = sum(part["rows"] for part in parts), 0, 0
    axes: dict[str, dict[Any, int]] = {axis: {} for axis in _AXES}
    first: dict[str, Any] = {}
    out = described(columns, schema)
    with path.open("wb") as file, track(f"export {found.name}", total) as advance:
        writer = Writer(file, encoding, out)
        for table in tables():
            arranged_ = arranged(table, columns, system)
            writer.write(arranged_)
            first = first or arranged_.slice(0, 1).to_pylist()[0]
            _count(table, axes)
            tokens += int(pc.sum(table["prompt_tokens"]).as_py() or 0)
            rows += table.num_rows
            advance(rows)
        writer.close()
    places = {axis: sorted(found.items()) for axis, found in axes.items() if found}
    return Written(name, split, out, rows, tokens, parts, places, first)


def _count(table: pa.Table, axes: dict[str, dict[Any, int]]) -> None:
    for axis, counts in axes.items():
        for entry in pc.value_counts(table[axis].combine_chunks().drop_null()).to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]


Tables = Callable[[], Iterator[pa.Table]]


def _dataset(found: Found) -> tuple[list[dict[str, Any]], Tables, pa.Schema]:
    store, manifest = found.store, found.manifest
    problems = store.problems(manifest.id, verify=True)
    if problems:
        raise DamagedArtefactError(f"{manifest.id} cannot be read: {'; '.join(problems)}; kvray run makes it again")
    names = [file.name for file in manifest.files if file.name.endswith(".parquet")]

    def tables() -> Iterator[pa.Table]:
        for name in names:
            table = store.read_file_table(manifest.id, name)
            if table is None:
                raise DamagedArtefactError(f"{manifest.id}/{name} cannot be read; kvray run makes it again")
            yield table

    table = store.read_file_table(manifest.id, names[0]) if names else None
    if table is None or not manifest.rows:
        raise InputError(f"{manifest.id} has no rows; expected a dataset that has some")
    part = {"id": manifest.id, "name": found.name, "rows": manifest.rows, "tokens": None, "manifest": manifest}
    return [part], tables, table.schema


def _mixture(found: Found, base_model: str | None) -> tuple[list[dict[str, Any]], Tables, pa.Schema]:
    """The rows of one epoch, as a finetune on the mixture reads them before it shuffles, dataset by dataset."""
    store, base = found.store, base_of(found, base_model)
    if not base.api:
        need("kvray export of a mixture", "transformers", extra="run")  # rows are counted by the tokenizer that trained
    mixed = select(job_of(found.manifest), base, cache(lambda dataset: read_whole(store, dataset)))
    labels = {each["id"]: str(each["labels"].get("dataset")) for each in found.document["artefacts"]}
    read = cache(store.read_table)
    chats = any("history" in read(part.name).column_names for part in mixed.parts)
    schema = (CHAT_SCHEMA if chats else EXAMPLE_SCHEMA).append(DATASET)

    def tables() -> Iterator[pa.Table]:
        for part in mixed.parts:
            rows = read(part.name).take(pa.array(part.rows))
            rows = rows.append_column(DATASET, pa.array([labels[part.name]] * rows.num_rows, pa.string()))
            if chats and "history" not in rows.column_names:
                rows = rows.append_column("history", pa.nulls(rows.num_rows, pa.string()))
            yield rows.select(schema.names).cast(schema)

    parts = [
        {"id": part.name, "name": labels[part.name], "rows": len(part.rows), "tokens": part.total}
        | {"manifest": _manifest(store, part.name)}
        for part in mixed.parts
    ]
    return parts, tables, schema


def job_of(manifest: Manifest) -> FinetuneJob:
    """Return which rows a committed finetune read, from its manifest."""
    recipe = manifest.recipe
    shares = list(map(float, recipe["mixture"]))
    by_digest = {need.rpartition("-")[2]: need for need in manifest.needs}
    budget = tuple((by_digest[str(digest)[:16]], float(share)) for digest, share in recipe.get("budget", ()))
    mixture = tuple(zip(manifest.needs[: len(shares)], shares, strict=True))
    return FinetuneJob(Finetune.model_validate(recipe["finetune"]), int(recipe["seed"]), mixture, budget)


def _manifest(store: Store, artefact_id: str) -> Manifest:
    manifest = store.manifest(artefact_id)
    if manifest is None:
        raise InputError(f"{artefact_id} is not in {store.uri} any more; kvray run makes it again")
    return manifest
