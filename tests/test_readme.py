"""The README's examples that need nothing but this package and its test dependencies, as they are written."""

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##)", README + "\n##", flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize(
    ("section", "results"),
    [
        ("transformers' DacModel and dac.DAC", ("before", "after")),
        ("Plain PyTorch ports", ("before", "after")),
        ("Single operations", ("total", "turned")),
    ],
)
def test_the_examples_of_a_section_run(section, results, capsys):
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", SECTIONS[section], flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)
    first, second = (names[name] for name in results)
    assert first.isfinite().all()
    assert second.isfinite().all()
    if "report" in names:
        names["report"].restore()
        assert " operations by the " in capsys.readouterr().out
        torch.testing.assert_close(second, first, atol=1e-4 * float(first.abs().max()), rtol=0)


def test_every_link_within_it_leads_somewhere():
    titles = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
