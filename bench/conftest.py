"""What `make bench` says before and after its table."""

import pytest
import torch

SMOKE = "no GPU: a smoke test of every implementation on small sizes; no figure below is of speed"


def pytest_report_header() -> str:
    return f"timed on {torch.cuda.get_device_name()}" if torch.cuda.is_available() else SMOKE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(pytest_report_header().replace("below", "above"))
