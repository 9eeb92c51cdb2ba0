"""Mistral-7B-Instruct-v0.1 as kvray reads it from a directory: all its files but the weights, without the hub.

Its tokenizer ships in ``mistral_common``, a dependency of vLLM. Written as the hub's ``tokenizer.json`` has it (BPE
with byte fallback, no pre-tokenizer, a leading space), it encodes as sentencepiece does. Sizes are those of the
model's ``config.json``; the chat template is that of its ``tokenizer_config.json`` of early 2024, as llama.cpp's tests
of templates (``tests/test-chat-template.cpp``) quote it.
"""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest

CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_SPACE = "\u2581"  # sentencepiece writes a space so


def mistral(directory: Path) -> Path:
    """Write the model's files into a new directory and return it; its file of weights is a header without weights.

    Skips the test where ``mistral_common`` and sentencepiece, which come with vLLM, are not installed.
    """
    pytest.importorskip("mistral_common")
    pytest.importorskip("sentencepiece")
    directory.mkdir(parents=True)
    with resources.as_file(resources.files("mistral_common") / "data" / "tokenizer.model.v1") as model:
        shutil.copyfile(model, directory / "tokenizer.model")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, "add_eos_token": False}
    shapes = _weights()
    index = {"metadata": {}, "weight_map": dict.fromkeys(shapes, "model.safetensors")}
    entries = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    header = json.dumps(entries).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    documents = {
        "config.json": CONFIG,
        "tokenizer_config.json": {**tokenizer, **special, "chat_template": CHAT_TEMPLATE},
        "special_tokens_map.json": special,
        "model.safetensors.index.json": index,
        "tokenizer.json": _fast_tokenizer(directory / "tokenizer.model"),
    }
    for name, document in documents.items():
        (directory / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return directory


def _weights() -> dict[str, list[int]]:
    """Return the shape of every weight by name: 7.24 billion numbers."""
    hidden, inner, keys = 4096, 14336, 1024
    shapes = {"model.embed_tokens": [32000, hidden], "lm_head": [32000, hidden], "model.norm": [hidden]}
    for layer in range(32):
        block = {
            f"self_attn.{name}_proj": [size, hidden] for name, size in zip("qkv", (hidden, keys, keys), strict=True)
        }
        block |= {
            "self_attn.o_proj": [hidden, hidden],
            "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden],
        }
        block |= {"mlp.down_proj": [hidden, inner], "input_layernorm": [hidden], "post_attention_layernorm": [hidden]}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def _fast_tokenizer(model: Path) -> dict[str, object]:
    """Return ``tokenizer.json`` for a sentencepiece BPE model: a piece is merged the earlier, the higher its score."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(str(model))
    vocabulary = {pieces.id_to_piece(number): number for number in range(pieces.vocab_size())}
    merges: list[tuple[str, str]] = []
    for piece in sorted(vocabulary, key=lambda piece: -pieces.get_score(vocabulary[piece])):
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": at, "content": text, **plain} for at, text in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }
