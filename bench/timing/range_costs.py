"""The least bytes and FLOPs of a generation's ranges: the kernels' own costs, by range."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

from zonos2_triton.bench.specs.frame_cost import frame_cost, prompt_cost
from zonos2_triton.bench.timing.range_times import Node, Path, Work
from zonos2_triton.bench.timing.vocoder import step_costs
from zonos2_triton.kernels._operator import Cost
from zonos2_triton.model.pipeline import Zonos2
from zonos2_triton.model.vocoder import Vocoder

# Ranges that a cost is known for, whatever they lie in; each is one forward, draw or decoding.
CODEC = ("codec/decode", "codec/advance", "codec/step")  # the last may lie in either of the others
STAGES = ("model/prefill", "model/start", "model/frame", *CODEC)


def range_work(tts: Zonos2, batch_size: int, frames: int, prompt_rows: int, calls: Counter[str]) -> dict[Path, Work]:
    """The cost of all calls of a range together, by its path from a stage on.

    Equal prompts ran together; frames and prompt_rows are of each. calls: of the stages, as they were seen.
    """
    config, itemsize, found = tts.backbone.config, tts.backbone.dtype.itemsize, dict[Path, Work]()
    if n := calls["model/prefill"]:
        together = batch_size / n  # prompts of one call
        costs = dict(prompt_cost(config, round(prompt_rows * together), itemsize))
        del costs["codebook_head"]  # of the first frame, which comes later
        attention = costs["prefill_attention"]  # counted as if all were one prompt
        costs["prefill_attention"] = Cost(attention.bytes, round(attention.flops / together))
        found |= _stage("model/prefill", costs, n)
    first = frame_cost(config, batch_size, prompt_rows, itemsize)
    found |= _stage(
        "model/start", {name: first[name] for name in ("codebook_head", "sample_codes")}, calls["model/start"]
    )
    # What a frame reads grows with the context by the same step each time.
    middle = prompt_rows + calls["model/frame"] // 2
    found |= _stage("model/frame", frame_cost(config, batch_size, middle, itemsize), calls["model/frame"])
    return found | _codec(tts.vocoder, batch_size, frames, calls)


def _codec(vocoder: Vocoder, batch_size: int, frames: int, calls: Counter[str]) -> dict[Path, Work]:
    """A step of a graph is no range: then it is a call of what it lies in."""
    seen = [stage for stage in CODEC if calls[stage]]
    if not seen:
        return {}
    steps = calls[seen[-1]]
    if vocoder.backend == "reference":  # in windows, clip after clip
        together, width = 1, frames
    else:
        together = batch_size if calls["codec/advance"] else 1
        width = math.ceil((frames + vocoder.decoder.right_context) * batch_size / together / steps)
    costs = step_costs(vocoder.config, together, width, vocoder.dtype.itemsize)
    return {(stage,): _sum(costs, steps) for stage in seen}


def _stage(stage: str, costs: Mapping[str, Cost], calls: int) -> dict[Path, Work]:
    inside = defaultdict[Path, list[Cost]](list)
    for op, cost in costs.items():
        name = op.partition(" ")[0]  # the experts of dense layers are those of a single expert
        outside = () if name in ("frame_embedding", "codebook_head") else ("model/layer",)
        place = (stage, *(("model/sample",) if name == "sample_codes" else outside))
        for path in {(stage,), place, (*place, f"kernel/{name}")}:
            inside[path].append(cost)
    return {path: _sum(costs, calls) for path, costs in inside.items()} if calls else {}


def _sum(costs: list[Cost], calls: int) -> Work:
    return calls * sum(cost.bytes for cost in costs), calls * sum(cost.flops for cost in costs)


def placed(root: Node, work: Mapping[Path, Work]) -> dict[Path, Work]:
    """`work` by the whole paths of a tree."""
    found = {}
    for path, _ in root.walk():
        start = max((i for i, name in enumerate(path) if name in STAGES), default=None)
        if start is not None and path[start:] in work:
            found[path] = work[path[start:]]
    return found


def counts(root: Node) -> Counter[str]:
    """Calls of the ranges of each name."""
    found = Counter[str]()
    for path, node in root.walk():
        found[path[-1]] += node.count
    return found
