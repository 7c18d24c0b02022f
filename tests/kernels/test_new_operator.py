"""The steps of kernels/README.md to a new kernel, in a copy of the tree: its tests, `verify` and `bench` take it."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "kernels" / "README.md").read_text(encoding="utf-8")

NEW = dict(re.findall(r"^```python\n# file: (\S+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL))
# By its steps, the entries of tables: a file and a line of it before which the text goes.
SPEC = """    spec(
        "scale_add",
        "nothing yet",
        {"_scale_add_kernel": Expected(max_instructions=400, stream16=True)},
        real={"D": D},
        at=_ROWS,
        small={"D": 48},
        edges={**_FEW, "wide-D": {"M": 2, "D": 264}},
    ),
"""
INPUTS = """def scale_add(new: Inputs, M: int, D: int) -> Sizes:
    return {"x": new.randn(M, D), "residual": new.randn(M, D), "scale": 0.3}


"""
MUTANTS = """    "scale_add": mutants(
        "scale_add",
        mask_one_too_long="mask = offs {{< => <=}} D",
        scale_forgotten="y = {{scale *  => }}x + tl",
        residual_forgotten="y = scale * x{{ + => + 0.0 *}} tl",
        subtracted="y = scale * x {{+ => -}} tl",
    ),
"""
BEFORE = {
    "bench/proof/units.py": ('    "rotary": ("x",', '    "scale_add": ("x", "residual"),\n'),
    "bench/specs/backbone.py": ('    spec(\n        "rotary",', SPEC),
    "bench/specs/inputs.py": ("def rotary(", INPUTS),
    "kernels/_launch_table.py": ('    ("rotary", "row")', '    ("scale_add", "row"): _ROW,\n'),
    "kernels/__init__.py": ("sample_codes as", "scale_add as scale_add\nfrom zonos2_triton.kernels import "),
    "bench/proof/mutants/backbone.py": ('    "rotary": mutants(', MUTANTS),
}


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """Runs Python in a copy of the tree that has the operator: its standard output."""
    if not entry_points(group="zonos2_triton.commands"):
        pytest.skip("verify and bench are commands of the installed package: pip install -e '.[dev]'")
    tree, skipped = tmp_path_factory.mktemp("book"), shutil.ignore_patterns("__pycache__")
    for room in ("reference", "kernels", "model", "bench", "tests", ".src"):
        shutil.copytree(ROOT / room, tree / room, symlinks=True, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", tree)
    for name, text in NEW.items():
        (tree / name).write_text(text, encoding="utf-8")
    for name, (line, text) in BEFORE.items():
        before = (tree / name).read_text(encoding="utf-8")
        assert before.count(line) == 1, name
        (tree / name).write_text(before.replace(line, text + line), encoding="utf-8")

    def run(*command):
        environment = {**os.environ, "PYTHONPATH": f"{tree / '.src'}:{tree}", "TRITON_INTERPRET": "1"}
        python = [sys.executable, "-m", *command]
        done = subprocess.run(python, cwd=tree, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_page_names_every_step():
    assert len(NEW) == 3
    [steps] = re.findall(r"^A new kernel is:\n\n.*?\n\n", README, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([\w/.<>]+)`", steps))
    for name in (*NEW, *BEFORE):
        path = name.replace("scale_add", "<operator>")
        assert {path, f"{path.rpartition('/')[0]}/"} & named, path


@pytest.mark.interpreter
def test_verify_takes_it(book):
    rows = book("zonos2_triton", "verify", "--kernel", "scale_add", "--dtype", "float32").splitlines()[1:]
    assert [row.split()[:2] for row in rows[:-1]] == [["scale_add", name] for name in ("tiny", "one-row", "wide-D")]
    assert rows[-1] == "3 passed, 0 failed"


@pytest.mark.slow
@pytest.mark.interpreter
def test_bench_the_gate_and_its_own_tests_take_it(book):
    said = book("zonos2_triton", "bench", "--kernel", "scale_add")
    assert "baselines: 2 passed" in said  # the reference, as it is and compiled
    book("zonos2_triton.bench.compiler.op_schema", "--update", "99.0.0")
    assert book("zonos2_triton.bench.compiler.op_schema").startswith("as listed")
    book("pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_scale_add.py", "tests/kernels/test_operator.py")
    chosen = ["-m", "slow or not slow", "-k", "scale_add or every_operation"]
    book("pytest", "-q", "-p", "no:cacheprovider", "tests/mutation/test_mutants.py", *chosen)
