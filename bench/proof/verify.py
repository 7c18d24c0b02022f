"""Accuracy of an operator: its error against the fp64 reference, compared with plain PyTorch's error.

`verify(kernel, workload)` is the gate: tests run it on small workloads, a GPU on the real ones, benches before timing.

oracle  the reference on the same inputs in fp64
torch   the reference as it is, at the inputs' precision
ratio   RMS(result - oracle) / RMS(torch - oracle)

Results and changed arguments are compared. `bounds` says how far off they may be. Where plain PyTorch is exact, as in
copies, the result must be exact. Values that the oracle leaves alone must keep their bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.bench.proof.bounds import RATIO, SPREAD, floor
from zonos2_triton.bench.specs.spec import Kernel, Workload
from zonos2_triton.reference.moe_router import by_expert
from zonos2_triton.reference.numeric import exact_numerics

Tensors = dict[str, Tensor]


class Mismatch(AssertionError):
    """A result is not what the reference says."""


@dataclass(frozen=True)
class Error:
    """How far one output is from the oracle."""

    output: str
    rms: float
    torch_rms: float  # the same of plain PyTorch
    limit: float  # that rms may reach

    @property
    def ratio(self) -> float:
        return _over(self.rms, self.torch_rms)

    @property
    def bound(self) -> float:
        """The largest `ratio` that passes: above RATIO where the floor allows it; 0 where plain PyTorch is exact."""
        return _over(self.limit, self.torch_rms)


@dataclass(frozen=True)
class Report:
    """A passed verification."""

    kernel: str
    workload: str
    errors: tuple[Error, ...]

    @property
    def worst(self) -> Error:
        """The output that is nearest to its bound."""
        exact = Error("all", 0.0, 0.0, 0.0)
        return max(self.errors, key=lambda error: _over(error.rms, error.limit), default=exact)

    @property
    def ratio(self) -> float:
        """The ratio of the worst output."""
        return self.worst.ratio


class Case:
    """The inputs of one workload, and the reference's results on them. Several operators may be run on it in turn."""

    def __init__(
        self, kernel: Kernel, workload: Workload, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> None:
        self.kernel, self.workload, self.device, self.dtype = kernel, workload, device, dtype
        self.inputs = kernel.make_inputs(device, dtype, seed=seed, **workload.sizes)
        with exact_numerics():
            self.oracle = self._run(kernel.reference, _upcast(self.inputs))
            self.torch_outputs = self._run(kernel.reference, self.inputs)

    def run(self, op: Callable[..., Any] | None = None, **more: Any) -> Tensors:
        """Outputs of `op` by name: its results, then copies of the arguments it changed. more: further arguments."""
        return self._run(op or self.kernel.op, {**self.inputs, **more})

    def compare(self, outputs: Mapping[str, Tensor], ratio: float = RATIO, spread: float = SPREAD) -> Report:
        """Raises Mismatch, naming output, place, both values, ratio and bound. ratio and spread: other bounds."""
        if outputs.keys() != self.torch_outputs.keys():
            raise Mismatch(f"{self.name}: returned {[*outputs]}, not {[*self.torch_outputs]}")
        for name, want in self.torch_outputs.items():
            self._check_kind(name, outputs[name], want)
        # The router's weights are copies of its probabilities, of its own choice: `_check_routing`.
        floats = {name: out for name, out in outputs.items() if out.is_floating_point() and name != "expert_weights"}
        floats = {name: out for name, out in floats.items() if out.numel()}  # empty: of a norm that does not follow
        errors = [self._error(name, out, ratio, spread) for name, out in floats.items()]
        if self.kernel.name == "moe_router":
            self._check_routing(outputs)
        else:
            for name in [name for name, out in outputs.items() if not out.is_floating_point()]:
                self._check_equal(name, outputs[name], self.oracle[name])
        return Report(self.kernel.name, self.workload.name, tuple(errors))

    @property
    def name(self) -> str:
        return f"{self.kernel.name} {self.workload.name} {str(self.dtype).removeprefix('torch.')}"

    def _run(self, op: Callable[..., Any], inputs: Mapping[str, Any]) -> Tensors:
        changed = {name: inputs[name].clone() for name in self.kernel.mutates if inputs[name] is not None}
        results = op(**{**inputs, **changed})
        results = (results,) if isinstance(results, Tensor) else results or ()  # some only change their arguments
        # The reference of the router names its results; an operator's are a bare tuple in the same order.
        names = _NAMES.get(self.kernel.name, ["result"][: len(results)])
        return {**dict(zip(names, results, strict=True)), **changed}

    def _check_kind(self, name: str, out: Any, wanted: Tensor) -> None:
        if not isinstance(out, Tensor):
            raise Mismatch(f"{self.name}: {name} is no tensor but {type(out).__name__}")
        for what in ("shape", "dtype", "device"):
            got, want = getattr(out, what), getattr(wanted, what)
            if got != want:
                raise Mismatch(f"{self.name}: {name} has {what} {got}, the reference's has {want}")

    def _error(self, name: str, out: Tensor, most: float, spread: float) -> Error:
        oracle, wanted = self.oracle[name], self.torch_outputs[name]
        some = torch.ones_like(oracle, dtype=torch.bool)
        if name in self.kernel.mutates:
            before = self.inputs[name]
            kept = oracle == before.double()
            self._check_equal(f"{name} (must keep what it was)", torch.where(kept, out, before), before)
            some = ~kept
        off, torch_off = (out.double() - oracle).abs(), (wanted.double() - oracle).abs()
        torch_rms, least = _rms(torch_off[some]), floor(self.dtype, name) * torch.finfo(self.dtype).eps
        exact = torch_rms == 0
        limit = 0.0 if exact else max(most * torch_rms, least * _rms(oracle[some]))
        furthest = 0.0 if exact else spread * max(float(torch_off.max()), least * float(oracle.abs().max()))
        error = Error(name, _rms(off[some]), torch_rms, limit)
        if not off.max() <= furthest:  # so that NaN fails
            wrong = ~(off <= furthest)
            message = f"{int(wrong.sum())} of {out.numel()} elements are more than {furthest:.3g} off"
            raise Mismatch(self._message(error, out, oracle, wrong, message))
        if not error.rms <= limit:
            wrong = off == off.max()
            message = f"RMS error {error.rms:.3g}, bound {limit:.3g}; the furthest element is"
            raise Mismatch(self._message(error, out, oracle, wrong, message))
        return error

    def _message(self, error: Error, out: Tensor, oracle: Tensor, wrong: Tensor, what: str) -> str:
        where = tuple(wrong.nonzero()[0].tolist())
        return (
            f"{self.name}: {error.output}: {what}, first at {where}: {float(out[where])!r}, oracle "
            f"{float(oracle[where])!r}; ratio to plain PyTorch {error.ratio:.3g}, bound {error.bound:.3g}"
        )

    def _check_equal(self, name: str, out: Tensor, want: Tensor) -> None:
        if not torch.equal(out, want):
            wrong = out != want
            where = tuple(wrong.nonzero()[0].tolist())
            raise Mismatch(
                f"{self.name}: {name}: {int(wrong.sum())} of {out.numel()} elements differ, first at {where}: "
                f"{out[where].item()}, wanted {want[where].item()}; these are exact"
            )

    def _check_routing(self, outputs: Mapping[str, Tensor]) -> None:
        """Choice, weights and order follow exactly from the probabilities returned, which were compared already.

        So the chosen experts are the oracle's wherever its scores are further apart than two probabilities may be off.
        """
        probs, k = outputs["probs"], self.inputs["k"]
        scores = probs + self.inputs["balancing_biases"].float()
        ids = torch.sort(scores, descending=True, stable=True).indices[:, :k]
        self._check_equal("expert_ids", outputs["expert_ids"], ids.int())
        self._check_equal("expert_weights", outputs["expert_weights"], probs.gather(1, ids))
        by_id = by_expert(ids, len(self.inputs["w3"]), self.inputs["positions"])
        for name, want in zip(("sorted_slot_ids", "expert_offsets"), by_id, strict=True):
            self._check_equal(name, outputs[name], want)


def verify(
    kernel: Kernel,
    workload: Workload,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    op: Callable[..., Any] | None = None,
    seed: int = 0,
) -> Report:
    """Run `op`, by default the kernel's own, on this workload. Mismatch: it is less exact than plain PyTorch."""
    case = Case(kernel, workload, device, dtype, seed)
    return case.compare(case.run(op))


_NAMES = {
    "add_rms_norm": ["sum", "normed"],
    **{name: ["result", "x_scaled", "sum_sq"] for name in ("frame_embedding", "output_projection", "moe_experts")},
    "sample_codes": ["codes", "nonfinite"],
    "moe_router": ["expert_ids", "expert_weights", "probs", "router_state", "sorted_slot_ids", "expert_offsets"],
    "conv1d_tanh": ["samples"],
}


def _upcast(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in inputs.items()}


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _over(part: float, whole: float) -> float:
    return 0.0 if part == 0 else part / whole if whole else float("inf")
