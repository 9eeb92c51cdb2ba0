"""Figures of a report, each a function that returns a matplotlib Figure.

``scores`` are from ``results.comparisons``, ``comparisons`` from ``Snapshot.against_base``; ``head``: title, subtitle.
"""
