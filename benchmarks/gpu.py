"""How fast a GPU finetunes a 7B model through kvray's own train function, how full it is, and what a start costs.

Random weights of Mistral-7B's shape are made here, so no hub is asked; Ray has no part in it. Each method trains on
rows of one length in a process of its own. Per method: tokens per second of the later steps, memory at the peak beside
what kvray estimates (and sized its micro-batches by), seconds until training begins (imports, reading 14.5 GB), of the
first step beyond a later one, and for writing the result. A matrix product of the same type is timed in the same run.

MFU counts the operations that the method needs, whatever was recomputed (Chowdhery et al. 2022, arXiv 2204.02311,
appendix B). A token takes, per weight of the layers, 2 forward and 2 back through the activations, and 2 more if the
weight trains: 6 N for all weights, 4 N for LoRA, whose frozen weights have no gradient; the adapters' own are left out.
Causal attention over a row of n tokens takes 6 n h more per layer (h: features of all heads; forward 2, backward 4,
half of the full square). Embeddings and logits are left out: there is one at a few positions of a row.

The record to compare with is LoRA of Qwen2.5-7B at 4,096 tokens on one H100, micro-batches of 2: 14,110 tokens/s, 423
TFLOP/s, 42.8 % of 989 (NVIDIA-NeMo/Automodel, docs/performance-summary, 2026-06). That is 30.0 GFLOP a token; this
count has 28.6 for that model, and 30.7 with logits at every position: the same convention.

    python benchmarks/gpu.py                          LoRA and attention, 4,096 tokens; then vLLM if it is installed
    python benchmarks/gpu.py --methods lora --rows 2 --checkpointing no
    python benchmarks/gpu.py --small                  the same code on a small model and a CPU, in under a minute
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kvray.models.memory import Decoder, decoder_of

MISTRAL_7B = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768,
    "sliding_window": None, "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
SMALL = {
    **MISTRAL_7B, "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "dtype": "float32",
}  # fmt: skip
BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "A10": 125e12, "L4": 121e12}
"""Dense bfloat16 operations per second by a part of the device's name (NVIDIA's data sheets; H100: SXM)."""
PUBLISHED = 14_110
"""Tokens per second of the record."""
ANSWER = 30
"""Tokens of a row that are trained on, as in the paper's data."""
PROMPT = 3_000
"""Tokens of a question of MDQA with 20 documents."""


def operations(decoder: Decoder, method: str, length: int) -> float:
    """Return the operations that finetuning takes per token of a row of ``length``; see the module's docstring."""
    trained = {"lora": 0, "attention": decoder.attention_weights, "full": decoder.layer_weights}[method]
    return 4 * decoder.layer_weights + 2 * trained + 6 * decoder.layers * decoder.queries * length


def make(directory: Path, sizes: dict[str, Any], gpu: bool) -> None:
    """Write a Mistral of these sizes with random weights, and kvray-tiny's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from kvray.models.reference import BUNDLED

    shutil.copytree(BUNDLED["kvray-tiny"], directory, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((directory / "config.json").read_text()) | sizes
    (directory / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    with torch.device("cuda" if gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory), dtype=sizes["dtype"])
    model.save_pretrained(directory)


def finetune(model: str, method: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Finetune on random rows; return seconds, tokens per second, bytes, and what was chosen."""
    began = time.monotonic()
    import numpy as np
    import torch

    from kvray.finetune.encode import Encoded
    from kvray.finetune.fit import largest, training_of
    from kvray.finetune.model import config_of
    from kvray.finetune.placement import Shape
    from kvray.finetune.train import train
    from kvray.models.reference import resolve
    from kvray.sweep.model import Finetune, Runtime

    gpu = torch.cuda.is_available()
    shape = Shape(workers=1, cpus=os.cpu_count() or 1, gpus=float(gpu))
    checkpointing = {"yes": True, "no": False, "auto": None}[asked.checkpointing]
    runtime = Runtime(per_device_batch_size=asked.rows, gradient_checkpointing=checkpointing)
    recipe = Finetune(method=method, batch_size=asked.batch, epochs=1)
    rng, rows = np.random.default_rng(0), asked.batch * asked.steps
    ids = list(rng.integers(3, 1000, (rows, asked.length)).astype(np.int32))
    ended: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        done = train(
            resolve(model),
            Encoded(ids, np.full(rows, ANSWER, np.int32)),
            recipe,
            0,
            Path(folder),
            shape=shape,
            runtime=runtime,
            on_log=lambda _: ended.append(time.monotonic()),
        )
        saved = time.monotonic() - ended[-1]
    steps = np.diff(ended)
    step = statistics.median(steps)
    first = done.log[0]["seconds"]
    training = training_of(config_of(resolve(model)), recipe, shape, runtime, mixed=gpu)
    assert training is not None
    lengths, answers = (np.full((asked.steps, asked.batch), each) for each in (asked.length, ANSWER))
    batch = largest(lengths, answers, done.measurements["rows_per_pass"], packed=True)
    return {
        "tokens_per_second": asked.batch * asked.length / step,
        "begin": ended[0] - first - began,
        "first": first - step,
        "save": saved,
        "estimate": training.peak(batch, done.measurements["gradient_checkpointing"]),
        **done.measurements,
    }


def product(gpu: bool) -> float:
    """Return the operations per second of a matrix product: bfloat16 on a GPU, else float32."""
    import torch

    device, size = ("cuda", 8192) if gpu else ("cpu", 1024)
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16 if gpu else torch.float32)
    repeats = 30
    for timed in (False, True):  # the first time, libraries choose their kernels
        began = time.monotonic()
        for _ in range(repeats):
            left @ right
        if gpu:
            torch.cuda.synchronize()
        if timed:
            return 2 * size**3 * repeats / (time.monotonic() - began)
    raise AssertionError


def serve(model: str, adapters: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Answer prompts of MDQA's length through kvray's vLLM engine, dealt over adapters; return prompt tokens/s."""
    import numpy as np

    from kvray.evaluate.engines.base import Adapter, Request, Serving
    from kvray.evaluate.engines.vllm import VllmEngine
    from kvray.models.reference import resolve
    from kvray.sweep.model import Runtime

    gpu = asked.device == "gpu"
    VllmEngine.prepare(gpus=float(gpu), cpus=os.cpu_count() or 1)
    serving = Serving(resolve(model), None, Runtime(max_loras=max(1, adapters)), gpus=float(gpu))
    engine = VllmEngine(serving)
    drawn = np.random.default_rng(0).integers(3, 1000, (asked.prompts, min(PROMPT, asked.length))).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        held = [Adapter(f"a{n}", n + 1, adapter(model, Path(folder) / str(n), n)) for n in range(adapters)]
        for each in held:
            engine.add(each)
        began = time.monotonic()
        engine.start(drawn.shape[1] + 32)
        for each in held:
            engine.load(each)
        started = time.monotonic() - began
        chosen = [held[n % adapters] if held else None for n in range(len(drawn))]
        requests = [Request(p, max_tokens=8, adapter=each) for p, each in zip(drawn, chosen, strict=True)]
        began = time.monotonic()
        answered = len(list(engine.answer(enumerate(requests))))
        seconds = time.monotonic() - began
    assert answered == len(drawn)
    return {"adapters": adapters, "start": started, "tokens_per_second": drawn.size / seconds}


def adapter(model: str, directory: Path, seed: int) -> Path:
    """Write a LoRA adapter of random weights for a model, as a finetune's is; return its directory."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from kvray.finetune.model import config_of, prepare
    from kvray.models.reference import resolve
    from kvray.sweep.model import Finetune

    with torch.device("meta"):
        made = prepare(AutoModelForCausalLM.from_config(config_of(resolve(model))), Finetune())
    drawn = torch.Generator().manual_seed(seed)
    weights = {
        name.replace(".default", ""): torch.randn(weight.shape, generator=drawn) / 50
        for name, weight in made.state_dict().items()
        if "lora_" in name
    }
    made.peft_config["default"].save_pretrained(directory)
    save_file(weights, directory / "adapter_model.safetensors", {"format": "pt"})
    return directory


def apart(stage: str, asked: argparse.Namespace, model: str, *more: str) -> dict[str, Any]:
    """Run a stage in a process of its own, with this one's arguments; return what it found."""
    given = ["--stage", stage, "--model", model, *more, *sys.argv[1:]]
    if asked.small:
        given = ["--small", *(each for each in given if each != "--small")]
    done = subprocess.run([sys.executable, __file__, *given], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def table(asked: argparse.Namespace, model: str, sizes: dict[str, Any], reached: float) -> None:
    """Finetune with every method and print the table; a matrix product ``reached`` so many operations per second."""
    decoder = decoder_of(sizes)
    assert decoder is not None
    print(f"{decoder.weights / 1e9:.2f}B weights, rows of {asked.length:,} tokens, {asked.batch} rows a step")
    print(f"{'':>10}  {'tokens/s':>9} {'of 14,110':>9} {'TFLOP/s':>8} {'MFU':>6} {'of product':>10}  ", end="")
    print(
        f"{'peak GB':>7} {'estimate':>8}  {'begin s':>7} {'first s':>7} {'save s':>6}  rows a pass, attention, device"
    )
    for method in asked.methods:
        found = apart("finetune", asked, model, "--methods", method)
        rate = found["tokens_per_second"]
        speed = rate * operations(decoder, method, asked.length)
        peak = next((most for name, most in BF16.items() if name in found["device"].split()), None)
        used = f"{speed / peak:.1%}" if peak else "-"
        how = [f"{found['rows_per_pass']}{' recomputed' if found['gradient_checkpointing'] else ''}"]
        print(
            f"{method:>10}  {rate:>9,.0f} {rate / PUBLISHED:>9.2f} {speed / 1e12:>8.3g} {used:>6} "
            f"{speed / reached:>10.1%}  {found['peak_gpu_bytes'] / 1e9:>7.1f} {found['estimate'] / 1e9:>8.1f}  "
            f"{found['begin']:>7.1f} {found['first']:>7.1f} {found['save']:>6.1f}  "
            f"{', '.join([*how, found['attention'], found['device']])}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small model, short rows, few steps")
    parser.add_argument("--methods", nargs="+", default=["lora", "attention"], choices=["lora", "attention", "full"])
    parser.add_argument("--length", type=int, help="tokens per row; default 4096")
    parser.add_argument("--batch", type=int, help="rows per optimizer step; default 16")
    parser.add_argument("--steps", type=int, help="optimizer steps; default 8")
    parser.add_argument("--rows", type=int, help="rows per forward pass; default as many as fit")
    parser.add_argument("--checkpointing", choices=["yes", "no", "auto"], default="auto")
    parser.add_argument("--serve", choices=["yes", "no"], help="vLLM too; default where it is installed, on a GPU")
    parser.add_argument("--prompts", type=int, default=128, help="prompts for vLLM")
    parser.add_argument("--directory", help="where the model is written; default a temporary folder")
    parser.add_argument("--stage", choices=["make", "finetune", "serve"], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--adapters", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    for name, (usual, small) in {"length": (4096, 256), "batch": (16, 4), "steps": (8, 4)}.items():
        if getattr(asked, name) is None:
            setattr(asked, name, small if asked.small else usual)
    import torch

    gpu, sizes = torch.cuda.is_available(), SMALL if asked.small else MISTRAL_7B
    asked.device = "gpu" if gpu else "cpu"
    if not gpu and not asked.small:
        parser.error("there is no GPU here; --small runs the same code on a small model")
    if asked.stage == "make":
        make(Path(asked.model), sizes, gpu)
        print(json.dumps({"operations": product(gpu)}))
    elif asked.stage == "finetune":
        print(json.dumps(finetune(asked.model, asked.methods[0], asked)))
    elif asked.stage == "serve":
        print(json.dumps(serve(asked.model, asked.adapters, asked)))
    if asked.stage:
        return
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder:
        model = f"{folder}/model"
        table(asked, model, sizes, apart("make", asked, model)["operations"])
        if asked.serve == "no" or (asked.serve is None and (not gpu or importlib.util.find_spec("vllm") is None)):
            return
        print(f"\nvLLM, prompts of {min(PROMPT, asked.length):,} tokens")
        print(f"{'adapters':>8}  {'prompt tokens/s':>15} {'of none':>8}  {'start s':>7}")
        none = 0.0
        for adapters in (0, 1, 8):
            found = apart("serve", asked, model, "--adapters", str(adapters))
            rate = found["tokens_per_second"]
            none = none or rate
            print(f"{adapters:>8}  {rate:>15,.0f} {rate / none:>8.2f}  {found['start']:>7.1f}", flush=True)


if __name__ == "__main__":
    main()
