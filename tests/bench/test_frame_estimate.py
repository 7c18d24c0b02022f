"""Frames estimated from a snapshot: their launches are those of the model, and each counts once."""

from dataclasses import asdict, fields

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler.estimate import GAP_US, Counted, rates_of, serial_us
from zonos2_triton.bench.compiler.frame_estimate import (
    BATCH_SIZES,
    HOST_US,
    MOST_MS,
    estimated_snapshot,
    estimates,
    frame_places,
    frame_us,
    prompt_us,
)
from zonos2_triton.bench.planner.footprint import MODEL
from zonos2_triton.bench.specs.gpus import find_gpu
from zonos2_triton.model.weights.tiny import PARAMS, backbone_weights
from zonos2_triton.reference import network
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.ops import REFERENCE, Ops

COUNTED = Counted(launch=0, live=132, wavefronts=1900, issued=1900, chain=1900, round_trips=1, conflict=1.0, exposed=0,
                  under_way=28_000, moved=1000, through_l2=1000, loaded=8, early_loaded=0, loaded_after=8,
                  wavefronts_after=1900, issued_after=1900, chain_before=0, chain_after=1900, registers=72, shared=1024,
                  warps=2, resident=16)  # fmt: skip
FUNCTIONS = {"moe_experts": ("_moe_experts_up_kernel", "_moe_experts_down_kernel")}


def snapshot(**change):
    """A snapshot in which every launch has the same counts. moe_experts launches twice."""
    rows = {}
    for kernel in KERNELS.values():
        for workload in kernel.workloads:
            for i, function in enumerate(FUNCTIONS.get(kernel.name, (f"_{kernel.name}_kernel",))):
                counted = asdict(COUNTED) | {"launch": i} | change
                rows[f"{kernel.name}/{function}/{workload.name}-bfloat16/sm_90"] = {"launches": 1, **counted}
    return rows


def test_a_frame_is_what_the_model_launches():
    """The order of operations of a tiny model with dense layers and mixtures of one expert and of two."""
    config, called = Zonos2Config.from_params(PARAMS), []

    def recorded(name, op):
        return lambda *args, **kwargs: (called.append(name), op(*args, **kwargs))[1]

    ops = Ops(**{field.name: recorded(field.name, getattr(REFERENCE, field.name)) for field in fields(Ops)})
    model = network.bind(config, backbone_weights(config, torch.Generator().manual_seed(0)))
    ids, page = torch.zeros(1, config.n_codebooks + 1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    cache = network.Cache(config, 1, 4, model.table)
    batch = network.Batch(ids, page, torch.zeros(1, dtype=torch.int32))
    network.logits(model, *network.forward(model, batch, cache, ops), ops=ops)
    places = frame_places(config, 1)
    assert [op for op, _ in places] == [*called, "sample_codes"]
    experts = [workload for op, workload in places if op == "moe_experts"]
    assert experts == ["dense-B1", "dense-B1", "decode-B1", "decode-B1", "decode-B1-top2", "dense-B1"]


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_every_operation_of_a_frame_has_a_workload(batch_size):
    known = {(kernel.name, workload.name) for kernel in KERNELS.values() for workload in kernel.workloads}
    assert set(frame_places(MODEL, batch_size)) <= known
    assert frame_us(MODEL, batch_size, estimates(snapshot())) is not None


def test_a_frame_of_the_8b_model():
    """167 launches; memory decides at few programs, and dependent launches take less."""
    found = estimates(snapshot())
    launches = [step for place in frame_places(MODEL, 1) for step in found[place]]
    assert len(launches) == 167
    serial, dependent = frame_us(MODEL, 1, found)
    assert serial == pytest.approx(sum(step.estimate.us + GAP_US for step in launches))
    assert 0.42e3 < dependent < serial
    assert sum(step.bytes for step in launches) == pytest.approx(1.8e9, rel=0.02)


def test_launches_share_the_bytes_of_their_operation():
    rows = snapshot()
    rows["moe_experts/_moe_experts_up_kernel/decode-B1-bfloat16/sm_90"]["moved"] = 2000
    up, down = estimates(rows)["moe_experts", "decode-B1"]
    assert (up.name, down.name) == ("moe_experts/_moe_experts_up_kernel", "moe_experts/_moe_experts_down_kernel")
    assert up.bytes == pytest.approx(2 * down.bytes)
    assert (up.certain, down.certain) == (0, down.bytes)  # the router has to choose first
    [qkv] = estimates(rows)["qkv_projection", "decode-B1"]
    assert qkv.certain == qkv.bytes > 12.5e6


def test_without_counts_there_is_no_estimate():
    rows = {key: {"launches": 1} for key in snapshot()}
    assert estimates(rows) == {}
    assert frame_us(MODEL, 1, {}) is prompt_us(MODEL, {}) is None


def test_a_prompt():
    found = estimates(snapshot())
    assert prompt_us(MODEL, found) > 0.9 * serial_us(found["codebook_head", "decode-B1"])
    assert prompt_us(MODEL, found) > 28 * 6 * 2


@pytest.mark.parametrize(("chain", "is_of_the_host"), [(1900, True), (190_000, False)])
def test_the_slower_of_host_and_gpu_decides_a_prompt(chain, is_of_the_host):
    """166 launches: those of a frame without its last two."""
    us = prompt_us(MODEL, estimates(snapshot(chain=chain)))
    assert (us == HOST_US * 166) == is_of_the_host
    assert us >= HOST_US * 166


def test_slower_gpus_take_longer():
    times = [frame_us(MODEL, 1, estimates(snapshot(), rates_of(find_gpu(name))))[0] for name in ("l4", "h100", "h200")]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("batch_size", MOST_MS)
def test_frames_keep_their_bounds(batch_size):
    """By the committed snapshot; launches one after the other, and dependent ones."""
    found = frame_us(MODEL, batch_size, estimates(estimated_snapshot()))
    if found is None:
        pytest.skip("the snapshot has no counts yet")
    serial, dependent = found
    assert dependent < serial <= MOST_MS[batch_size] * 1e3
