"""kvray: which synthetic long-context finetuning data makes a language model retrieve better.

The package is a chain of stages that exchange committed artefacts, never objects:
generate (Ray Data) -> finetune (Ray Train) -> evaluate (Ray Tune x vLLM) -> results (Parquet).
Importing ``kvray`` imports nothing heavy, so that ``kvray --help`` is quick.
"""

__version__ = "0.1.0"
