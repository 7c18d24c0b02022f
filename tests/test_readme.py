"""The README's examples, and those of the package's page: each runs as it is written, or is listed with why not."""

import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import soundfile
import torch

from zonos2_triton.bench.suite.stages import PARTS
from zonos2_triton.model.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##)", README + "\n##", flags=re.MULTILINE | re.DOTALL))
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)

# Sections that need nothing but this package and its test dependencies, and two names whose values must agree.
ALONE = {
    "transformers' DacModel and dac.DAC": ("before", "after"),
    "Plain PyTorch ports": ("before", "after"),
    "Single operations": ("total", "turned"),
}
# What is smaller in the other Python blocks, which run one after another with a tiny model on a CPU.
SMALLER = {
    'device="cuda"': 'device="cpu"',
    "Sampling(seed=7)": "Sampling(seed=7, max_frames=12)",
    "Sampling()": "Sampling(max_frames=12)",
    'tts.speak(["One.", "Two."])': 'tts.speak(["One.", "Two."], sampling=Sampling(max_frames=12))',
    'tts.stream("Hello.")': 'tts.stream("Hello.", sampling=Sampling(max_frames=12))',
    "TTSSamplingParams(seed=42)": "TTSSamplingParams(seed=42, max_tokens=12)",
    "[ids] * 500": "[ids] * 3",
}
# Blocks and commands that do not run here, by how they begin.
NOT_RUN = {
    "import zonos2\n": "the official engine; tests/integrations/zonos2_engine calls accelerate(zonos2)",
    "from zonos2.message": "the official engine, before",
    "make ": "it sets up an environment of its own; test_make_has_these_targets",
    "pip install": "it installs; test_extras_exist",
    "python -m zonos2 ": "the official engine",
    "python -m zonos2_triton.model.integrations.zonos2_engine.serve": "the official engine; tests/integrations",
    "sgl-omni": "sglang-omni",
    "ZONOS2_TRITON_SGLANG=all": "sglang-omni; tests/integrations/sglang",
    'zonos2-triton say "Hello." --model ZONOS2/ --out - |': "a sound card; tests/model/test_say.py reads the pipe",
    "zonos2-triton profile --model 8b": "a GPU",
    "ZONOS2_TRITON_NVTX=1 nsys": "Nsight Systems",
    "nsys": "Nsight Systems",
    "ZONOS2_TRITON_NVTX=1 ncu": "Nsight Compute",
    ".venv/bin/pytest": "it is this process",
}


def commands(block):
    """Lines of a shell block without comments; those that go on are joined."""
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in re.sub(r"\\\n\s*", "", block).splitlines())
    return [line for line in lines if line]


def texts(*rooms):
    return [path.read_text(encoding="utf-8") for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def reason(text):
    return next((why for begin, why in NOT_RUN.items() if text.startswith(begin)), None)


COMMANDS = [line for language, block in BLOCKS if language == "sh" for line in commands(block)]
SHELL = [line for line in COMMANDS if reason(line) is None]
STORY = [
    block
    for language, block in BLOCKS
    if language == "python" and reason(block) is None and not any(block in SECTIONS[name] for name in ALONE)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_folder):
    """Where the examples run: the checkpoint's folder is the tiny model's, the rest is the repository's."""
    place = tmp_path_factory.mktemp("readme")
    shutil.copytree(tiny_folder, place / "ZONOS2")
    shutil.copy(place / "ZONOS2" / "dac" / "weights.pth", place)
    noise = torch.randn(24000, generator=torch.Generator().manual_seed(0))  # some voices end at the first frame
    soundfile.write(place / "voice.wav", 0.1 * noise.numpy(), 24000)
    for name in ("bench", "tests", ".git"):
        if (ROOT / name).exists():
            (place / name).symlink_to(ROOT / name)
    return place


def test_every_reason_is_needed_and_every_block_has_a_language_that_runs():
    every = [*COMMANDS, *(block for language, block in BLOCKS if language == "python")]
    assert [begin for begin in NOT_RUN if not any(text.startswith(begin) for text in every)] == []
    assert {language for language, _ in BLOCKS} == {"", "sh", "python", "json"}
    assert [old for old in SMALLER if not any(old in block for block in STORY)] == []


@pytest.mark.parametrize(("section", "results"), ALONE.items())
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
        assert not torch.equal(second, first)
        torch.testing.assert_close(second, first, atol=1e-4 * float(first.abs().max()), rtol=0)


@pytest.mark.interpreter
@pytest.mark.usefixtures("quick_interpreter")
def test_the_other_python_examples_run_in_order(folder, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(folder)
    heard: list[torch.Tensor] = []
    config = transformers.DacConfig(hidden_size=16, decoder_hidden_size=16, encoder_hidden_size=4)
    names = {
        "play": heard.append,
        "model": transformers.DacModel(config).eval().requires_grad_(False),
        "short": torch.zeros(9, 2, dtype=torch.int64), "long": torch.zeros(9, 3, dtype=torch.int64),
        "messages": [None] * 63 + [torch.zeros(2, 9, dtype=torch.int64)],
        **{name: torch.ones(2, 16) for name in ("x", "residual")}, "weight": torch.ones(16),
    }  # fmt: skip
    package = re.findall(r"^```python\n(.*?)^```", PROJECT["readme"]["text"], flags=re.MULTILINE | re.DOTALL)
    for block in [*package, *STORY]:
        for old, new in SMALLER.items():
            block = block.replace(old, new)
        exec(block, names)
    assert torch.cat(heard).isfinite().all()
    for name in ("hello.wav", "output_0.wav", "output_1.wav"):
        assert soundfile.info(folder / name).frames > 0
    assert torch.equal(names["total"], 2 * names["x"])


@pytest.mark.interpreter
@pytest.mark.parametrize("line", SHELL)
def test_a_command_runs(line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = shlex.split(line)
    assert words.pop(0) == "zonos2-triton"
    if revisions := [word.partition(":")[0] for word in words if re.match("HEAD~?", word)]:
        known = subprocess.run(["git", "rev-parse", "--verify", "-q", *revisions], capture_output=True)
        if known.returncode:
            pytest.skip("no history here")
    assert main(words) == 0, capsys.readouterr()
    assert capsys.readouterr().out


def test_make_has_these_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    called = "\n".join([*COMMANDS, *re.findall(r"`(make [^`]*)`", README)])
    used = {
        name for names in re.findall(r"^make ([a-z][a-z -]*)", called, flags=re.MULTILINE) for name in names.split()
    }
    assert {"demo", "test", "gpu"} <= used <= targets
    for parts in re.findall(r"--only ([\w,]+)", called):
        assert {*parts.split(",")} <= PARTS.keys()
    assert set(re.findall(r"LOCK=(\.ci/\S+\.txt)", README)) <= {f".ci/{path.name}" for path in (ROOT / ".ci").iterdir()}


def test_extras_exist():
    sources = [README, *texts("bench", "model")]
    named = {extra for text in sources for extra in re.findall(r"(?:'\.|zonos2-triton)\[([\w-]+)\]'", text)}
    assert {"hub", "report"} <= named <= PROJECT["optional-dependencies"].keys()


@pytest.mark.interpreter
def test_every_command_and_option_that_is_named_exists(capsys):
    """Wherever one is named: the README, the Makefile, docstrings and messages."""
    above = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile", "pyproject.toml")]
    text = "\n".join([*above, *texts("bench", "kernels", "model", "reference")])
    for module in set(re.findall(r"python -m (zonos2_triton(?:\.\w+)+)", text)):
        assert find_spec(module.rstrip(".")), module
    options: dict[str, set[str]] = {}
    uses = re.findall(r"(?:`|/| {4}|^)zonos2-triton ([a-z]+)((?: [^`\n#;|)]*)?)", text, flags=re.MULTILINE)
    for command, rest in uses:
        options.setdefault(command, set()).update(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest))
    assert options.keys() >= {"say", "verify", "bench", "compile", "gpu", "plan", "profile", "report", "doctor"}
    for command, named in options.items():
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
        assert named <= known, command


def test_every_file_that_is_named_exists():
    """In the README, by a path from its folder."""
    named = set(re.findall(r"(?:`|\]\()((?:\.ci|bench|kernels|model|reference|tests)/[\w./-]*)(?:`|\))", README))
    named |= set(re.findall(r"[ :]((?:bench|tests)/[\w./-]+\.(?:json|py))", README))
    made = {"bench/results/"}  # by `make gpu`
    assert len(named) > 30
    assert [path for path in sorted(named - made) if not (ROOT / path).exists()] == []
    for name in set(re.findall(r"(?<!ops\.)\bzonos2_triton(?:\.\w+)+", README)):
        pkgutil.resolve_name(name)


@pytest.mark.slow
def test_the_launch_parameters_compile(tmp_path):
    """Without spills, and no worse than the snapshot, by the command that the README names beside them."""
    [example] = [block for language, block in BLOCKS if language == "json"]
    (tmp_path / "launch.json").write_text(example, encoding="utf-8")
    [command] = re.findall(r"with the variable set, `zonos2-triton (.*?)`", README)
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "zonos2_triton.model.cli", *command.split()],
        env=clean | {"ZONOS2_TRITON_LAUNCH_CONFIG": str(tmp_path / "launch.json")}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "changed: decode_attention/" in run.stdout
    assert "changed: codebook_head/" in run.stdout


def test_every_link_within_it_leads_somewhere():
    titles = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
