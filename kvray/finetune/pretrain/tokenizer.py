"""The tokenizer of kvray-tiny: a small byte-level BPE over the tasks' own texts, integers in pieces of two digits.

Two-digit pieces make the number alphabet 110 tokens, which a tiny model can learn; the names and values of the made-up
world become one token each. Any other text still round-trips, as bytes.
"""

import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

from kvray.tasks import world
from kvray.tasks.rng import below, draws, key_of

VOCABULARY = 1536
# Digits in pairs from the left; a word with its leading space; a word or punctuation before an integer takes the
# space between them along, so that one token separates a key from its value: ": " in a dictionary, " is " in an answer.
SPLIT = r"\p{N}{1,2}| ?\p{L}+ (?=\p{N})| ?\p{L}+|[^\s\p{L}\p{N}]+ (?=\p{N})| ?[^\s\p{L}\p{N}]+|\s*\n+|\s+(?!\S)|\s+"
BOS, EOS, PAD, USER, ASSISTANT = "<s>", "</s>", "<pad>", "[INST]", "[/INST]"


def build() -> Any:
    """Train the tokenizer; return a transformers ``PreTrainedTokenizerFast`` with the chat template set."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(text, normalized=False) for text in (PAD, BOS, EOS, USER, ASSISTANT)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (
        resources.files("kvray.finetune.pretrain").joinpath("chat_template.jinja").read_text("utf-8")
    )
    return tokenizer


def corpus() -> Iterator[str]:
    """Yield the texts that the merges are learned from: every name, value, number pair and fixed wording."""
    from kvray.tasks.prompts import WORDINGS

    groups: tuple[world.Group, ...] = ("known", "test")
    for group in groups:
        size = world.group_size(group)
        for person in range(size):
            name = world.name_of(group, person)
            for relation, values in world.RELATIONS.items():
                value = values[(person * 7) % len(values)]
                text = world.passage(name, [(relation, value)])
                yield f"{world.question(name, relation)}\n{text} {text}\nDocument [1](Title: {name}) {text}"
    numbers = below(draws(key_of("tokenizer", 1), 0, 20000, 2), 10000)
    for key, value in numbers.tolist():
        content = f"{{{key}: {value}, {value}: {key}}}"
        yield f"\nDictionary [{key % 100}] {content} ({key}, {value})\nDictionary [1] {{({key}, 1): 2}}"
    for wording in WORDINGS:
        filled = re.sub(r"{(key|value|dictionary|index|subkeys)}", "1234", wording)
        yield from [filled] * 2000
