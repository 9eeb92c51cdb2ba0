"""Failure notes: why an artefact was not made when it was last tried, one document per artefact."""

import json
from collections.abc import Iterable, Mapping

from kvray.errors import without_secrets
from kvray.store.root import Root

_FOLDER, _SUFFIX = "failures/", ".json"


def note(store: Root, artefact_id: str, error: str) -> None:
    """Write why an artefact failed, over an older note; StoreError if the store cannot be written."""
    document = json.dumps({"id": artefact_id, "error": without_secrets(error)}, ensure_ascii=False)
    store.write_document(_name(artefact_id), f"{document}\n".encode())


def read(store: Root, artefact_id: str) -> str | None:
    """Return why an artefact failed; None if it has no note. Any other document is returned as its text."""
    data = store.read_document(_name(artefact_id))
    if data is None:
        return None
    try:
        document = json.loads(data)
    except ValueError:
        return data.decode(errors="replace")
    return str(document.get("error", "") if isinstance(document, Mapping) else document)


def reasons(store: Root, artefact_ids: Iterable[str]) -> dict[str, str]:
    """Return why artefacts failed, of those that have a note; several are read at a time from an object store."""
    ids = list(artefact_ids)
    found = zip(ids, store.each(lambda one: read(store, one), ids), strict=True)
    return {one: reason for one, reason in found if reason is not None}


def delete(store: Root, artefact_id: str) -> None:
    """Remove the note of an artefact, if any."""
    store.delete_document(_name(artefact_id))


def noted(store: Root) -> set[str]:
    """Return the ids of all artefacts that have a note."""
    return {name.removeprefix(_FOLDER).removesuffix(_SUFFIX) for name in store.documents(_FOLDER)}


def _name(artefact_id: str) -> str:
    return f"{_FOLDER}{artefact_id}{_SUFFIX}"
