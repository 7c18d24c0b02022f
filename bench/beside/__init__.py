"""Other implementations of the same operations: what the kernels are timed beside."""
