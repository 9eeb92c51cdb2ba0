"""A column of a declared Arrow schema: every one says what it holds."""

from __future__ import annotations

import pyarrow as pa


def column(name: str, kind: pa.DataType, about: str, nullable: bool = False) -> pa.Field:
    """Return a field whose description travels with the data, in the field's metadata."""
    return pa.field(name, kind, nullable=nullable, metadata={"description": about})
