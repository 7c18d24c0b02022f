"""What a plan says of memory, against what `Zonos2.load` holds: the same parts, to a byte."""

import pytest
import torch

from zonos2_triton.bench.planner import footprint
from zonos2_triton.bench.planner.footprint import Sizes, components, held, planned, tensors
from zonos2_triton.model import LoopOptions, Zonos2, Zonos2Config
from zonos2_triton.model.ops import PAGE_SIZE
from zonos2_triton.model.runtime.batch_state import Slots, cache_pages
from zonos2_triton.model.weights.tiny import CODEC, PARAMS, SPEAKER
from zonos2_triton.reference.vocoder import VocoderConfig

MODEL = Zonos2Config.from_params(PARAMS)
TINY = Sizes(MODEL, CODEC, SPEAKER)
# Options of load; on a CPU the host looks at every frame.
LOADS = {
    "defaults": {},
    "small": {"dtype": "bfloat16", "vocoder_dtype": "float16", "options": LoopOptions(streams=3, positions=5000)},
    "one": {"dtype": "float16", "vocoder_dtype": "tf32", "options": LoopOptions(streams=1, look=5)},
}


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.interpreter)])
@pytest.mark.parametrize("name", LOADS)
def test_a_plan_is_what_load_holds(name, backend, tiny_folder):
    loading = dict(LOADS[name])
    if backend == "reference" and "vocoder_dtype" in loading:
        loading["vocoder_dtype"] = loading["vocoder_dtype"].replace("tf32", "float32")  # a way of the kernels
    found = components(tts := Zonos2.load(tiny_folder, "cpu", backend=backend, **loading))
    options = loading.get("options", LoopOptions())
    if options.look is None:
        options = LoopOptions(options.streams, options.positions, look=1)
    dtypes = loading.get("dtype", "float32"), loading.get("vocoder_dtype", "float32")
    assert found == planned(*dtypes, options, TINY, backend)
    assert sum(found.values()) == held(tensors(tts))
    assert found["cache"] == cache_pages(MODEL, options.streams, options.positions) * PAGE_SIZE * 6 * 2 * 2 * 16 * (
        tts.backbone.dtype.itemsize
    )
    assert (found["vocoder, packed"] > 0) == (found["vocoder's rings"] > 0) == (backend == "triton")


def test_what_load_takes_by_default():
    """Four contexts of 6,144 rows, 28 layers' keys and values of 4 heads of 128; 12.0 M parameters of the encoder."""
    found = planned("bfloat16", "float32", LoopOptions())
    assert found["cache"] == 4 * 6144 * 28 * 2 * 4 * 128 * 2
    assert found["speaker encoder"] == 4 * 12_001_088
    assert found["vocoder, as loaded"] == 4 * 54_247_777
    assert sum(size for name, size in found.items() if name.startswith("weights: ")) == 2 * 7_668_118_208
    assert found["rotary table"] == 6144 * 128 * 4
    assert found["embedding again, as one table"] == found["weights: embedding"] == 2 * (9 * 1026 + 520) * 2048


@pytest.mark.parametrize(("streams", "positions", "pages"), [(16, None, 4 * 96), (2, None, 2 * 96), (16, 65, 2)])
def test_pages_of_the_cache(streams, positions, pages):
    assert cache_pages(footprint.MODEL, streams, positions) == pages
    options = LoopOptions(streams, positions)
    page = planned("bfloat16", "float16", LoopOptions(1, PAGE_SIZE))["cache"]
    assert planned("bfloat16", "float16", options)["cache"] == pages * page


def test_what_is_shared_is_counted_once():
    """Rows of numbers are views of one tensor."""
    slots = Slots(MODEL, 16, 0, 17, torch.empty(0, dtype=torch.bfloat16))
    own = (slots.numbers, slots.block_table, slots.ids, slots.settings, slots.seeds, slots.last_seen, slots.frames)
    assert held(tensors(slots)) == sum(tensor.nbytes for tensor in own)
    assert held(tensors([slots, {"again": slots.numbers}, slots])) == held(tensors(slots))


def test_a_half_as_wide_vocoder_takes_about_half():
    full, half = (planned("bfloat16", dtype, LoopOptions(1)) for dtype in ("float32", "float16"))
    assert full["vocoder, as loaded"] == 2 * half["vocoder, as loaded"]
    assert planned("bfloat16", "tf32", LoopOptions(1)) == full
    assert VocoderConfig() == footprint.CODEC
