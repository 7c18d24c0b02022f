"""Short scripts that show how the kernels are used. Each runs on a CPU in seconds."""
