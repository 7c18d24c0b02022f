"""Triton kernels, one operation per file. This version holds none yet: the reference runs everywhere."""
