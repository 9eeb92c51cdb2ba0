"""The figures of a report, each a function that returns a matplotlib Figure.

Their arguments are alike: ``scores`` are rows of :func:`kvray.results.comparisons.scores`, ``comparisons`` those with
the base of :meth:`kvray.results.snapshot.Snapshot.against_base`, ``palette`` has the colours of the models, and
``subtitle`` says what was asked how often and what bands, bars and numbers mean.
"""
