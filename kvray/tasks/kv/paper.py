"""Law ``paper``: what the paper's scripts do to any dictionary task, quirks included (edixiong/artificial-needles).

The gold dictionary has 3 keys whatever the others have (``gold_dict_size`` of the released configurations). A key that
is repeated in a dictionary overwrites, as in any Python dict (``dict_builder.py``). A draft is accepted 100 tokens
below the budget with the gold dictionary first, and 30 below as emitted; both count the first token, BOS (``task.py``),
as the knob ``count_bos`` does.
"""

from itertools import combinations

import numpy as np

from kvray.tasks.kv.draws import Ints, Mask

GOLD_KEYS = 3
"""Keys of the gold dictionary."""
DRAFT_MARGIN, PROMPT_MARGIN = 100, 30
"""Tokens below the budget with the gold dictionary first, and as emitted."""
BUDGET = f"stayed below max_tokens - {DRAFT_MARGIN}"


def accepted(first: Ints, emitted: Ints, budget: int) -> Mask:
    """Mark the drafts that are kept, by their tokens with the gold dictionary first and as emitted."""
    kept: Mask = (first < budget - DRAFT_MARGIN) & (emitted < budget - PROMPT_MARGIN)
    return kept


def collapse(keys: Ints, values: Ints, sizes: Ints) -> None:
    """Let a repeated key of a dictionary overwrite, as in a Python dict: first place, last value. In place.

    ``keys`` and ``values`` have shape ``(rows, dictionaries, slots)``; ``sizes``, the slots in use, has shape
    ``(rows, dictionaries)`` and is lowered where keys repeat.
    """
    repeated = np.zeros(sizes.shape, np.bool_)
    for first, later in combinations(range(keys.shape[2]), 2):
        repeated |= (keys[:, :, first] == keys[:, :, later]) & (later < sizes)
    for at in zip(*np.nonzero(repeated), strict=True):
        used = slice(sizes[at])
        pairs = dict(zip(keys[at][used].tolist(), values[at][used].tolist(), strict=True))
        sizes[at] = len(pairs)
        keys[at][: len(pairs)], values[at][: len(pairs)] = list(pairs), list(pairs.values())
