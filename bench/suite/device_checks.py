"""Checks that need a device: bits do not depend on the batch, and a graph gives the bits of single launches.

Every check raises Mismatch, naming what differs. All of them run in Triton's interpreter too, on small sizes.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.units import NORM, ROWS
from zonos2_triton.bench.proof.verify import Mismatch
from zonos2_triton.bench.specs.inputs import Sizes
from zonos2_triton.bench.timing.timer import Call, cuda_graph
from zonos2_triton.model.ops import ops_of, vocoder_ops
from zonos2_triton.model.vocoder_decoder import Rings, VocoderDecoder
from zonos2_triton.model.vocoder_schedule import clip_steps
from zonos2_triton.model.weights.tiny import PARAMS, codec_weights
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.delay import shear
from zonos2_triton.reference.moe_router import by_expert
from zonos2_triton.reference.vocoder import VocoderConfig

# Both sides of every size at which a launch takes other tiles.
BATCHES = (1, 16, 17, 32, 33, 64, 65, 256)
OF_LAYERS = "qkv_projection", "decode_attention", "output_projection", "moe_router", "moe_experts"
BATCHED = (*OF_LAYERS, "codebook_head", "sample_codes")
RAGGED = {"moe_router": 4}  # results from this one on are lists of the whole batch's slots

# Of the 8B model.
LAYER = {
    "dim": 2048, "head_dim": 128, "n_kv_heads": 4, "multiple_of": 256, "max_seqlen": 6144, "moe_n_experts": 16,
    "moe_router_dim": 128,
}  # fmt: skip
WHOLE = LAYER | {
    "n_layers": 28, "moe_start_from_layer": 3, "moe_end_from_layer": 1, "special_topk_layers": {"26": 2},
    "speaker_embedding_dim": 2048, "speaker_lda_dim": 1024,
}  # fmt: skip
CHAIN = {"n_layers": 4, "moe_start_from_layer": 1, "special_topk_layers": {"2": 2}}
FEW_CODES = {"codebook_size": 14, "eoa_id": 14, "audio_pad_id": 15}


def workload_sizes(kernel: str, name: str) -> Sizes:
    return next(workload.sizes for workload in KERNELS[kernel].workloads if workload.name == name)


def batch_invariant(
    kernel: str, sizes: Sizes, device: str, dtype: torch.dtype = torch.bfloat16, batches: Sequence[int] = BATCHES
) -> None:
    """Rows alone, in batches of these sizes from either end, beside a row of NaN, and again: the same bits.

    sizes: of the catalogue's `make`, with room for the largest batch. Sequences in a cache get different lengths.
    """
    spec, most = KERNELS[kernel], max(batches)
    inputs = spec.make_inputs(device, dtype, **sizes)
    if kernel == "decode_attention":
        spread = torch.arange(most, device=device) * 37 % (sizes["context"] + 1)
        inputs["positions"] = spread.int()
    first = [_run(kernel, _rows_of(kernel, inputs, [row])) for row in range(most)]
    alone = [torch.cat(parts) for parts in zip(*first, strict=True)]
    for n in batches:
        for rows in (range(n), range(most - 1, most - 1 - n, -1)):
            got = _run(kernel, _rows_of(kernel, inputs, rows))
            _check(f"{kernel}, {n} rows from {rows[0]}", got, [part[list(rows)] for part in alone])
    _check(f"{kernel}, a second run", *[_run(kernel, _rows_of(kernel, inputs, range(most))) for _ in range(2)])
    poisoned = _rows_of(kernel, inputs, range(most))
    for name in (ROWS[kernel][0], *NORM):
        if poisoned.get(name) is not None:
            poisoned[name][most // 2] = float("nan")
    others = [row for row in range(most) if row != most // 2]
    got = [part[others] for part in _run(kernel, poisoned)]
    _check(f"{kernel}, beside a row of NaN", got, [part[others] for part in alone])


def chunked_rows(
    kernel: str, sizes: Sizes, device: str, dtype: torch.dtype = torch.bfloat16, cuts: Sequence[int] = (1, 65, 1025)
) -> None:
    """Rows of a prefill in chunks that begin at `cuts`, and all at once: the same bits."""
    inputs = KERNELS[kernel].make_inputs(device, dtype, **sizes)
    whole = _run(kernel, inputs)
    for a, b in pairwise([0, *(cut for cut in cuts if cut < sizes["M"]), sizes["M"]]):
        got = _run(kernel, _rows_of(kernel, inputs, range(a, b)))
        _check(f"{kernel}, rows {a} to {b - 1} of a prefill", got, [part[a:b] for part in whole])


def chunked_prefill(
    sizes: Sizes, device: str, dtype: torch.dtype = torch.bfloat16, cuts: Sequence[int] = (1, 65, 128, 200)
) -> None:
    """A prompt's attention in chunks that begin at `cuts`, and beside another prompt: bits and cache of one pass."""
    T, op = sizes["T"], KERNELS["prefill_attention"].op
    mate = min(T, 50)
    packed = {"B": 2, "T": T + mate, "rows": (T, mate), "contexts": (0, 0), "context": 0}
    inputs = KERNELS["prefill_attention"].make_inputs(device, dtype, **sizes | packed)

    def attend(rows: slice, sequences: slice, starts: list[int], cuts: list[int], caches: list[Tensor]) -> Tensor:
        return op(
            inputs["qkvg"][rows], inputs["qk_temperature"], inputs["cos_sin_cache"], *caches,
            inputs["block_table"][sequences],
            *(torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in (starts, cuts)),
            max_seqlen_q=max(b - a for a, b in pairwise(cuts)),
        )  # fmt: skip

    def caches() -> list[Tensor]:
        return [inputs[name].clone() for name in ("k_cache", "v_cache")]

    one, two, three = caches(), caches(), caches()
    whole = attend(slice(0, T), slice(0, 1), [0], [0, T], one)
    edges = [0, *(cut for cut in cuts if cut < T), T]
    parts = [attend(slice(a, b), slice(0, 1), [a], [0, b - a], two) for a, b in pairwise(edges)]
    _check("prefill_attention in chunks", [torch.cat(parts), *two], [whole, *one])
    both = attend(slice(0, T + mate), slice(0, 2), [0, 0], [0, T, T + mate], three)
    attend(slice(T, T + mate), slice(1, 2), [0], [0, mate], one)
    _check("prefill_attention beside another prompt", [both[:T], *three], [whole, *one])


def whole_model() -> Zonos2Config:
    """The 8B model's sizes."""
    return Zonos2Config.from_params(PARAMS | WHOLE)


def layer_chain(small: bool = False) -> Zonos2Config:
    """Two dense layers and two mixtures, of which one takes two experts a row: at the 8B model's sizes, or tiny."""
    return Zonos2Config.from_params(PARAMS | CHAIN | (FEW_CODES if small else LAYER))


def graph_capture(
    config: Zonos2Config, device: str, dtype: torch.dtype = torch.bfloat16, batch: int = 4, context: int = 300,
    capture: Callable[[Call], Call] = cuda_graph,
) -> None:  # fmt: skip
    """A decode step captured with one frame's ids and replayed with another's: logits and cache as the host's launches.

    capture: what makes a replay of a call.
    """
    model = reference.bind(config, random_weights(config, device, dtype))
    ops = ops_of("triton", config, torch.device(device), dtype)
    generator = torch.Generator().manual_seed(1)
    pages = -(-(context + 1) // 64)
    table = torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)
    starts = torch.full((batch,), context, dtype=torch.int32, device=device)
    # Two frames: codes and text.
    frames = torch.randint(0, config.codebook_size, (2, batch, config.n_codebooks), generator=generator)
    frames = F.pad(frames, (0, 1), value=config.text_vocab).to(device)
    ids = frames[0].clone()
    eager = reference.Cache(config, batch * pages, 64, model.table)
    for part in (*eager.k, *eager.v):
        part.copy_(torch.randn(part.shape, generator=generator))
    captured = deepcopy(eager)

    def step(cache: reference.Cache) -> Tensor:
        stream = reference.forward(model, reference.Batch(ids, table, starts), cache, ops)
        return reference.logits(model, *stream, ops=ops)

    with torch.inference_mode():
        step(captured)  # compiles
        results: list[Tensor] = []
        replay = capture(lambda: results.append(step(captured)))
        ids.copy_(frames[1])
        replay()
        want = step(eager)
        _check("a replayed decode step", [results[-1], *captured.k, *captured.v], [want, *eager.k, *eager.v])


def vocoder_steps(
    config: VocoderConfig, device: str, dtype: torch.dtype = torch.bfloat16, frames: int = 40,
    chunks: Sequence[int] = (1, 7, 16), rows: int = 5,
) -> None:  # fmt: skip
    """A clip in one step, in steps of these sizes, and beside other clips, shorter and longer: the same bits.

    What lies in the rings before is NaN, and the steps but the first are so of codes that come delayed.
    """
    decoder = VocoderDecoder(config, random_codec(config, device, dtype), vocoder_ops(dtype))
    lengths = [max(frames - 3 * row, 0) for row in range(rows)]
    codes = random_codes(config, rows, frames, device)
    alone = [clips(decoder, codes[row : row + 1], [n], n + decoder.right_context)[0] for row, n in enumerate(lengths)]
    late = as_delayed(codes)
    for chunk in chunks:
        got = clips(decoder, late[:1], lengths[:1], chunk, delayed=True)
        _check(f"vocoder, steps of {chunk} frames", got, alone[:1])
    for order in (range(rows), range(rows - 1, -1, -1)):
        got = clips(decoder, late[list(order)], [lengths[row] for row in order], max(chunks), delayed=True)
        _check(f"vocoder, {rows} rows from {order[0]}", got, [alone[row] for row in order])


def vocoder_graph(
    config: VocoderConfig, device: str, dtype: torch.dtype = torch.bfloat16, frames: int = 40, chunk: int = 16,
    rows: int = 4, capture: Callable[[Call], Call] = cuda_graph,
) -> None:  # fmt: skip
    """A step captured at a clip's begin and replayed to its end: samples and rings as the host's launches leave them.

    capture: as of `graph_capture`.
    """
    decoder = VocoderDecoder(config, random_codec(config, device, dtype), vocoder_ops(dtype))
    codes = as_delayed(random_codes(config, rows, frames, device))
    plan = clip_step_meta(decoder, [frames] * rows, chunk, device, delayed=True)
    step_meta, (eager, captured) = plan[0].clone(), (blank_rings(decoder, rows, chunk) for _ in range(2))
    with torch.inference_mode():
        decoder.step(captured, codes, step_meta, chunk, True)  # compiles; a step may be done twice
        results: list[Tensor] = []
        replay = capture(lambda: results.append(decoder.step(captured, codes, step_meta, chunk, True)))
        got = []
        for planned in plan:
            step_meta.copy_(planned)
            replay()
            got.append(results[-1].clone())
        want = [decoder.step(eager, codes, planned, chunk, True) for planned in plan]
        _check("a replayed step of the vocoder", [*got, *captured.tensors()], [*want, *eager.tensors()])


def clips(
    decoder: VocoderDecoder, codes: Tensor, lengths: Sequence[int], chunk: int, delayed: bool = False
) -> list[Tensor]:
    """Each row's clip of so many frames of codes [B, T, C], in steps of `chunk`."""
    rings = blank_rings(decoder, len(lengths), chunk)
    with torch.inference_mode():
        plan = clip_step_meta(decoder, lengths, chunk, str(codes.device), delayed)
        samples = torch.cat([decoder.step(rings, codes, step_meta, chunk, delayed) for step_meta in plan], 1)
    return [row[decoder.delay :][: decoder.config.samples(n)] for row, n in zip(samples, lengths, strict=True)]


def clip_step_meta(
    decoder: VocoderDecoder, lengths: Sequence[int], chunk: int, device: str, delayed: bool = False
) -> list[Tensor]:
    """step_meta [B, 4] of the steps that take clips of so many frames to their end."""
    frames = torch.tensor(lengths, dtype=torch.int32, device=device)
    codebooks = decoder.config.n_codebooks if delayed else 1
    return [*clip_steps(frames, max(lengths), chunk, decoder.right_context, codebooks)]


def blank_rings(decoder: VocoderDecoder, rows: int, frames: int) -> Rings:
    """Rings of NaN, which no step may read."""
    rings = decoder.rings(rows, frames)
    for ring in rings.tensors():
        ring.fill_(float("nan"))
    return rings


def random_codes(config: VocoderConfig, rows: int, frames: int, device: str) -> Tensor:
    """[B, T, C] int32, aligned; a few are of the end and the padding."""
    shape, generator = (rows, frames, config.n_codebooks), torch.Generator(device).manual_seed(1)
    return torch.randint(config.codebook_size + 2, shape, generator=generator, device=device, dtype=torch.int32)


def as_delayed(codes: Tensor) -> Tensor:
    """Codebook c of a frame c frames later: [B, T, C] -> [B, T + C - 1, C]."""
    return torch.stack([shear(F.pad(clip, (0, 0, 0, clip.shape[1] - 1)), 0) for clip in codes])


def random_weights(config: Zonos2Config, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random, made where they are used: copies from the host would take longer than the check."""
    generator = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, shape in reference.layout(config).items():
        x = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        norm = len(shape) == 1 or name.endswith("temp")
        weights[name] = 1 + 0.1 * x if norm else x.mul_(shape[-1] ** -0.5)
    return weights


def random_codec(config: VocoderConfig, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Likewise, of a decoder that is neither silent nor clipped."""
    with torch.device(device):
        weights = codec_weights(config, torch.Generator(device).manual_seed(0))
    return {name: weight.to(dtype) for name, weight in weights.items()}


def _rows_of(kernel: str, inputs: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The inputs for some rows of the batch, in this order; what belongs to no row stays."""
    chosen = {name: inputs[name][list(rows)] for name in ROWS[kernel] if inputs.get(name) is not None}
    if kernel == "moe_experts" and inputs.get("sorted_slot_ids") is not None:
        counts = (inputs["expert_offsets"][1:] - inputs["expert_offsets"][:-1]).long()
        ids = torch.empty(len(inputs["sorted_slot_ids"]), dtype=torch.int64, device=counts.device)
        ids[inputs["sorted_slot_ids"].long()] = torch.repeat_interleave(counts)
        mine = ids.view(len(inputs["x"]), -1)[list(rows)]
        chosen["sorted_slot_ids"], chosen["expert_offsets"] = by_expert(mine, len(counts))
    return inputs | chosen


def _run(kernel: str, inputs: dict[str, Any]) -> list[Tensor]:
    """The results that have a row for each row; caches are written in copies."""
    spec = KERNELS[kernel]
    results = spec.op(**inputs | {name: inputs[name].clone() for name in spec.mutates})
    results = [results] if isinstance(results, Tensor) else list(results)
    return [part for part in results[: RAGGED.get(kernel, len(results))] if part.numel()]


def _check(what: str, got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for number, (a, b) in enumerate(zip(got, want, strict=True)):
        if a.shape != b.shape:
            raise Mismatch(f"{what}: result {number} has shape {list(a.shape)}, not {list(b.shape)}")
        differ = _bits(a) != _bits(b)
        if bool(differ.any()):
            at = differ.nonzero()[0].tolist()
            values = f"{a[tuple(at)].item()} instead of {b[tuple(at)].item()}"
            raise Mismatch(f"{what}: result {number} differs in {int(differ.sum())} of {a.numel()}: {values} at {at}")


def _bits(x: Tensor) -> Tensor:
    """Compared as integers: NaN is itself, and 0 is not -0."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(kinds[x.element_size()]) if x.is_floating_point() else x
