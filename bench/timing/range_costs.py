"""What the ranges of a generation must move and compute: the kernels' own costs, by range."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zonos2_triton.bench.specs.frame_cost import frame_cost, prompt_cost
from zonos2_triton.bench.timing.range_times import Node, Path, Work
from zonos2_triton.bench.timing.vocoder import step_costs
from zonos2_triton.kernels._operator import Cost
from zonos2_triton.model.pipeline import Zonos2

# Ranges that a cost is known for, whatever they lie in; each is one forward, draw or decoding.
CODEC = ("codec/decode", "codec/speak", "codec/step")  # the last may lie in either of the others
STAGES = ("model/prefill", "model/start", "model/frame", *CODEC)
OUTSIDE_LAYERS = ("frame_embedding", "head", "sample", "advance")
DRAW = ("sample", "advance")


@dataclass(frozen=True)
class Generation:
    """What was run: equal prompts, all of them together."""

    tts: Zonos2
    streams: int
    frames: int  # of each
    prompt_rows: int  # of each

    def work(self, counts: Mapping[str, int]) -> dict[Path, Work]:
        """Of all calls of a range together, by its path from a stage on. counts: of the stages, as they were seen."""
        backbone, found = self.tts.backbone, dict[Path, Work]()
        config, itemsize = backbone.config, backbone.dtype.itemsize
        calls = {stage: counts.get(stage, 0) for stage in STAGES}
        if n := calls["model/prefill"]:
            together = self.streams / n  # prompts of one call
            parts = dict(prompt_cost(config, round(self.prompt_rows * together), itemsize))
            del parts["head"]  # of the first frame, which comes later
            attention = parts["prefill_attention"]  # counted as if all were one prompt
            parts["prefill_attention"] = Cost(attention.bytes, round(attention.flops / together))
            found |= _stage("model/prefill", parts, n)
        first = frame_cost(config, self.streams, self.prompt_rows, itemsize)
        found |= _stage("model/start", {name: first[name] for name in ("head", *DRAW)}, calls["model/start"])
        # What a frame reads grows with the context by the same step each time.
        middle = self.prompt_rows + calls["model/frame"] // 2
        found |= _stage("model/frame", frame_cost(config, self.streams, middle, itemsize), calls["model/frame"])
        return found | self._codec(calls)

    def _codec(self, calls: Mapping[str, int]) -> dict[Path, Work]:
        """A step of a graph is no range: then it is a call of what it lies in."""
        vocoder = self.tts.vocoder
        config, itemsize = vocoder.config, vocoder.dtype.itemsize
        seen = [stage for stage in CODEC if calls[stage]]
        if not seen:
            return {}
        steps = calls[seen[-1]]
        if vocoder.backend == "reference":  # in windows, clip after clip
            parts = step_costs(config, 1, self.frames, itemsize)
        else:
            together = self.streams if calls["codec/speak"] else 1
            frames = (self.frames + vocoder.decoder.lookahead) * self.streams / together
            parts = step_costs(config, together, math.ceil(frames / steps), itemsize)
        return {(stage,): _sum(parts, steps) for stage in seen}


def placed(root: Node, work: Mapping[Path, Work]) -> dict[Path, Work]:
    """`work` by the whole paths of a tree."""
    found = {}
    for path, _ in root.walk():
        start = max((i for i, name in enumerate(path) if name in STAGES), default=None)
        if start is not None and path[start:] in work:
            found[path] = work[path[start:]]
    return found


def counts(root: Node) -> dict[str, int]:
    """Calls of each stage."""
    found = dict.fromkeys(STAGES, 0)
    for path, node in root.walk():
        if path[-1] in found:
            found[path[-1]] += node.count
    return found


def _stage(stage: str, parts: Mapping[str, Cost], calls: int) -> dict[Path, Work]:
    if not calls:
        return {}
    found: dict[Path, Work] = {(stage,): _sum(parts.values(), calls)}
    for part, cost in parts.items():
        name = part.partition(" ")[0]  # the experts of dense layers are those of a single expert
        inside: Path = ("model/draw",) if name in DRAW else () if name in OUTSIDE_LAYERS else ("model/layer",)
        for path in (inside, (*inside, f"kernel/{name}")):
            if path:
                _add(found, (stage, *path), cost, calls)
    return found


def _sum(costs: Iterable[Cost], calls: int) -> Work:
    each = list(costs)
    return calls * sum(cost.bytes for cost in each), calls * sum(cost.flops for cost in each)


def _add(found: dict[Path, Work], path: Path, cost: Cost, calls: int) -> None:
    moved, flops = found.get(path, (0, 0))
    found[path] = moved + calls * cost.bytes, flops + calls * cost.flops
