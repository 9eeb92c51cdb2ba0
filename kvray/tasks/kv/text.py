"""Text as rows of piece numbers, spelled by Arrow: a piece costs one look-up, and no Python string is made.

``take`` on an Arrow string array lays the chosen strings end to end in one buffer. With a border after each row's last
piece, that buffer already is the column of the rows' texts.
"""

from collections.abc import Iterable, Sequence
from string import Formatter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Numbers = NDArray[np.int32]
Parts = list[str | Numbers]
"""Texts side by side: one for every row, or numbers of pieces, of shape ``(rows,)`` or ``(rows, width)``."""


def integer_pieces(limit: int, left: str = "", right: str = "") -> pa.StringArray:
    """Return one piece per integer below ``limit``: its digits between ``left`` and ``right``."""
    return pc.binary_join_element_wise(left, pa.array(np.arange(limit)).cast(pa.string()), right, "")


def fill_in(wording: str, **values: str | Numbers | Parts) -> Parts:
    """Split a wording at its ``{names}`` and put the value of each in its place, for :meth:`Pieces.spell`."""
    parts: Parts = []
    for text, name, _, _ in Formatter().parse(wording):
        value = values[name] if name else []
        parts += [text, *(value if isinstance(value, list) else [value])]
    return parts


def listed(columns: Numbers) -> Parts:
    """Return the columns of piece numbers ``(rows, columns)`` with a comma and a space between them."""
    return [part for column in columns.T for part in (", ", column)][1:]


class Pieces:
    """Texts by number: at first some tables of them, one after the other; further texts as they come.

    Attributes:
        starts: the number of each table's first piece.
    """

    def __init__(self, tables: Iterable[pa.StringArray]) -> None:
        arrays = list(tables)
        self.starts = np.cumsum([0, *map(len, arrays)])[:-1].tolist()
        self._all: pa.StringArray = pa.concat_arrays(arrays)
        self._texts: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Return the number of a text, which is added if it is new."""
        if text not in self._texts:
            self._texts[text] = len(self._all)
            self._all = pa.concat_arrays([self._all, pa.array([text])])
        return self._texts[text]

    def spell(self, rows: int, parts: Sequence[str | Numbers]) -> pa.StringArray:
        """Lay parts side by side and return the text of each row."""
        if not rows:
            return pa.array([], pa.string())
        fixed = {part: np.full((rows, 1), self.number(part), np.int32) for part in parts if isinstance(part, str)}
        columns = [fixed[part] if isinstance(part, str) else part.reshape(rows, -1) for part in parts]
        numbers = np.concatenate(columns, axis=1)
        _, borders, text = self._all.take(pa.array(numbers.reshape(-1))).buffers()
        ends = np.frombuffer(borders, np.int32, numbers.size + 1)[:: numbers.shape[1]]
        return pa.StringArray.from_buffers(rows, pa.py_buffer(ends.tobytes()), text)
