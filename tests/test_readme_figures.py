"""Figures of the pages that the code settles: each sentence that states one holds what the code says."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler.cubin_stats import TARGETS
from zonos2_triton.bench.compiler.estimate import FILL_US, GAP_US, START_US
from zonos2_triton.bench.compiler.gate import SNAPSHOTS
from zonos2_triton.bench.planner.footprint import memory
from zonos2_triton.bench.planner.plan import frames_to_sound, usual_prompt
from zonos2_triton.bench.proof.bounds import RATIO, SAMPLE_RATIO
from zonos2_triton.bench.specs.backbone import FRAME
from zonos2_triton.bench.specs.vocoder import VOCODER
from zonos2_triton.bench.suite.gpu import BUDGET
from zonos2_triton.bench.timing.vocoder import step_costs
from zonos2_triton.kernels import _launch_table
from zonos2_triton.model import BatchingOptions, VocoderConfig
from zonos2_triton.model.integrations.dac import codec
from zonos2_triton.model.integrations.torch_module import structure
from zonos2_triton.model.integrations.zonos2_engine import engine
from zonos2_triton.model.ops import MAX_BATCH_SIZE
from zonos2_triton.model.runtime.cuda_graphs import buckets
from zonos2_triton.reference.vocoder import layout

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
WORDS = {5: "five", 7: "seven", 12: "twelve"}


def page(name):
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


OPTIONS, FLOATS = BatchingOptions(), (torch.float32, torch.bfloat16, torch.float16)


def bounds(found, *names):
    return [re.sub(r"e-0", "e-", f"{found[dtype][names[0]] if names else found[dtype]:.0e}") for dtype in FLOATS]


def gb(precision, requests):
    """Memory of the 8B model, as the planner adds it up."""
    options = BatchingOptions(requests)
    return sum(each.bytes for each in memory(precision, "float32", options, usual_prompt())) / 1e9


LAYOUT = json.loads((GOLDEN / "checkpoint_layout.json").read_text(encoding="utf-8"))["tensors"]
WEIGHTS_GB = sum(math.prod(each["shape"]) for each in LAYOUT.values()) * 2 / 1e9  # in bf16
CODEC_MB = sum(map(math.prod, layout(VocoderConfig()).values())) * 4 / 1e6  # of its weights in fp32
FIRST = 8 + 10 + 1  # frames: the delay of the last codebook, the lookahead, and one
STATED = {
    "README.md": [
        f"at most {SAMPLE_RATIO:g} times that of plain PyTorch in the same dtype, and {RATIO:g} times for attention",
        f"bf16: {gb('bf16', 1):.1f} GB for one request, {gb('bf16', 16):.1f} GB for 16 (24 GB GPU); "
        f"fp32: {gb('fp32', 1):.0f} GB",
        f"weights only: {WEIGHTS_GB:.1f} GB in bf16",
        f"after {FIRST} frames, {FIRST * VocoderConfig().hop / 44.1:.0f} ms of sound",
        "NVIDIA " + ", ".join(TARGETS).replace(", sm_", ", ").replace(", gfx942", " "),
        f"the compile gate of {WORDS[len(TARGETS)]} architectures",
    ],
    "bench/README.md": [
        f"at the 8B model's shapes for {WORDS[len(TARGETS)]} architectures",
        f"The weights alone take {WEIGHTS_GB:.1f} GB in bf16",
        f"launch {START_US:g} us + max({FILL_US:g} us + max(floor, l2, shared, issue), chain)",
        f"frame the sum of launch + {GAP_US:g} us",
    ],
    "kernels/README.md": [
        f"**The vocoder** is {len(step_costs(VocoderConfig(), 1, 1, 2))} launches per step in half precision, "
        f"{len(step_costs(VocoderConfig(), 1, 1, 4))} in fp32"
    ],
    "model/README.md": [
        f"| `max_batch_size` | {OPTIONS.max_batch_size} | requests that decode together, at most {MAX_BATCH_SIZE};",
        f'| `cuda_graphs` | `"{OPTIONS.cuda_graphs}"` |',
        f"| `max_prefill_tokens` | {OPTIONS.max_prefill_tokens} |",
        f"`tts.stream` has sound after {frames_to_sound()}.",
    ],
    "reference/README.md": [f"A frame is {VocoderConfig().hop} samples"],
    "model/integrations/README.md": [
        "{}, {} and {}".format(*bounds(codec.BOUNDS, "decoder")),
        "{}, {} and {}".format(*bounds(codec.BOUNDS, "from_codes")),
        "{1}, {2} and {0}".format(*bounds(engine.BOUNDS)),
        "{0} in fp32, {2} in fp16, {1} in bf16".format(*bounds(structure.BOUNDS)),
        f"{CODEC_MB:.0f} MB in fp32",
    ],
}


@pytest.mark.parametrize(("name", "said"), [(name, said) for name, texts in STATED.items() for said in texts])
def test_a_page_states_the_code_s_figure(name, said):
    assert said in page(name)


def test_the_kernels_are_those_of_a_frame_and_of_the_vocoder():
    assert len(FRAME) + len(VOCODER) == len(KERNELS)


def test_the_other_options_of_the_loop_and_the_sizes_of_its_graphs():
    assert "captured for 1, 2, 4, 8 and then every 8 requests" in page("model/README.md")
    assert buckets(40) == [1, 2, 4, 8, 16, 24, 32, 40]
    assert OPTIONS.sync_interval is OPTIONS.kv_cache_tokens is None  # 8, and 4 contexts: tests/model/test_scheduler.py
    assert BUDGET < 9 * 60 - 5, "in under 9 minutes"
    assert (*TARGETS,) == _launch_table.ARCHITECTURES


def test_no_snapshot_holds_a_spill():
    for path in SNAPSHOTS.glob("triton-*.json"):
        rows = json.loads(path.read_text(encoding="utf-8")).items()
        assert [key for key, row in rows if row["spills"]] == [], path.stem


def test_the_golden_vectors_are_as_many_as_their_page_says():
    cases = {name: len(json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))["cases"])
             for name in ("prompts", "sampling", "eos")}  # fmt: skip
    tensors = json.loads((GOLDEN / "checkpoint_layout.json").read_text(encoding="utf-8"))["tensors"]
    for said in (f"{cases['prompts']} prompts", f"{cases['sampling']} cases", f"{cases['eos']} stop traces",
                 f"the {len(tensors)} tensors"):  # fmt: skip
        assert said in page("tests/golden/README.md")
