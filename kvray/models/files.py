"""What a model's files say; read in milliseconds, as importing the libraries that load a model takes ten seconds."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
"""A tokenizer that transformers can load has at least one of these files."""
SMALL_FILES = ("*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")  # all that a plan needs, without weights
_INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")  # fields with the context's length
_STRETCHED_ALREADY = ("su", "longrope", "llama3")  # rotary embeddings whose stretching the length includes (vLLM)
_WIDTHS = ("hidden_size", "n_embd", "d_model")  # fields with the number of features between layers
_LAYER_WEIGHT = re.compile(r"(?:^|\.)\d+\.(?:.+\.)?([^.]+\.[^.]+)\.weight")  # of a module in a numbered layer
_UNADAPTED = ("norm", "ln_", "embed", "conv")  # in the names of modules that get no adapter
_ELSEWHERE = ("vision", "visual", "audio")  # in the names of weights outside the language model
_FUSED = ("expert", "moe")  # in the names of weights that transformers renames when loading


def problems(directory: Path, weights: bool = True) -> list[str]:
    """Return what a model's directory lacks to be loaded, with or without its weights."""
    if not (directory / "config.json").is_file():
        return ["is a directory without config.json, so not a transformers model"]
    try:
        config = _mapping(directory / "config.json")
    except ValueError as error:
        return [f"has a config.json that cannot be read: {error}"]
    lacking = _weight_problems(directory) if weights else []
    if not any((directory / name).is_file() for name in TOKENIZERS):
        lacking.append(
            "has no tokenizer (tokenizer.json, or tokenizer.model); copy it from the model that this one was made of: "
            "AutoTokenizer.from_pretrained(THAT).save_pretrained(THIS)"
        )
    if weights and not config.get("architectures"):
        lacking.append("has a config.json without architectures, so vLLM cannot serve it; save the model again")
    return lacking


def linear_modules(tensors: Collection[str]) -> frozenset[str]:
    """Return the linear modules of a model's layers, from the names of its weights: ``self_attn.q_proj`` and so on.

    Each has the name of the module that it lies in. Empty if the names tell nothing: there are none, or transformers
    renames some when loading (experts).
    """
    if any(part in name for name in tensors for part in _FUSED):
        return frozenset()
    own = [name for name in tensors if not any(part in name for part in _ELSEWHERE)]
    modules = {match[1] for name in own if (match := _LAYER_WEIGHT.search(name))}
    return frozenset(name for name in modules if not any(part in name.rpartition(".")[2] for part in _UNADAPTED))


def _weight_problems(directory: Path) -> list[str]:
    index = directory / _INDEX
    if not index.is_file():
        if ModelFiles(directory).weights:
            return []
        pickled = next((path.name for pattern in _PICKLED for path in sorted(directory.glob(pattern))), None)
        if pickled:
            return [
                f"has pickled weights ({pickled}), which can hold code; expected safetensors: "
                "AutoModelForCausalLM.from_pretrained(THIS).save_pretrained(THIS), if you trust where it is from"
            ]
        return [f"has no weights (model.safetensors, or what {_INDEX} lists)"]
    try:
        listed = set(_mapping(index)["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        return [f"has an unreadable {_INDEX} ({error})"]
    missing = sorted(file for file in listed if not (directory / file).is_file())
    return [f"lacks {len(missing)} of {len(listed)} files of weights, {missing[0]} first"] if missing else []


def _mapping(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError if it is missing, unreadable or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, found {type(value).__name__}")
    return value


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model in a directory."""

    directory: Path

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """``config.json``; of a multimodal model, with the fields of its text part."""
        config = self._optional("config.json")
        text = config.get("text_config")
        return {**config, **text} if isinstance(text, dict) else config

    @cached_property
    def tokenizer_config(self) -> Mapping[str, Any]:
        """``tokenizer_config.json``, with the special tokens that older models have in a file of their own."""
        return {**self._optional("special_tokens_map.json"), **self._optional("tokenizer_config.json")}

    @property
    def trained_length(self) -> int | None:
        """Most tokens of a training row; None if the files do not say."""
        length = self.config.get("max_position_embeddings")
        return length if isinstance(length, int) else None

    @property
    def served_length(self) -> int | None:
        """Most tokens of prompt and answer that vLLM serves (vllm/config/model.py); None if the files do not say."""
        lengths = [value for name in _LENGTHS if isinstance(value := self.config.get(name), int)]
        if not lengths:
            return None
        rope = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        scalings = [rope, *(each for each in rope.values() if isinstance(each, dict))]
        factors = [
            scaling["factor"]
            for scaling in scalings
            if isinstance(scaling.get("factor"), int | float)
            and scaling.get("rope_type", scaling.get("type")) not in _STRETCHED_ALREADY
        ]
        return int(min(lengths) * max(factors, default=1.0))

    @property
    def width(self) -> int | None:
        """Features of a token between layers; None if the files do not say."""
        return next((value for name in _WIDTHS if isinstance(value := self.config.get(name), int)), None)

    @property
    def architecture(self) -> str | None:
        """The model's class in transformers, by which vLLM too chooses its own; None if the files do not say."""
        named = self._optional("config.json").get("architectures")
        return str(named[0]) if isinstance(named, list) and named else None

    @property
    def chat_template(self) -> str | None:
        """The template that turns a conversation into text; None if the tokenizer has none."""
        file = self.directory / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        for config in (self.tokenizer_config, self._optional("chat_template.json")):
            template = config.get("chat_template")
            if isinstance(template, str):
                return template
            if isinstance(template, list):
                named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
                return named.get("default")
        return None

    @property
    def special_tokens(self) -> dict[str, str]:
        """The texts of special tokens by name: ``bos_token``, ``eos_token`` and so on."""
        named = {name: value for name, value in self.tokenizer_config.items() if name.endswith("_token")}
        texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
        return {name: text for name, text in texts.items() if isinstance(text, str)}

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end an answer by the configuration, beside the tokenizer's own."""
        ends = self.config.get("eos_token_id")
        return frozenset(each for each in (ends if isinstance(ends, list) else [ends]) if isinstance(each, int))

    @property
    def weights(self) -> bool:
        """Whether weights lie in the directory."""
        return any(self.directory.glob("*.safetensors"))

    def tensor_names(self) -> frozenset[str]:
        """Return the names of the weights; empty if unknown (not there, or pickled)."""
        from safetensors import SafetensorError, safe_open

        names: set[str] = set()
        try:
            names |= set(self._optional(_INDEX).get("weight_map", {}))
            for file in () if names else self.directory.glob("*.safetensors"):
                with safe_open(file, "np") as tensors:
                    names |= set(tensors.keys())
        except (OSError, SafetensorError):
            return frozenset()
        return frozenset(names)

    def _optional(self, name: str) -> dict[str, Any]:
        try:
            return _mapping(self.directory / name)
        except ValueError:
            return {}
