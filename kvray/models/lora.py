"""Ranks of LoRA adapters: the one rule for sweep files, for training and for serving."""

ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM 0.32 can be set to (``MaxLoRARanks`` in vllm/config/lora.py); an engine also serves smaller ones."""
LARGEST_RANK = ENGINE_RANKS[-1]
