"""How benches run where there is no GPU, and what `make bench` says of it."""

import os

import torch

if not torch.cuda.is_available():  # settled when Triton is imported: kernels are interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

SMOKE = "no GPU: a smoke test of every implementation on small sizes; no figure below is of speed"


def pytest_report_header() -> str:
    return f"timed on {torch.cuda.get_device_name()}" if torch.cuda.is_available() else SMOKE
