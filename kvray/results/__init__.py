"""What a sweep found: predictions as polars frames, paired comparisons, figures, the report. Needs no Ray, no torch.

``kvray.results.open("store").compare(sweep="quickstart")`` answers which mixture retrieves better, and at what cost.
"""

from kvray.results.reader import EVERY, Results, open
from kvray.results.stats import detectable_difference
from kvray.store.schemas import PREDICTIONS_SCHEMA, SCORES_SCHEMA

__all__ = ["EVERY", "PREDICTIONS_SCHEMA", "SCORES_SCHEMA", "Results", "detectable_difference", "open"]
