"""LoRA adapters: their ranks, the modules that get one, and the models that vLLM serves none of.

One rule each for sweep files, for training and for serving.
"""

from collections.abc import Collection

ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM 0.32 can be set to (``MaxLoRARanks`` in vllm/config/lora.py); an engine also serves smaller ones."""
LARGEST_RANK = ENGINE_RANKS[-1]
MERGED_ROWS = 256
"""Rows of an evaluation from which an adapter is merged for it where a sweep says ``adapters: auto``.

Measured with kvray-tiny on a CPU (benchmarks/evaluate.py --threshold), merging is sooner from the first row on: 8.5 ms
per row instead of 12.6, and both are ready after 0.1 s. Larger models take longer to exchange: for a 7B on a GPU, where
nothing was measured, a few seconds for the 2.7 GB of its attention, and 10 to 30 % of the 0.2 s of a 4K prompt, come
out at 100 to 200 rows.
"""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The projections of attention in Llama, Mistral, Qwen, Gemma and most other families."""
UNSERVED = frozenset(
    """
    BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM BloomForCausalLM Cohere2MoeForCausalLM DbrxForCausalLM
    FalconForCausalLM FalconMambaForCausalLM GPT2LMHeadModel GPTJForCausalLM Gemma3nForCausalLM Glm5NextForCausalLM
    HCXVisionV2ForCausalLM HrmTextForCausalLM IQuestLoopCoderForCausalLM KimiLinearForCausalLM Mamba2ForCausalLM
    MambaForCausalLM MiMoV2FlashForCausalLM MiMoV2ForCausalLM MiniMaxM3SparseForCausalLM OrionForCausalLM
    StableLmForCausalLM Step1ForCausalLM Step3TextForCausalLM Step3p5ForCausalLM Zamba2ForCausalLM
    """.split()
)
"""Architectures in vLLM 0.32's registry of text models whose classes lack ``SupportsLoRA``."""


def target_names(asked: str | Collection[str], modules: Collection[str]) -> tuple[str, ...]:
    """Return the names of the modules that get an adapter; empty if the model has none of that kind.

    The order is that of recipes: :data:`ATTENTION` first, then by the alphabet.

    Args:
        asked: names, returned as they are; ``attention``: :data:`ATTENTION` where the model has all of them, else
            what lies in its attention blocks and nowhere else (Phi-3's ``qkv_proj`` and ``o_proj``, GPT-NeoX's
            ``query_key_value`` and ``dense``, GPT-2's ``c_attn``); ``all-linear``: all, as peft's ``all-linear``.
        modules: the linear modules of the model's layers, each with the module that it lies in: ``self_attn.q_proj``.
    """
    if not isinstance(asked, str):
        return tuple(asked)
    names = {module.rpartition(".")[2] for module in modules}
    if asked == "attention":
        within = {module.rpartition(".")[2] for module in modules if _in_attention(module)}
        elsewhere = {module.rpartition(".")[2] for module in modules if not _in_attention(module)}
        names = set(ATTENTION) if names.issuperset(ATTENTION) else within - elsewhere
    return tuple(sorted(names, key=lambda name: (ATTENTION.index(name) if name in ATTENTION else len(ATTENTION), name)))


def _in_attention(module: str) -> bool:
    holder = module.rpartition(".")[0]
    return "attn" in holder or "attention" in holder
