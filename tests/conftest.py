"""Fixtures shared by the whole suite, and which tests are collected on this machine."""

import copy
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

if not torch.cuda.is_available():  # settled when Triton is imported: kernels are interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

from zonos2_triton._settings import PREFIX
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.model import Backbone, Vocoder, VocoderConfig, Zonos2, Zonos2Config
from zonos2_triton.model.vocoder_decoder import Rings, VocoderDecoder
from zonos2_triton.model.weights.tiny import write_tiny
from zonos2_triton.reference.ops import VOCODER_REFERENCE

os.environ.pop("COLUMNS", None)  # text is compared as it is where there is no terminal
# The models here are so small that a second thread gains nothing, and on a busy machine it makes them wait.
torch.set_num_threads(1)
# A shell starts background jobs with SIGINT ignored; tests interrupt processes that would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
with suppress(ImportError):  # a GPU machine need not have it: no test marked gpu uses it
    from hypothesis import settings

    settings.register_profile("fast", max_examples=10, deadline=None)
    settings.register_profile("full", max_examples=100, deadline=None)
    settings.load_profile("fast")
NOT_COLLECTED = pytest.StashKey[Counter[str]]()


def lacking(item: pytest.Item) -> str | None:
    """The thing that a test needs and this machine lacks, by its markers gpu, interpreter and needs(package, ...)."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        return "a GPU"
    if item.get_closest_marker("interpreter") and torch.cuda.is_available():
        return "Triton's interpreter: this process compiles"
    packages = [package for marker in item.iter_markers("needs") for package in marker.args]
    return next((package for package in packages if find_spec(package) is None), None)


@pytest.hookimpl(trylast=True)  # of the tests that -m and -k leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lacked = {item: lacking(item) for item in items}
    config.stash[NOT_COLLECTED] = Counter(filter(None, lacked.values()))
    if hasattr(config, "workeroutput"):  # of a worker of xdist
        config.workeroutput["not_collected"] = dict(config.stash[NOT_COLLECTED])
    items[:] = [item for item in items if lacked[item] is None]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    node.config.stash[NOT_COLLECTED] = Counter(getattr(node, "workeroutput", {}).get("not_collected", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.stash.get(NOT_COLLECTED, Counter())
    if counts:
        reasons = ", ".join(f"{count} need {what}" for what, count in counts.items())
        terminalreporter.write_line(f"{counts.total()} tests are not collected here: {reasons}")


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of this package has a value."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """subprocess.Popen with text pipes; when the test ends, so does all that it started."""
    started: list[subprocess.Popen[str]] = []

    def spawning(command: list[str], **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        started.append(subprocess.Popen(command, **pipes | options))
        return started[-1]

    yield spawning
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


class Golden:
    """The vectors by file name."""

    folder = Path(__file__).parent / "golden"

    def json(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    def tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        stored = load_file(self.folder / f"{name}.safetensors")
        return {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}

    def vocoder(self, name: str, **placement: Any) -> Vocoder:
        sizes = self.json("dac_tiny")["dacs"][name]["config"]
        config = VocoderConfig(**{key: value for key, value in sizes.items() if not key.startswith("encoder_")})
        return Vocoder.from_state(config, self.tensors("dac_tiny", f"{name}.weights."), **placement)

    def backbone(self, **placement: Any) -> Backbone:
        config = Zonos2Config.from_json(self.folder / "params_b.json")
        return Backbone.load(self.folder / "backbone_b.safetensors", config=config, **placement)


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: tests that change files copy it."""
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tts(tiny_folder: Path) -> Zonos2:
    return Zonos2.load(tiny_folder, device="cpu")


class _Poisoned(VocoderDecoder):
    """Its rings are full of NaN: no result may depend on old contents."""

    def rings(self, *args: Any, **options: Any) -> Rings:
        with poisoned():
            return super().rings(*args, **options)


@pytest.fixture(scope="session")
def in_steps() -> Callable[..., Vocoder]:
    """A vocoder of the reference -> one that takes all clips in steps, as the kernels do, by their reference."""

    def stepping(vocoder: Vocoder, widest_unit: int = 4) -> Vocoder:
        """widest_unit: of the operations; a residual unit is taken either way."""
        made, plain = copy.copy(vocoder), VOCODER_REFERENCE._replace(widest_unit=widest_unit)
        made.__dict__["decoder"] = _Poisoned(vocoder.config, vocoder.state, plain)
        made.backend = "triton"
        return made

    return stepping


@pytest.fixture
def seeded() -> Callable[..., Tensor]:
    """randn of a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.fixture(scope="module")
def quick_interpreter() -> Iterator[Any]:
    """Triton's interpreter without our checks, which the operators' own suites make."""
    with checked(bounds=False, undefined=False, races=False) as launches:
        yield launches
