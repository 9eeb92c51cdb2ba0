"""Results of sweeps: predictions as polars frames, accuracies and paired comparisons. Needs neither Ray nor torch.

``kvray.results.open("store").compare(sweep="quickstart")`` compares the finetuned models with their base model.
"""

from kvray.results.reader import EVERY, Results, open
from kvray.results.stats import detectable_difference
from kvray.store.schemas import PREDICTIONS_SCHEMA, SCORES_SCHEMA

__all__ = ["EVERY", "PREDICTIONS_SCHEMA", "SCORES_SCHEMA", "Results", "detectable_difference", "open"]
