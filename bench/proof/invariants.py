"""Properties that hold bit for bit for every operator, and inputs that reveal faults.

Each invariant takes a `Case` and the operation to try, by default the kernel's own, and raises AssertionError. They are
for small workloads and the interpreter: launches run inside `checked` and `poisoned`.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise, product
from typing import Any, Literal

import torch
from torch import Tensor

from zonos2_triton.bench.proof import ring_access
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.bench.proof.units import (
    MUTABLE,
    NORM,
    ROWS,
    alone_inputs,
    idle_units,
    int32,
    n_units,
    of_clips,
    share,
    spoilt,
    unread_units,
)
from zonos2_triton.bench.proof.variants import VARIANTS, Inputs
from zonos2_triton.bench.proof.verify import Case, Tensors
from zonos2_triton.bench.specs.spec import Kernel
from zonos2_triton.reference.add_rms_norm import prepare_norm
from zonos2_triton.reference.moe_router import by_expert

Op = Callable[..., Any] | None


class Broken(AssertionError):
    """An invariant does not hold."""


def run(case: Case, op: Op = None, sequence: int | Literal["reversed"] | None = None, **more: Any) -> Tensors:
    """`case.run` under all checks, its programs in this sequence. Broken: it changed what it should only read."""
    inputs = {**case.inputs, **more}
    read = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and name not in (*MUTABLE, "counters")}
    before = {name: x.clone() for name, x in read.items()}
    with checked(order=sequence), poisoned(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)  # numpy's, of the interpreter's maximum
        outputs = case.run(op, **more)
    for name, x in read.items():
        if not same_bits(x, before[name]):
            x.copy_(before[name])  # the case goes on to the next check
            raise Broken(f"{case.name}: {name} was changed")
    return outputs


def exact(case: Case, op: Op = None) -> None:
    """The results are as exact as plain PyTorch's: Mismatch."""
    case.compare(run(case, op))


def rounded_once(case: Case, op: Op = None) -> None:
    """Results that are rounded at the end alone, if at all, are the nearest: cutting bits off may pass as `exact`."""
    if case.kernel.name not in ROUNDED_ONCE or case.dtype == torch.float32:
        return
    single = torch.finfo(torch.float32).eps
    for name, x in run(case, op).items():
        if name in NORM:  # rounded again: `prepares_norm`
            continue
        oracle = case.oracle[name]
        half = torch.finfo(x.dtype).eps / 2 * oracle.abs().log2().floor().exp2()
        # What was rounded is a sum in fp32, not the oracle.
        off = (x.double() - oracle).abs() / (half + 8 * single * oracle.abs().max())
        if not (off <= 1.01).all():
            raise Broken(f"{case.name}: {name} is off by up to {float(off.max()):.3g} halves of a last place, not 1")


def prepares_norm(case: Case, op: Op = None) -> None:
    """x_scaled and sum_sq are those of the result, in all bits: who prepares a norm does not show."""
    if (weight := case.inputs.get("next_norm_weight")) is None:
        return
    got = run(case, op)
    want = dict(zip(NORM, prepare_norm(got["result"], weight), strict=True))
    _require_same(case, "the norm's first half, of the result", want, got)


def prepared_or_not(case: Case, op: Op = None) -> None:
    """A norm that the call prepares by itself gives the same bits as one that its producer has prepared."""
    if case.inputs.get("norm_weight") is None or "x_scaled" not in case.inputs:
        return
    given: Inputs = dict(zip(NORM, prepare_norm(case.inputs["x"], case.inputs["norm_weight"]), strict=True))
    alone = run(case, op, **dict.fromkeys(NORM))
    _require_same(case, "the norm's first half from its producer", alone, run(case, op, **given))


def any_order(case: Case, op: Op = None) -> None:
    """Neither the order of the programs nor the call counts."""
    first = run(case, op)
    for sequence in ("reversed", 0):
        _require_same(case, f"programs in sequence {sequence!r}", first, run(case, op, sequence))


def counters_return(case: Case, op: Op = None) -> None:
    """Counters that the caller keeps are zero after a call, so that the next finds them as they were."""
    if case.kernel.name not in COUNTING:
        return
    counters = torch.zeros(256, dtype=torch.int32, device=case.device)
    first = run(case, op, counters=counters)
    if counters.any():
        raise Broken(f"{case.name}: {int(counters.count_nonzero())} counters are not zero after the call")
    _require_same(case, "the second call with the same counters", first, run(case, op, counters=counters))


def batch_invariant(case: Case, op: Op = None) -> None:
    """A token, slot or sequence has the same bits alone as in the batch."""
    units = n_units(case)
    together = run(case, op)
    for unit in sorted({0, units // 2, units - 1, *idle_units(case)[:1]}):
        alone = alone_inputs(case, unit)
        single = share({**case.inputs, **alone}, run(case, op, **alone), 0)
        _require_same(case, f"{unit} of {units} alone", share(case.inputs, together, unit), single)


def nan_isolated(case: Case, op: Op = None) -> None:
    """A NaN or Inf in one row or sequence changes no bit of another, and shows in its own."""
    if not any(x.is_floating_point() for x in case.inputs.values() if isinstance(x, Tensor)):
        return
    units, idle, unread = n_units(case), idle_units(case), unread_units(case)
    clean = run(case, op)
    by = [ROWS[case.kernel.name][0], *["residual"] * (of_clips(case) and case.inputs.get("residual") is not None)]
    for unit, name in product(sorted({0, units - 1, *idle[:1]}), by):
        with_nan = run(case, op, **spoilt(case, unit, name))
        for other in range(units):
            mine, before = (share(case.inputs, outputs, other) for outputs in (with_nan, clean))
            if other != unit or unit in unread:
                _require_same(case, f"{other} beside NaN in {unit}", before, mine)
            elif all(x.isfinite().all() for x in mine.values()) and not mine.get("nonfinite", torch.zeros(1)).any():
                raise Broken(f"{case.name}: NaN in {unit} cannot be seen in its results")
        if case.kernel.name == "moe_router":
            _require_sorted(case, with_nan)


def causal(case: Case, op: Op = None) -> None:
    """In a packed prefill, a value that is not finite reaches the rows from its own on, and none before."""
    if case.kernel.name != "prefill_attention":
        return
    cuts = case.inputs["cu_seqlens"].tolist()
    width = case.inputs["k_cache"].shape[2:].numel()
    gates = 0 if case.inputs["qk_temperature"] is None else len(case.inputs["qk_temperature"])
    last = case.inputs["qkvg"].shape[1] - gates
    clean = run(case, op)["result"]
    for begin, end in pairwise(cuts):
        at = (begin + end) // 2
        for value in (float("nan"), float("inf")):
            qkvg = case.inputs["qkvg"].clone()
            qkvg[at, last - width : last] = value  # the row's values of all heads
            got = run(case, op, qkvg=qkvg)["result"]
            others = [*range(at), *range(end, len(got))]
            _require_same(case, f"rows beside {value} in {at}", {"result": clean[others]}, {"result": got[others]})
            if got[at:end].isfinite().any():
                raise Broken(f"{case.name}: {value} in the values of row {at} does not reach all rows that see it")


def stale_cache(case: Case, op: Op = None) -> None:
    """The content of the cache beyond a sequence's end, and of unused pages, changes no bit."""
    if "k_cache" not in case.kernel.mutates:
        return
    clean = run(case, op)["result"]
    block_table, size = case.inputs["block_table"].long(), case.inputs["k_cache"].shape[1]
    known = case.inputs["cache_seqlens" if "cache_seqlens" in case.inputs else "positions"].tolist()
    stale = torch.ones(case.inputs["k_cache"].shape[:2], dtype=torch.bool)
    for pages, count in zip(block_table, known, strict=True):
        at = torch.arange(max(count, 0))
        stale[pages[at // size], at % size] = False
    caches = {name: case.inputs[name].masked_fill(stale[..., None, None], float("nan")) for name in MUTABLE}
    got = run(case, op, **caches)["result"]
    _require_same(case, "a cache of NaN where nothing was written", {"result": clean}, {"result": got})


def chunked_prefill(case: Case, op: Op = None) -> None:
    """A prompt that comes in two pieces leaves the same bits as in one."""
    if case.kernel.name != "prefill_attention":
        return
    for unit in range(n_units(case)):
        alone = alone_inputs(case, unit)
        rows, start = len(alone["qkvg"]), int(alone["cache_seqlens"][0])
        if rows < 2:
            continue
        whole = run(case, op, **alone)
        cut, caches, parts = rows // 2 + 1, {name: case.inputs[name] for name in MUTABLE}, []
        for begin, end in ((0, cut), (cut, rows)) if cut < rows else ((0, 1), (1, rows)):
            piece = {"qkvg": alone["qkvg"][begin:end].clone(), "cache_seqlens": int32(start + begin)}
            piece |= {"cu_seqlens": int32(0, end - begin), "max_seqlen_q": end - begin}
            got = run(case, op, **{**alone, **piece, **caches})
            parts.append(got.pop("result"))
            caches = got
        _require_same(case, f"sequence {unit} in two pieces", whole, {"result": torch.cat(parts), **caches})


def reads_only_window(case: Case, op: Op = None) -> None:
    """The content of rings outside the positions that the step needs changes no bit."""
    if not of_clips(case):
        return
    places = [ring_access.read(case.inputs, row) for row in range(n_units(case))]
    changed: Inputs = {}
    for name in places[0]:
        ring, used = case.inputs[name], torch.stack([of[name] for of in places])
        if ring.is_floating_point():
            changed[name] = ring.masked_fill(~used[..., None], float("nan"))
        else:  # codes, each of which becomes one of another vector
            changed[name] = torch.where(used, ring, (ring + 1) % case.inputs["tables"].shape[1])
    _require_same(case, "other things where nothing counts", run(case, op), run(case, op, **changed))


def steps(case: Case, op: Op = None) -> None:
    """A step that is cut into several leaves the same bits as in one."""
    if not of_clips(case) or case.inputs["frames"] == 1:
        return
    frames, (done, count, *rest) = case.inputs["frames"], case.inputs["step_meta"].unbind(1)
    rings: Inputs = {}
    results = []
    for begin, end in pairwise(sorted({0, 1, min(3, frames), frames})):
        past = count.clamp(max=begin)
        step_meta = torch.stack([done + past, (count - past).clamp(max=end - begin), *rest], 1)
        rings = run(case, op, step_meta=step_meta, frames=end - begin, **rings)
        results += [rings.pop(name) for name in [*rings] if name not in case.kernel.mutates]
    made = {"samples": torch.cat(results, 1)} if results else {}
    _require_same(case, "a step in several", run(case, op), {**made, **rings})


def idempotent(case: Case, op: Op = None) -> None:
    """A step may be done twice: earlier values where it writes change no bit."""
    if not of_clips(case):
        return
    first = run(case, op)
    rings: Inputs = {name: x for name, x in first.items() if name in case.kernel.mutates}
    _require_same(case, "the same step again", first, run(case, op, **rings))
    made = [ring_access.written(case.inputs, row) for row in range(n_units(case))]
    for name, ring in rings.items():
        places = torch.stack([ring_access.index_mask(ring, positions) for positions in made])
        rings[name] = ring.masked_fill(places[..., None], float("nan"))
    _require_same(case, "NaN where it writes", first, run(case, op, **rings))


_OF_FRAMES = (
    prepares_norm,
    prepared_or_not,
    counters_return,
    causal,
    nan_isolated,
    stale_cache,
    chunked_prefill,
    batch_invariant,
)
_CHECKS = (*_OF_FRAMES, reads_only_window, steps, idempotent, any_order)
INVARIANTS: Mapping[str, Callable[[Case, Op], None]] = {check.__name__: check for check in _CHECKS}
ROUNDED_ONCE = {"frame_embedding", "add_rms_norm", "rotary", "output_projection", "rvq_decode"}
ROUNDED_ONCE |= {"conv1d_snake", "conv_transpose1d_snake", "conv1d_tanh"}
COUNTING = ("decode_attention", "moe_router", "moe_experts", "sample_codes")


def variants(kernel: Kernel) -> Iterator[tuple[str, Kernel]]:
    """(name, kernel) of each variant: inputs that show what ordinary ones hide."""
    for name, change in VARIANTS.get(kernel.name, {}).items():

        def make(*args: Any, change: Callable[[Inputs], Inputs] = change, **kwargs: Any) -> Inputs:
            inputs = kernel.make_inputs(*args, **kwargs)
            return {**inputs, **change(inputs)}

        yield name, replace(kernel, make_inputs=make)


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    bits = torch.int16 if a.element_size() == 2 else torch.int32
    return torch.equal(a.view(bits), b.view(bits))


def _require_same(case: Case, what: str, want: Tensors, got: Tensors) -> None:
    for name, x in want.items():
        if not same_bits(x, got[name]):
            wrong = int((x != got[name]).sum()) if x.shape == got[name].shape else "all"
            raise Broken(f"{case.name}: {what}: {wrong} of {x.numel()} elements of {name} differ")


def _require_sorted(case: Case, outputs: Tensors) -> None:
    ids, experts = outputs["expert_ids"], outputs["probs"].shape[1]
    if ((ids < 0) | (ids >= experts)).any():
        raise Broken(f"{case.name}: an expert out of range, of a row of NaN")
    lists = by_expert(ids, experts, case.inputs["positions"])
    for name, want in zip(("sorted_slot_ids", "expert_offsets"), lists, strict=True):
        if not torch.equal(outputs[name], want):
            raise Broken(f"{case.name}: {name} does not sort the chosen experts")
