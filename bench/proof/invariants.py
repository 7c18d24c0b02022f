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
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.bench.proof import ring_access
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.bench.proof.variants import VARIANTS, Inputs
from zonos2_triton.bench.proof.verify import Case, Tensors
from zonos2_triton.bench.specs.spec import Kernel
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
        oracle = case.oracle[name]
        half = torch.finfo(x.dtype).eps / 2 * oracle.abs().log2().floor().exp2()
        # What was rounded is a sum in fp32, not the oracle.
        off = (x.double() - oracle).abs() / (half + 8 * single * oracle.abs().max())
        if not (off <= 1.01).all():
            raise Broken(f"{case.name}: {name} is off by up to {float(off.max()):.3g} halves of a last place, not 1")


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
    units = _units(case)
    together = run(case, op)
    for unit in sorted({0, units // 2, units - 1, *_idle(case)[:1]}):
        alone = _alone(case, unit)
        single = _share({**case.inputs, **alone}, run(case, op, **alone), 0)
        _require_same(case, f"{unit} of {units} alone", _share(case.inputs, together, unit), single)


def nan_isolated(case: Case, op: Op = None) -> None:
    """A NaN or Inf in one row or sequence changes no bit of another, and shows in its own."""
    if not any(x.is_floating_point() for x in case.inputs.values() if isinstance(x, Tensor)):
        return
    units, idle, unread = _units(case), _idle(case), _unread(case)
    clean = run(case, op)
    by = [ROWS[case.kernel.name][0], *["residual"] * (_of_clips(case) and case.inputs.get("residual") is not None)]
    for unit, name in product(sorted({0, units - 1, *idle[:1]}), by):
        spoilt = run(case, op, **_spoilt(case, unit, name))
        for other in range(units):
            mine, before = (_share(case.inputs, outputs, other) for outputs in (spoilt, clean))
            if other != unit or unit in unread:
                _require_same(case, f"{other} beside NaN in {unit}", before, mine)
            elif all(x.isfinite().all() for x in mine.values()) and not mine.get("nonfinite", torch.zeros(1)).any():
                raise Broken(f"{case.name}: NaN in {unit} cannot be seen in its results")
        if case.kernel.name == "moe_router":
            _require_sorted(case, spoilt)


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
    for unit in range(_units(case)):
        alone = _alone(case, unit)
        rows, start = len(alone["qkvg"]), int(alone["cache_seqlens"][0])
        if rows < 2:
            continue
        whole = run(case, op, **alone)
        cut, caches, parts = rows // 2 + 1, {name: case.inputs[name] for name in MUTABLE}, []
        for begin, end in ((0, cut), (cut, rows)) if cut < rows else ((0, 1), (1, rows)):
            piece = {"qkvg": alone["qkvg"][begin:end].clone(), "cache_seqlens": _int32(start + begin)}
            piece |= {"cu_seqlens": _int32(0, end - begin), "max_seqlen_q": end - begin}
            got = run(case, op, **{**alone, **piece, **caches})
            parts.append(got.pop("result"))
            caches = got
        _require_same(case, f"sequence {unit} in two pieces", whole, {"result": torch.cat(parts), **caches})


def reads_only_window(case: Case, op: Op = None) -> None:
    """The content of rings outside the positions that the step needs changes no bit."""
    if not _of_clips(case):
        return
    places = [ring_access.read(case.inputs, row) for row in range(_units(case))]
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
    if not _of_clips(case) or case.inputs["frames"] == 1:
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
    if not _of_clips(case):
        return
    first = run(case, op)
    rings: Inputs = {name: x for name, x in first.items() if name in case.kernel.mutates}
    _require_same(case, "the same step again", first, run(case, op, **rings))
    made = [ring_access.written(case.inputs, row) for row in range(_units(case))]
    for name, ring in rings.items():
        places = torch.stack([ring_access.index_mask(ring, positions) for positions in made])
        rings[name] = ring.masked_fill(places[..., None], float("nan"))
    _require_same(case, "NaN where it writes", first, run(case, op, **rings))


_OF_FRAMES = (counters_return, causal, nan_isolated, stale_cache, chunked_prefill, batch_invariant)
_CHECKS = (*_OF_FRAMES, reads_only_window, steps, idempotent, any_order)
INVARIANTS: Mapping[str, Callable[[Case, Op], None]] = {check.__name__: check for check in _CHECKS}
ROUNDED_ONCE = {"frame_embedding", "add_rms_norm", "rotary", "output_projection", "rvq_decode"}
ROUNDED_ONCE |= {"conv1d_snake", "conv_transpose1d_snake", "conv1d_tanh"}
MUTABLE = ("k_cache", "v_cache")
COUNTING = ("decode_attention", "moe_router", "moe_experts")
IDLE_UNREAD = ("decode_attention",)  # nothing of an idle slot or token is read
# Arguments with a row for each row of the result. The first is what spoils a row.
ROWS: Mapping[str, tuple[str, ...]] = {
    "frame_embedding": ("ids", "speaker_index"),
    "add_rms_norm": ("x", "residual"),
    "rotary": ("x", "positions"),
    "qkv_projection": ("x",),
    "decode_attention": ("qkvg", "positions", "block_table"),
    "prefill_attention": ("qkvg",),
    "output_projection": ("y", "residual"),
    "moe_router": ("x", "router_state", "positions"),
    "moe_experts": ("x", "expert_weights"),
    "codebook_head": ("x",),
    "sample_codes": ("logits", "settings", "seeds", "steps", "last_seen"),
    "advance_frame": (
        *("codes", "nonfinite", "positions", "steps", "max_frames", "eoa_ids", "eos_frames"),
        *("ids", "last_seen", "frames"),
    ),
    "rvq_decode": ("codes", "step_meta", "z"),
    **dict.fromkeys(
        ("conv1d_snake", "conv_transpose1d_snake", "residual_unit", "conv1d_tanh"),
        ("x", "step_meta", "residual", "y", "activated"),
    ),
}


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


def _int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def _units(case: Case) -> int:
    """The number of tokens, slots or sequences, which do not depend on each other."""
    if case.kernel.name == "prefill_attention":
        return len(case.inputs["cache_seqlens"])
    return len(case.inputs[ROWS[case.kernel.name][0]])


def _of_clips(case: Case) -> bool:
    """Whether the kernel goes through clips in steps, one clip per slot."""
    return "step_meta" in case.inputs


def _unread(case: Case) -> list[int]:
    """Units of which nothing is read."""
    if _of_clips(case):
        return [row for row in range(_units(case)) if not ring_access.written(case.inputs, row)]
    nothing_added = case.inputs.get("residual") is False  # of `moe_experts`: x is read for its experts alone
    return _idle(case) if case.kernel.name in IDLE_UNREAD or nothing_added else []


def _idle(case: Case) -> list[int]:
    """Units that are idle in this call."""
    if _of_clips(case):
        return (case.inputs["step_meta"][:, 1] == 0).nonzero().flatten().tolist()
    if case.inputs.get("expert_offsets") is not None:
        nobodys = case.inputs["sorted_slot_ids"][case.inputs["expert_offsets"][-1] :]
        return sorted({*(nobodys // case.inputs["expert_weights"].shape[1]).tolist()})
    positions = case.inputs.get("positions")
    return [] if positions is None else (positions < 0).nonzero().flatten().tolist()


def _rows(inputs: Inputs, unit: int) -> slice:
    """The results of one row or sequence of a call."""
    if "cu_seqlens" in inputs:
        return slice(*inputs["cu_seqlens"][unit : unit + 2].tolist())
    return slice(unit, unit + 1)


def _alone(case: Case, unit: int) -> Inputs:
    """The arguments that differ when this unit comes alone."""
    rows = _rows(case.inputs, unit)
    names = [name for name in ROWS[case.kernel.name] if case.inputs.get(name) is not None]
    alone: Inputs = {name: case.inputs[name][rows].clone() for name in names}
    if case.kernel.name == "prefill_attention":
        length = rows.stop - rows.start
        alone |= {name: case.inputs[name][unit : unit + 1].clone() for name in ("block_table", "cache_seqlens")}
        alone |= {"cu_seqlens": _int32(0, length), "max_seqlen_q": length}
    if case.inputs.get("expert_offsets") is not None:
        order, offsets = case.inputs["sorted_slot_ids"].long(), case.inputs["expert_offsets"].long()
        experts = len(offsets) - 1
        ids = torch.full_like(order, experts)  # of no expert
        ids[order[: offsets[-1]]] = torch.arange(experts).repeat_interleave(offsets.diff())
        alone["sorted_slot_ids"], alone["expert_offsets"] = by_expert(ids.view(_units(case), -1)[rows], experts)
    return alone


def _share(inputs: Inputs, outputs: Tensors, unit: int) -> Tensors:
    """The share of one row or sequence in an output of a call with `inputs`."""
    rows = _rows(inputs, unit)
    return {
        name: x[inputs["block_table"][unit].long()] if name in MUTABLE else x[rows]
        for name, x in outputs.items()
        if name not in ("sorted_slot_ids", "expert_offsets")
    }


def _spoilt(case: Case, unit: int, name: str) -> Inputs:
    """The arguments that differ when this unit of one of them is NaN."""
    if case.kernel.name == "frame_embedding":  # by a row of a table that no other frame reads
        ids, table, speakers = case.inputs["ids"], case.inputs["table"].clone(), case.inputs["speakers"]
        own = next(c for c in range(ids.shape[1]) if (ids[:, c] == ids[unit, c]).sum() == 1)
        table[int(ids[unit, own]) + own * case.inputs["codebook_vocab"]] = float("nan")
        if speakers is None:
            return {"table": table}
        index = case.inputs["speaker_index"].clone()
        if index[unit] >= 0:
            index[unit] = len(speakers)
        return {"table": table, "speakers": F.pad(speakers, (0, 0, 0, 1), value=float("nan")), "speaker_index": index}
    if case.kernel.name == "rvq_decode":  # by a vector before the first, to which the row's codes fall
        codes = case.inputs["codes"] + 1
        codes[unit] = 0
        return {"codes": codes, "tables": F.pad(case.inputs["tables"], (0, 0, 1, 0), value=float("nan"))}
    x = case.inputs[name].clone()
    x[_rows(case.inputs, unit)] = float("nan")
    return {name: x}
