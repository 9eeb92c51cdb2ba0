"""How a finetune computes attention: on rows packed one behind the other where the GPU has a kernel for that.

A packed batch has no padding and no mask: a flash kernel is told where rows begin ("variable length"; Dao 2023, arXiv
2307.08691), and a row attends to itself alone. Padded rows of unlike lengths instead need a mask of length x length,
which no flash kernel takes (transformers' ``masking_utils``). Both compute the same up to rounding, so which one runs
is no part of a finetune's recipe; its measurements record it.
"""

from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.utils import is_flash_attn_3_available

from kvray.errors import CellError

VARLEN = "torch_varlen"
"""Name, in transformers, of :func:`varlen_forward`."""
FLASH_3 = "flash_attention_3"
"""The flash kernels for Hopper, which are a package of their own."""
_HOPPER = 9
_AMPERE = 8
_LARGEST_HEAD = 256
_LAYERS = {"full_attention", "sliding_attention"}


def choose(config: Any, capability: tuple[int, int] | None) -> str | None:
    """Return the attention that a transformers ``config``'s model is loaded with; None is transformers' own choice.

    ``capability`` is the GPU's CUDA compute capability, None on CPU. Rows are packed only where it is known that no
    row sees another: by decoders of transformers itself (code from the hub is not known) whose layers all are attention
    and leave masks to flash kernels.
    """
    if capability is None or capability[0] < _AMPERE or type(config) not in AutoModelForCausalLM._model_mapping:
        return None
    decoder, text = AutoModelForCausalLM._model_mapping[type(config)], config.get_text_config()
    packable = (
        decoder._supports_flash_attn
        and decoder._supports_attention_backend
        and not decoder._is_stateful
        and set(getattr(text, "layer_types", None) or _LAYERS) <= _LAYERS
        and not getattr(text, "attention_chunk_size", None)
        and not getattr(text, "attention_dropout", 0)
        and not getattr(text, "v_head_dim", None)  # values narrower than keys
        and (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) <= _LARGEST_HEAD
    )
    if not packable:
        return None
    if capability[0] == _HOPPER and is_flash_attn_3_available():
        return FLASH_3
    return None if getattr(text, "attn_logit_softcapping", None) else VARLEN


def packs(name: str | None) -> bool:
    """Return whether rows are packed for an attention of this name."""
    return name in (VARLEN, FLASH_3)


def varlen_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within the rows of a packed batch, by torch's own flash kernel; transformers calls it.

    ``query`` is ``(1, heads, tokens, head size)``, ``key`` and ``value`` likewise with their own heads; row ``i`` is at
    the tokens ``cu_seq_lens_q[i]`` to ``cu_seq_lens_q[i + 1]`` (int32, as of :func:`kvray.finetune.batches.pack`), the
    longest has ``max_length_q``. Returns ``(1, tokens, heads, head size)`` and no weights. Raises CellError
    for what the kernel does not compute, rather than attend to something else.
    """
    refused = {"a mask": attention_mask, "softcap": others.get("softcap"), "sinks": others.get("s_aux")}
    refused |= {"a position bias": others.get("position_bias"), "dropout": dropout or None}
    found = [name for name, given in refused.items() if given is not None]
    if found or cu_seq_lens_q is None or max_length_q is None or not getattr(module, "is_causal", True):
        what = " and ".join(found) or "rows that are not packed, or attention that is not causal"
        raise CellError(f"{type(module).__name__} asks for {what}, which {VARLEN} does not compute")
    if query.dtype == torch.float32 and torch.is_autocast_enabled(query.device.type):
        query, key, value = (each.to(torch.get_autocast_dtype(query.device.type)) for each in (query, key, value))
    queries, keys, values = (each[0].transpose(0, 1) for each in (query, key, value.to(query.dtype)))
    # The window counts the token itself; the kernel's is what lies to the left of it.
    left = -1 if sliding_window is None else sliding_window - 1
    attended = varlen_attn(
        queries,
        keys,
        values,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(left, 0),
        enable_gqa=True,
    )
    assert isinstance(attended, torch.Tensor)  # with auxiliary outputs, which were not asked for, it would be a tuple
    return attended[None], None


AttentionInterface.register(VARLEN, varlen_forward)
