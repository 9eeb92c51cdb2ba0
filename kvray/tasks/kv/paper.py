"""Law ``paper``: what the paper's scripts do to any dictionary task, quirks included (edixiong/artificial-needles).

The gold dictionary has 3 keys whatever the others have (``gold_dict_size`` of the released configurations). A key that
is repeated in a dictionary overwrites, as in any Python dict (``dict_builder.py``). A draft is accepted 100 tokens
below the budget with the gold dictionary first, and 30 below as emitted; both count the first token, BOS (``task.py``),
as the knob ``count_bos`` does.
"""

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
    slots, flat = keys.shape[2], keys.reshape(-1)
    # Equal keys that are no further apart than slots are rare, so only they are looked at more closely.
    repeated = {
        at // slots
        for apart in range(1, slots)
        for at in np.flatnonzero(flat[apart:] == flat[:-apart]).tolist()
        if at % slots + apart < slots
    }
    for dictionary in repeated:
        at = divmod(dictionary, keys.shape[1])
        size = sizes[at]
        pairs = dict(zip(keys[at][:size].tolist(), values[at][:size].tolist(), strict=True))
        sizes[at] = len(pairs)
        keys[at][: len(pairs)], values[at][: len(pairs)] = list(pairs), list(pairs.values())
