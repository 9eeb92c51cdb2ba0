"""Parts of benchmarks/chaos.py: sweeps that die, the ways in which they do, and what is counted afterwards."""
