"""One spec per kernel, its inputs, and the limits of GPUs."""
