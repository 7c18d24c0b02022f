"""How benches run where there is no GPU, and what `make bench` says before and after its table."""

import os

import pytest
import torch

if not torch.cuda.is_available():  # settled when Triton is imported: kernels are interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

SMOKE = "no GPU: a smoke test of every implementation on small sizes; no figure below is of speed"


def pytest_report_header() -> str:
    return f"timed on {torch.cuda.get_device_name()}" if torch.cuda.is_available() else SMOKE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(pytest_report_header().replace("below", "above"))
