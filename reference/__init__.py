"""The truth: ZONOS2, its codec and its speaker encoder in the shortest PyTorch that is plainly right.

One file per stage. Every function takes tensors of fp64, fp32 or bf16 on any device; what needs more than
bf16 (norms, softmax, rotary angles) is computed in fp32, or in fp64 for fp64 input, and rounded once.
"""
