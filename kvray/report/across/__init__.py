"""What a reader sees of two sweeps side by side: a page, a table for the terminal, plain values for programs."""
