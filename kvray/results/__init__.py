"""Results of sweeps as polars frames, without Ray or torch: ``kvray.results.open("store").compare(sweep="mine")``."""

from kvray.results.reader import EVERY, Results, open
from kvray.results.stats import detectable_difference
from kvray.store.schemas import PREDICTIONS_SCHEMA, SCORES_SCHEMA

__all__ = ["EVERY", "PREDICTIONS_SCHEMA", "SCORES_SCHEMA", "Results", "detectable_difference", "open"]
