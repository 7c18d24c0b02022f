"""PyTorch modules that keep the official tensor names."""
