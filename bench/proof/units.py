"""The units of a call, which do not depend on each other: its tokens, slots or sequences; and the share of each."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.bench.proof import ring_access
from zonos2_triton.bench.proof.variants import Inputs
from zonos2_triton.bench.proof.verify import Case, Tensors
from zonos2_triton.reference.moe_router import by_expert

NORM = ("x_scaled", "sum_sq")  # what a producer leaves for the norm that follows
MUTABLE = ("k_cache", "v_cache")
IDLE_UNREAD = ("decode_attention",)  # nothing of an idle slot or token is read
# Arguments with a row for each row of the result. The first is what spoils a row.
ROWS: Mapping[str, tuple[str, ...]] = {
    "frame_embedding": ("ids", "speaker_index"),
    "add_rms_norm": ("x", "residual"),
    "rotary": ("x", "positions"),
    "qkv_projection": ("x", *NORM),
    "decode_attention": ("qkvg", "positions", "block_table"),
    "prefill_attention": ("qkvg",),
    "output_projection": ("y", "residual"),
    "moe_router": ("x", *NORM, "router_state", "positions"),
    "moe_experts": ("x", *NORM, "expert_weights"),
    "codebook_head": ("x", *NORM),
    "sample_codes": (
        *("logits", "settings", "seeds", "steps", "last_seen"),
        *("positions", "max_frames", "eoa_ids", "eos_frames", "ids", "frames"),
    ),
    "rvq_decode": ("codes", "step_meta", "z"),
    **dict.fromkeys(
        ("conv1d_snake", "conv_transpose1d_snake", "residual_unit", "conv1d_tanh"),
        ("x", "step_meta", "residual", "y", "activated"),
    ),
}


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def n_units(case: Case) -> int:
    """The number of tokens, slots or sequences, which do not depend on each other."""
    if case.kernel.name == "prefill_attention":
        return len(case.inputs["cache_seqlens"])
    return len(case.inputs[ROWS[case.kernel.name][0]])


def of_clips(case: Case) -> bool:
    """Whether the kernel goes through clips in steps, one clip per slot."""
    return "step_meta" in case.inputs


def unread_units(case: Case) -> list[int]:
    """Units of which nothing is read."""
    if of_clips(case):
        return [row for row in range(n_units(case)) if not ring_access.written(case.inputs, row)]
    nothing_added = case.inputs.get("residual") is False  # of `moe_experts`: x is read for its experts alone
    return idle_units(case) if case.kernel.name in IDLE_UNREAD or nothing_added else []


def idle_units(case: Case) -> list[int]:
    """Units that are idle in this call."""
    if of_clips(case):
        return (case.inputs["step_meta"][:, 1] == 0).nonzero().flatten().tolist()
    if case.inputs.get("expert_offsets") is not None:
        nobodys = case.inputs["sorted_slot_ids"][case.inputs["expert_offsets"][-1] :]
        return sorted({*(nobodys // case.inputs["expert_weights"].shape[1]).tolist()})
    positions = case.inputs.get("positions")
    return [] if positions is None else (positions < 0).nonzero().flatten().tolist()


def rows_of(inputs: Inputs, unit: int) -> slice:
    """The results of one row or sequence of a call."""
    if "cu_seqlens" in inputs:
        return slice(*inputs["cu_seqlens"][unit : unit + 2].tolist())
    return slice(unit, unit + 1)


def alone_inputs(case: Case, unit: int) -> Inputs:
    """The arguments that differ when this unit comes alone."""
    rows = rows_of(case.inputs, unit)
    names = [name for name in ROWS[case.kernel.name] if case.inputs.get(name) is not None]
    alone: Inputs = {name: case.inputs[name][rows].clone() for name in names}
    if case.kernel.name == "prefill_attention":
        length = rows.stop - rows.start
        alone |= {name: case.inputs[name][unit : unit + 1].clone() for name in ("block_table", "cache_seqlens")}
        alone |= {"cu_seqlens": int32(0, length), "max_seqlen_q": length}
    if case.inputs.get("expert_offsets") is not None:
        order, offsets = case.inputs["sorted_slot_ids"].long(), case.inputs["expert_offsets"].long()
        experts = len(offsets) - 1
        ids = torch.full_like(order, experts)  # of no expert
        ids[order[: offsets[-1]]] = torch.arange(experts).repeat_interleave(offsets.diff())
        alone["sorted_slot_ids"], alone["expert_offsets"] = by_expert(ids.view(n_units(case), -1)[rows], experts)
    return alone


def share(inputs: Inputs, outputs: Tensors, unit: int) -> Tensors:
    """The share of one row or sequence in an output of a call with `inputs`."""
    rows = rows_of(inputs, unit)
    return {
        name: x[inputs["block_table"][unit].long()] if name in MUTABLE else x[rows]
        for name, x in outputs.items()
        if name not in ("sorted_slot_ids", "expert_offsets") and x.numel()
    }


def spoilt(case: Case, unit: int, name: str) -> Inputs:
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
    changed: Inputs = {}
    for each in (name, *(NORM if name == "x" else ())):
        if case.inputs.get(each) is not None:
            changed[each] = case.inputs[each].clone()
            changed[each][rows_of(case.inputs, unit)] = float("nan")
    return changed
