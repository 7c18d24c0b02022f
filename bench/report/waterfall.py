"""Where the time of a frame goes: by stage, the time of its kernel by itself, times its launches in a frame."""

from typing import NamedTuple

from zonos2_triton.bench.specs.frame_cost import frame_cost
from zonos2_triton.bench.suite.device_checks import whole_model
from zonos2_triton.bench.suite.results import Result, passed, roof
from zonos2_triton.reference.config import Zonos2Config


class Stage(NamedTuple):
    """One operation, over all layers."""

    name: str
    launches: int
    microseconds: float
    floor_us: float | None


class Waterfall(NamedTuple):
    """A measured frame and its stages. The stages' own times may come to more than the frame: rest is negative then."""

    streams: int
    context: int
    stages: tuple[Stage, ...]
    frame_us: float
    floor_us: float | None

    @property
    def rest_us(self) -> float:
        return self.frame_us - sum(stage.microseconds for stage in self.stages)


def waterfall(result: Result, streams: int) -> Waterfall | None:
    """Of the 8B model. None: the frame, or the kernel of a stage, was not timed for so many streams."""
    config = whole_model()
    frame = passed(result, "frames", f"B{streams}")
    if frame is None:
        return None
    costs, card, stages = frame_cost(config, streams, frame["context"]), roof(result), []
    for name, timed in launches(config, streams).items():
        found = [(count, passed(result, "timings", key)) for key, count in timed]
        times = [count * each["median_us"] for count, each in found if each is not None]
        if len(times) < len(found):
            return None
        floor = card.floor_us(costs[name].bytes, costs[name].flops)
        stages.append(Stage(name, sum(count for count, _ in found), sum(times), floor))
    return Waterfall(streams, frame["context"], tuple(stages), frame["median_us"], frame["floor_us"])


def launches(config: Zonos2Config, streams: int) -> dict[str, list[tuple[str, int]]]:
    """By stage, as `frame_cost` names them: the timings that stand for it, and how often a frame launches each."""
    mixtures = [config.experts_per_token(layer) for layer in config.moe_layers]
    at = f"decode-B{streams}"
    two = "decode-top2" if streams == 1 else f"{at}-top2"
    each = {"qkv_projection": config.n_layers, "decode_attention": config.n_layers,
            "output_projection": config.n_layers, "router": len(mixtures)}  # fmt: skip
    return {
        "frame_embedding": [(f"frame_embedding/{at}", 1)],
        **{name: [(f"{name}/{at}", count)] for name, count in each.items()},
        "experts": [(f"experts/{at}", mixtures.count(1)), (f"experts/{two}", len(mixtures) - mixtures.count(1))],
        "experts (dense)": [(f"experts/dense-B{streams}", config.n_layers - len(mixtures))],
        **{name: [(f"{name}/{at}", 1)] for name in ("head", "sample", "advance")},
    }
