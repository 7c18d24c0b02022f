"""The pages: every code block runs as it is written, or is listed with why not; every name, link and option exists."""

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

from zonos2_triton.bench.suite.stages import STAGES
from zonos2_triton.model.cli import main
from zonos2_triton.model.training.dataset import Item, write_dataset

ROOT = Path(__file__).parents[1]
ROOMS = ("kernels", "reference", "model", "bench", "tests")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for room in (".", ".github", *ROOMS, "model/integrations", "model/training", "tests/golden")
    for path in sorted((ROOT / room).glob("*.md"))
    if path.name != "CHANGELOG.md"  # it holds old names
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EVERYTHING = "\n".join(PAGES.values())

# What is smaller in the Python blocks, which run with a tiny model on a CPU.
SMALLER = {
    'device="cuda"': 'device="cpu"',
    "seed=7": "seed=7, max_frames=12",
    "Sampling()": "Sampling(max_frames=12)",
    "TTSSamplingParams(seed=42)": "TTSSamplingParams(seed=42, max_tokens=12)",
    "[ids] * 500": "[ids] * 3",
}
# Blocks and commands that do not run here, by how they begin.
NOT_RUN = {
    "# file: ": "a file of an example; tests/kernels/test_new_operator.py",
    "import zonos2\n": "the official engine; tests/integrations/zonos2_engine calls accelerate(zonos2)",
    "from zonos2.message": "the official engine, before",
    "make ": "it sets up an environment of its own; test_make_has_these_targets",
    "python -m zonos2 ": "the official engine",
    "python -m zonos2_triton.model.integrations.zonos2_engine.serve": "the official engine; tests/integrations",
    "sgl-omni": "sglang-omni",
    "ZONOS2_TRITON_SGLANG=all": "sglang-omni; tests/integrations/sglang",
    'zonos2-triton say "Hello." --model ZONOS2/ --out - |': "a sound card; tests/model/test_say.py reads the pipe",
    "zonos2-triton profile --model 8b": "a GPU",
    "ZONOS2_TRITON_NVTX=1 nsys": "Nsight Systems",
    "zonos2-triton verify --kernel scale_add": "an example operator; tests/kernels/test_new_operator.py",
    "zonos2-triton verify --compiled": "Triton's compiler likewise; tests/bench/test_compiled.py",
    "zonos2-triton encode": "a codec with its encoder; tests/training/test_encode.py",
    "zonos2-triton compile": "Triton's compiler, where the interpreter is on; tests/bench/test_gate.py",
    "zonos2-triton tune": "Triton's compiler likewise; tests/bench/test_tune.py",
    "nsys": "Nsight Systems",
    "ZONOS2_TRITON_NVTX=1 ncu": "Nsight Compute",
    ".venv/bin/": "it is this environment",
}


def reason(text):
    return next((why for begin, why in NOT_RUN.items() if text.startswith(begin)), None)


def blocks(text):
    """Language and text of each code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def sections(text):
    """(title, text) of each section; a section ends at the next heading of any level."""
    text = re.sub(r"^```.*?^```", lambda found: found[0].replace("\n#", "\n\0#"), text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.+?)\n(.*?)(?=^#|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return [(title, part.replace("\0", "")) for title, part in found]


def commands(block):
    """Lines of a shell block without comments; those that go on are joined."""
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in re.sub(r"\\\n\s*", "", block).splitlines())
    return [line for line in lines if line]


def texts(*rooms):
    return [path.read_text(encoding="utf-8") for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


COMMANDS = [line for language, block in blocks(EVERYTHING) if language == "sh" for line in commands(block)]
PYTHON = {
    f"{page}: {title}": python
    for page, text in {**PAGES, "pyproject.toml": PROJECT["readme"]["text"]}.items()
    for title, part in sections(text)
    if (python := [block for language, block in blocks(part) if language == "python" and reason(block) is None])
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_folder):
    """Where the examples run: the checkpoint's folder is the tiny model's, the rest is the repository's."""
    place = tmp_path_factory.mktemp("readme")
    shutil.copytree(tiny_folder, place / "ZONOS2")
    shutil.copy(place / "ZONOS2" / "dac" / "weights.pth", place)
    noise = torch.randn(24000, generator=torch.Generator().manual_seed(0))  # some voices end at the first frame
    soundfile.write(place / "voice.wav", 0.1 * noise.numpy(), 24000)
    (place / "chapter.txt").write_text("Hello.\n")
    items = [Item("a", "Hello.", torch.zeros(20, 9, dtype=torch.int16))]
    for name in ("train", "heldout"):
        write_dataset(place / "speech" / f"{name}.jsonl", items)
    shutil.copytree(place / "ZONOS2", place / "run")  # as if it had been trained
    words = ["--init", f"{place}/ZONOS2", "--lora", "1", "--steps", "1", "--out", f"{place}/adapters"]
    assert main(["train", f"{place}/speech/train.jsonl", *words]) == 0
    (place / "adapters" / "training" / "state.safetensors").unlink()  # a page trains them anew
    for name in ("bench", "tests", ".git"):
        if (ROOT / name).exists():
            (place / name).symlink_to(ROOT / name)
    return place


def test_every_reason_is_needed_and_every_block_has_a_language_that_runs():
    every = [*COMMANDS, *(block for language, block in blocks(EVERYTHING) if language == "python")]
    assert [begin for begin in NOT_RUN if not any(text.startswith(begin) for text in every)] == []
    assert {language for language, _ in blocks(EVERYTHING)} == {"", "sh", "python", "json"}
    assert [old for old in SMALLER if not any(old in block for run in PYTHON.values() for block in run)] == []


@pytest.mark.interpreter
@pytest.mark.usefixtures("quick_interpreter")
@pytest.mark.parametrize("section", PYTHON)
def test_the_python_of_a_section_runs(section, folder, monkeypatch, capsys):
    """By itself, with the model's folder and a recording at hand. Results before and after `accelerate` agree."""
    if "DacModel" in "".join(PYTHON[section]):
        pytest.importorskip("transformers")
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for block in PYTHON[section]:
        for old, new in SMALLER.items():
            block = block.replace(old, new)
        exec(block, names)
    for name, value in names.items():
        assert not isinstance(value, torch.Tensor) or value.isfinite().all(), name
    for name in re.findall(r'(?:save|save_audio)\(.*?"([\w.]+)"', "".join(PYTHON[section])):
        assert soundfile.info(name).frames > 0
    if "report" in names:
        names["report"].restore()
        assert " operations by the " in capsys.readouterr().out
    if "before" in names:
        before, after = names["before"], names["after"]
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, before, atol=1e-4 * float(before.abs().max()), rtol=0)


@pytest.mark.interpreter
@pytest.mark.parametrize("line", sorted({line for line in COMMANDS if reason(line) is None}))
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
    called = "\n".join([*COMMANDS, *re.findall(r"`(make [^`]*)`", EVERYTHING)])
    used = {name for line in re.findall(r"^make ([a-z][a-z -]*)", called, flags=re.MULTILINE) for name in line.split()}
    assert {"demo", "test", "gpu"} <= used <= targets
    for stages in re.findall(r"--stage ([\w,]+)", called):
        assert {*stages.split(",")} <= STAGES.keys()
    files = re.findall(r"tests/[\w/.]+\.py", makefile)
    assert [path for path in files if not (ROOT / path).exists()] == []
    locks = set(re.findall(r"LOCK=(\.ci/\S+\.txt)", EVERYTHING))
    assert locks <= {f".ci/{path.name}" for path in (ROOT / ".ci").iterdir()}


def test_extras_exist():
    sources = [EVERYTHING, *texts("bench", "model")]
    named = {extra for text in sources for extra in re.findall(r"(?:'\.|zonos2-triton)\[([\w-]+)\]'", text)}
    assert {"hub", "report"} <= named <= PROJECT["optional-dependencies"].keys()


@pytest.mark.interpreter
def test_every_command_and_option_that_is_named_exists(capsys):
    """Wherever one is named: the pages, the Makefile, docstrings and messages."""
    above = [(ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "pyproject.toml")]
    text = "\n".join([EVERYTHING, *above, *texts("bench", "kernels", "model", "reference")])
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


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_object_that_is_named_exists(page):
    """By a path from the repository's folder, or by a dotted name."""
    text = without_blocks(PAGES[page])
    rooms = r"(?:\.ci|\.github|\.src|bench|kernels|model|reference|tests)"
    named = set(re.findall(rf"`({rooms}/[\w./-]*)`", text))
    named |= set(re.findall(r"[ :]((?:bench|tests)/[\w./-]+\.(?:json|py))", text))
    made = {"bench/results/"}  # by `make gpu`
    assert [path for path in sorted(named - made) if not (ROOT / path).exists()] == []
    for name in set(re.findall(r"(?<!ops\.)\bzonos2_triton(?:\.\w+)+", text)):
        pkgutil.resolve_name(name)


def anchors(page):
    titles = re.findall(r"^#+ (.+)$", PAGES[page], flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", without_blocks(PAGES[page])):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(str(target.resolve().relative_to(ROOT))), link


@pytest.mark.slow
def test_the_launch_parameters_compile(tmp_path):
    """None fails, by the command that the page names beside them. Other numbers may have worse counts."""
    [example] = [block for language, block in blocks(EVERYTHING) if language == "json"]
    (tmp_path / "launch.json").write_text(example, encoding="utf-8")
    [command] = re.findall(r"set the variable and run `zonos2-triton (.*?)`", EVERYTHING)
    environment = os.environ | {"ZONOS2_TRITON_LAUNCH_CONFIG": str(tmp_path / "launch.json")}
    environment.pop("TRITON_INTERPRET", None)
    words = [sys.executable, "-m", "zonos2_triton", *command.split()]
    run = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert " 0 failed" in run.stdout, run.stdout + run.stderr
    assert "changed: decode_attention/" in run.stdout
    assert "changed: codebook_head/" in run.stdout
