"""The proof: what kernels are checked against, compiled for and timed with; nothing is timed before it was right."""
