"""Questions with their answers and gold passages, read from files that people have.

Accepted: lost-in-the-middle files (oracle or N documents, ``.jsonl`` or ``.jsonl.gz``; Liu et al. 2023), or a
``.parquet`` or ``.jsonl`` of your own with ``question``, ``answers`` (a list or one string) and, for multi-document
questions, ``text`` and optionally ``title`` of the passage that holds an answer.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import re
import string
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvray.errors import InputError

Split = Literal["test", "train", "all"]
TIMEOUT_S = 60
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Question:
    """One question. ``title`` and ``text`` are its gold passage; empty where the source has none."""

    id: str
    text: str
    answers: tuple[str, ...]
    title: str = ""
    passage: str = ""


def normalise(text: str) -> str:
    """Normalise as SQuAD does, in its order: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def best_subspan_em(answer: str, references: Sequence[str]) -> float:
    """Return 1.0 if the answer's first line contains any accepted answer, both normalised (Liu et al. 2023).

    The answer is stripped before its first line is taken, as their scripts do: a model that opens with a line end has
    not said nothing. Only a line feed ends the line.
    """
    said = normalise(answer.strip().partition("\n")[0])
    return float(any(normalise(reference) in said for reference in references))


def digest(source: str) -> str:
    """Return the sha256 of a source file's content.

    Raises:
        InputError: the file cannot be read.
    """
    return hashlib.sha256(_bytes(source)).hexdigest()


def read(source: str) -> list[Question]:
    """Read every question of a file, sorted by id so that the order of its lines does not matter.

    Args:
        source: a path, an http(s) URL, or an s3:// or gs:// URI; ``.jsonl``, ``.jsonl.gz`` or ``.parquet``.

    Raises:
        InputError: the file cannot be read, or a row has no question or answers; names the row.
    """
    found: dict[str, Question] = {}
    for number, row in enumerate(_rows(source), start=1):
        question = _question(row, f"{source}: row {number}")
        found.setdefault(question.id, question)
    if not found:
        raise InputError(f"{source}: no questions in it")
    return sorted(found.values(), key=lambda question: question.id)


def in_split(question: Question, split: Split) -> bool:
    """Tell whether a question belongs to a split: a fifth is for training, by the hash in its id."""
    return split == "all" or (int(question.id[-8:], 16) % 5 == 0) == (split == "train")


def _question(row: dict[str, Any], where: str) -> Question:
    text = row.get("question")
    answers = row.get("answers", row.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: no 'question'; found the fields {', '.join(row) or 'none'}")
    if (
        not isinstance(answers, (list, tuple))
        or not answers
        or not all(isinstance(answer, str) and answer.strip() for answer in answers)
    ):
        raise InputError(f"{where}: 'answers' must be a text or a list of texts; found {answers!r}")
    passages = row.get("ctxs") or []
    if not isinstance(passages, list) or not all(isinstance(passage, dict) for passage in passages):
        raise InputError(f"{where}: 'ctxs' must be a list of passages with 'title', 'text' and 'isgold'")
    gold: dict[str, Any] = next((passage for passage in passages if passage.get("isgold")), row)
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Question(name, text, tuple(answers), str(gold.get("title") or ""), str(gold.get("text") or ""))


def _rows(source: str) -> Iterator[dict[str, Any]]:
    data = _bytes(source)
    plain = source.split("?", maxsplit=1)[0]
    if plain.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(io.BytesIO(data))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{source}: not a whole Parquet file: {error}") from error
        yield from table.to_pylist()
        return
    if plain.endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{source}: not a whole gzip file: {error}") from error
    elif not plain.endswith((".jsonl", ".json")):
        raise InputError(f"{source}: expected .jsonl, .jsonl.gz or .parquet")
    # Cut at line feeds alone: a JSON text may hold U+2028 and other characters that str.splitlines() cuts at.
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{source}:{number}: not UTF-8: {error.reason} at byte {error.start + 1}") from error
        except json.JSONDecodeError as error:
            raise InputError(f"{source}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{source}:{number}: expected an object with 'question' and 'answers'")
        yield row


def _bytes(source: str) -> bytes:
    scheme = source.split("://", maxsplit=1)[0] if "://" in source else ""
    try:
        if scheme in ("http", "https"):
            with urllib.request.urlopen(source, timeout=TIMEOUT_S) as response:
                return bytes(response.read())
        if scheme:
            from pyarrow.fs import FileSystem

            files, path = FileSystem.from_uri(source)
            with files.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read())
        return Path(source).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"source: {source} cannot be read: {error}") from error
