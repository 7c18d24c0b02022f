"""The environment variables: what each means, and what it may not hold."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zonos2_triton import _settings
from zonos2_triton._settings import BACKEND, DISABLE, LAUNCH_CONFIG, LOG, NVTX, PDL, PREFIX, SGLANG, SGLANG_COMPONENTS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("unset")


def test_nobody_else_reads_them():
    """Others may name a variable in a message, but not where they have to do with the environment."""
    found = []
    for room in (".src", "kernels", "model", "reference", "bench"):
        for path in (ROOT / room).rglob("*.py"):
            code = re.sub('""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
            if PREFIX in code and re.search(r"\benviron\b|\bgetenv\b", code):
                found.append(str(path.relative_to(ROOT)))
    assert found == [".src/zonos2_triton/_settings.py"]


def test_unset_they_change_nothing():
    assert _settings.backend() == "auto"
    assert (_settings.disabled(), _settings.nvtx(), _settings.launch_config()) == (False, False, None)
    assert _settings.sglang_components() == frozenset()
    assert _settings.dependent_launch() is None
    assert _settings.log_level() is None
    assert _settings.present() == {}


@pytest.mark.parametrize(("value", "on"), [("", False), ("0", False), ("1", True)])
def test_switches(monkeypatch, value, on):
    for reader, name in ((_settings.disabled, DISABLE), (_settings.nvtx, NVTX)):
        monkeypatch.setenv(name, value)
        assert reader() is on


@pytest.mark.parametrize(("value", "wanted"), [("", None), ("0", False), ("1", True)])
def test_dependent_launch(monkeypatch, value, wanted):
    monkeypatch.setenv(PDL, value)
    assert _settings.dependent_launch() is wanted


COMPONENTS = {"": (), "0": ()} | dict.fromkeys(("1", "all"), SGLANG_COMPONENTS)
COMPONENTS |= {"vocoder, attention": ("attention", "vocoder")}


@pytest.mark.parametrize(("value", "components"), COMPONENTS.items())
def test_components_of_sglang(monkeypatch, value, components):
    monkeypatch.setenv(SGLANG, value)
    assert _settings.sglang_components() == {*components}


@pytest.mark.parametrize(
    ("reader", "name", "value", "accepted"),
    [
        (_settings.backend, BACKEND, "cuda", "reference, triton, auto"),
        (_settings.disabled, DISABLE, "true", "0, 1"),
        (_settings.dependent_launch, PDL, "on", "0, 1"),
        (_settings.log_level, LOG, "INFO", "debug, info, warning, error, off"),
        (_settings.sglang_components, SGLANG, "attention,moe", "0, 1, all, or a list of attention, exp"),
        (_settings.sglang_components, SGLANG, "attention,", "0, 1, all, or a list"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_accepted(monkeypatch, reader, name, value, accepted):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name} is {value!r}; accepted: {accepted}')}"):
        reader()


def test_the_file_of_launch_parameters(monkeypatch, tmp_path):
    path = tmp_path / "launch.json"
    monkeypatch.setenv(LAUNCH_CONFIG, str(path))
    missing = f"^{LAUNCH_CONFIG} names {re.escape(repr(str(path)))}, which cannot be read: No such file or directory"
    with pytest.raises(ValueError, match=missing):
        _settings.launch_config()
    for wrong in (b"[1,", b"\xff", b"[" * 10**5):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"^{LAUNCH_CONFIG} names .*launch.json', which is not JSON: "):
            _settings.launch_config()
    path.write_text("[1]")
    assert _settings.launch_config() == (str(path), [1])
    monkeypatch.setenv(LAUNCH_CONFIG, "")
    assert _settings.launch_config() is None


def test_what_is_set_and_what_is_wrong_with_it(monkeypatch):
    monkeypatch.setenv(BACKEND, "reference")
    monkeypatch.setenv(NVTX, "on")
    monkeypatch.setenv(PREFIX + "BACKND", "triton")
    names = ", ".join(_settings.VARIABLES)
    assert _settings.present() == {
        BACKEND: ("reference", None),
        NVTX: ("on", f"{NVTX} is 'on'; accepted: 0, 1"),
        PREFIX + "BACKND": ("triton", f"no variable of this name; there are {names}"),
    }


LOGGING = """
import logging
{imports}
logger = logging.getLogger("zonos2_triton")
print([type(handler).__name__ for handler in logger.handlers], logger.level, logger.propagate)
for level in ("debug", "info", "warning", "error", "critical"):
    getattr(logger, level)("%s is said", level)
"""
SETTINGS, MODEL = "import zonos2_triton._settings", "import zonos2_triton.model"


def run(imports, **environment):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", **environment}
    code = LOGGING.format(imports=imports)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


OURS, APPLICATION = "{upper} zonos2_triton: {text}", "logging.basicConfig(format='mine: %(message)s', level='INFO')"
OTHER = "logging.getLogger('zonos2_triton').addHandler(logging.StreamHandler())"
AGAIN = "import importlib; importlib.reload(zonos2_triton._settings)"
KERNELS = "import zonos2_triton.kernels.rotary, zonos2_triton.kernels.sample_codes"
ALL = ["debug", "info", "warning", "error", "critical"]


@pytest.mark.parametrize(
    ("imports", "level", "handlers", "number", "said", "form"),
    [
        (SETTINGS, "debug", 1, 10, ALL, OURS),
        (SETTINGS, "off", 0, 51, [], OURS),
        (SETTINGS, "", 0, 0, ALL[2:], "{text}"),  # Python's own way
        (f"{SETTINGS}; {APPLICATION}", "", 0, 0, ALL[1:], "mine: {text}"),
        # Once, by the application's handlers where it has some, whichever came first.
        (f"{SETTINGS}; {APPLICATION}", "debug", 1, 10, ALL, "mine: {text}"),
        (f"{APPLICATION}; {SETTINGS}", "debug", 1, 10, ALL, "mine: {text}"),
        (f"{SETTINGS}; {OTHER}", "info", 2, 20, ALL[1:], "{text}"),
        (f"{SETTINGS}; {AGAIN}", "info", 1, 20, ALL[1:], OURS),
        (f"{APPLICATION}; {SETTINGS}; logging.getLogger().handlers.clear()", "info", 1, 20, ALL[1:], OURS),
        pytest.param(f"{KERNELS}; {MODEL}", "error", 1, 40, ALL[3:], OURS, marks=pytest.mark.slow),
    ],
)
def test_the_log_goes_to_the_standard_error_from_its_level_on(imports, level, handlers, number, said, form):
    done = run(imports, **{LOG: level})
    assert done.stdout == f"{['StreamHandler'] * handlers} {number} True\n"
    assert done.stderr.splitlines() == [form.format(upper=one.upper(), text=f"{one} is said") for one in said]


@pytest.mark.parametrize(
    ("imports", "name", "accepted"), [(SETTINGS, LOG, "debug, info, warning, error, off"), (MODEL, NVTX, "0, 1")]
)
def test_what_counts_at_import_is_told_there_and_no_error(imports, name, accepted):
    """Or the commands that explain it would not run."""
    done = run(f"{imports}; raise SystemExit", **{name: "yes"})
    assert done.returncode == 0
    assert done.stderr == f"{name} is 'yes'; accepted: {accepted}; it counts as unset\n"


def test_a_variable_that_nothing_reads_is_told_at_import():
    done = run(f"{SETTINGS}; raise SystemExit", ZONOS2_TRITON_BACKND="triton")
    names = ", ".join(_settings.VARIABLES)
    assert done.stderr == f"ZONOS2_TRITON_BACKND is set: no variable of this name; there are {names}\n"


def test_ranges_are_on_from_the_import_on():
    done = run("from zonos2_triton.model import nvtx; print(nvtx.annotate('a/b'))", **{NVTX: "1"})
    assert "_NvtxRange" in done.stdout
