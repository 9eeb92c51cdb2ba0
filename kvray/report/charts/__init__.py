"""Figures of a report, each a function that returns a matplotlib Figure.

Arguments: ``scores`` come from :func:`kvray.results.comparisons.scores`, ``comparisons`` from
:meth:`kvray.results.snapshot.Snapshot.against_base`, and ``head`` is (title, subtitle).
"""
