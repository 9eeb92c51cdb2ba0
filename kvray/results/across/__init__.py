"""Two sweeps side by side, of one store or of two: which models and examples they share, and how these compare."""
