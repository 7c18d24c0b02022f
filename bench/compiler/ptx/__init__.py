"""A machine for the PTX that Triton emits: it runs whole programs on a CPU, and counts what they do."""
