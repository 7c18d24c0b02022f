"""Other programs that run ZONOS2 or its codec, patched in place by `accelerate`."""
