"""A report of one's own over two stores: which models answer better there than here?

python examples/two_stores.py STORE OTHER_STORE

Results are polars frames, so a table that kvray does not make is a few lines. With the statistics of a report:
kvray.compare("first", "second", store=STORE, store_b=OTHER_STORE).
"""

import sys

import polars as pl

import kvray


def scores(store: str) -> pl.DataFrame:
    """Return the accuracy of every model on every evaluation of every sweep of a store."""
    return kvray.open(store).accuracy(by=["sweep", "evaluation", "model"])


def side_by_side(store: str, other: str) -> pl.DataFrame:
    """Return what both stores have, the largest difference first."""
    both = scores(store).join(scores(other), on=["evaluation", "model"], suffix="_there")
    difference = (pl.col("accuracy_there") - pl.col("accuracy")).alias("difference")
    return both.select("evaluation", "model", "n", "accuracy", "accuracy_there", difference).sort(
        pl.col("difference").abs(), descending=True, nulls_last=True
    )


if __name__ == "__main__":
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True):
        print(side_by_side(*sys.argv[1:3]))
