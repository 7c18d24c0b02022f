"""Other implementations of the same operations, timed beside the kernels."""
