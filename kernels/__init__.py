"""Triton kernels, one operation per file: `zonos2_triton.kernels.<op>.<op>` is `torch.ops.zonos2_triton.<op>`.

Importing this package imports none of them: an operation costs the import of Triton.
"""
