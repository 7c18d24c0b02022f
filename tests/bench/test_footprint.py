"""The memory of a plan equals that of `Zonos2.load`, component by component, to a byte."""

import pytest
import torch

from zonos2_triton.bench.planner.footprint import Sizes, components, held, planned, tensors
from zonos2_triton.model import BatchingOptions, Zonos2, Zonos2Config
from zonos2_triton.model.ops import PAGE_SIZE
from zonos2_triton.model.runtime.batch_state import BatchState, cache_pages
from zonos2_triton.model.weights.tiny import CODEC, PARAMS, SPEAKER

MODEL = Zonos2Config.from_params(PARAMS)
TINY = Sizes(MODEL, CODEC, SPEAKER)
# Options of load; on a CPU the host synchronises every frame.
LOADS = {
    "defaults": {},
    "small": {
        "dtype": "bfloat16",
        "vocoder_dtype": "float16",
        "options": BatchingOptions(max_batch_size=3, kv_cache_tokens=5000),
    },
    "one": {"dtype": "float16", "vocoder_dtype": "tf32", "options": BatchingOptions(max_batch_size=1, sync_interval=5)},
}


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.interpreter)])
@pytest.mark.parametrize("name", LOADS)
def test_a_plan_is_what_load_holds(name, backend, tiny_folder):
    loading = dict(LOADS[name])
    if backend == "reference" and "vocoder_dtype" in loading:
        loading["vocoder_dtype"] = loading["vocoder_dtype"].replace("tf32", "float32")  # a way of the kernels
    found = components(tts := Zonos2.load(tiny_folder, "cpu", backend=backend, **loading))
    options = loading.get("options", BatchingOptions())
    if options.sync_interval is None:
        options = BatchingOptions(options.max_batch_size, options.kv_cache_tokens, sync_interval=1)
    dtypes = loading.get("dtype", "float32"), loading.get("vocoder_dtype", "float32")
    assert found == planned(*dtypes, options, TINY, backend)
    assert sum(found.values()) == held(tensors(tts))
    assert found["cache"] == cache_pages(
        MODEL, options.max_batch_size, options.kv_cache_tokens
    ) * PAGE_SIZE * 6 * 2 * 2 * 16 * (tts.backbone.dtype.itemsize)
    assert (found["vocoder, packed"] > 0) == (found["vocoder's rings"] > 0) == (backend == "triton")


def test_what_is_shared_is_counted_once():
    """Rows of scalars are views of one tensor."""
    slots = BatchState(MODEL, 16, 0, 17, torch.empty(0, dtype=torch.bfloat16))
    own = (slots.scalars, slots.block_table, slots.ids, slots.settings, slots.seeds, slots.last_seen, slots.frames)
    assert held(tensors(slots)) == sum(tensor.nbytes for tensor in own)
    assert held(tensors([slots, {"again": slots.scalars}, slots])) == held(tensors(slots))
