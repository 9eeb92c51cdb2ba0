"""Fixtures of the made-up sweeps."""

from made_sweeps import make_cell, make_sweep, whole

__all__ = ["make_cell", "make_sweep", "whole"]
