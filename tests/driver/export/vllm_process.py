"""Open exported folders with vLLM as anybody would, and print the token ids that it writes: ``MODEL [ADAPTER]``."""

from __future__ import annotations

import json
import os
import sys

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process, which starts in seconds
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    """Read prompts, lists of token ids, from standard input; print what is written with and without the adapter."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    model, *adapter = sys.argv[1:]
    prompts = [{"prompt_token_ids": ids} for ids in json.load(sys.stdin)]
    loras = {"enable_lora": True, "max_lora_rank": 8} if adapter else {}
    small = {"max_model_len": 256, "max_num_seqs": 32, "max_num_batched_tokens": 4096, "block_size": 32}
    engine = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=2**26,
        disable_log_stats=True,
        **small,
        **loras,
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    asked = [None, *(LoRARequest("shipped", 1, path) for path in adapter)]
    written = [engine.generate(prompts, greedy, use_tqdm=False, lora_request=each) for each in asked]
    print(json.dumps([[list(reply.outputs[0].token_ids) for reply in replies] for replies in written]))


if __name__ == "__main__":
    main()
