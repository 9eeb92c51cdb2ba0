"""Mistral's own tokenizer, which plans at real size count with, is read as its publisher's library reads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvray.models.reference import resolve
from kvray.models.tokenizer import token_counter
from kvray.planning.lengths import counting
from kvray.tasks.kv.simple import SimpleKV

TEXTS = ("Hello world", "  two  spaces ", "[INST] Do it [/INST]", "a\nb\n\nDictionary [1] {3: 44}", "é☃ 日本\u00af", "")


def test_texts_have_as_many_tokens_as_sentencepiece_says(mistral_model: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(str(mistral_model / "tokenizer.model"))
    counted = token_counter(resolve(str(mistral_model)))(TEXTS)
    assert counted.tolist() == [len(pieces.encode(text)) for text in TEXTS]


def test_a_chat_is_wrapped_as_mistral_was_trained(mistral_model: Path) -> None:
    counted = counting(resolve(str(mistral_model)))
    assert counted is not None
    plain = token_counter(resolve(str(mistral_model)))(["Do it"])
    asked, trained = counted.count(plain, ["Do it"], ["The answer"], check=True)
    # <s> _[ INST ] _Do _it _[ / INST ], then The _answer </s>
    assert (plain.tolist(), asked.tolist(), trained.tolist()) == ([2], [10], [13])


def test_a_directory_with_a_sentencepiece_model_alone_is_counted(mistral_model: Path, tmp_path: Path) -> None:
    shutil.copytree(mistral_model, tmp_path / "m", ignore=shutil.ignore_patterns("tokenizer.json"))
    fast, slow = (token_counter(resolve(str(path))) for path in (mistral_model, tmp_path / "m"))
    task = SimpleKV(rows=3)
    prompts = task.build(0, 3, task.context(fast))["prompt"].to_pylist()
    assert slow(prompts).tolist() == pytest.approx(fast(prompts).tolist(), abs=1)
