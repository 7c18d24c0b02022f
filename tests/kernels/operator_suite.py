"""The tests that every operator passes: `tests/kernels/test_<operator>.py` subclasses `OperatorTests`.

A subclass states what only its operator knows: costs, accuracy, wrong arguments. The suite takes workloads from the
catalogue. Kernels run in Triton's interpreter, under the checks of `bench.proof`. The programs of a launch run shuffled
and in reverse. Memory that was not written is NaN. A write beside an allocation fails.

The fast set verifies every workload in fp32 and one in bf16, and runs the invariants on one; the rest is slow.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.library import CustomOpDef
from triton.runtime import interpreter

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof import bounds
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.invariants import INVARIANTS, exact, rounded_once, same_bits, variants
from zonos2_triton.bench.proof.mutation import case_of, small
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.bench.proof.units import ROWS
from zonos2_triton.bench.proof.verify import Case
from zonos2_triton.bench.specs.inputs import Sizes
from zonos2_triton.bench.specs.spec import Workload
from zonos2_triton.kernels import _operator

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

interpreted = pytest.mark.interpreter
EXACT: Sequence[Sizes] = [{}]


class Wrong(NamedTuple):
    """Arguments that an operator refuses, and what it says of them."""

    message: str  # a pattern
    changes: Mapping[str, Any]  # by argument: another value, or a function of the old one
    workload: str | None  # None: the one with every argument
    dtype: torch.dtype
    sizes: Sizes  # of the workload, but for these
    launch_only: bool  # a limit of the launch, which the reference does not have


def wrong(
    message: str,
    workload: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    sizes: Sizes | None = None,
    launch_only: bool = False,
    **changes: Any,
) -> Wrong:
    return Wrong(message, changes, workload, dtype, sizes or {}, launch_only)


def odd_width(axis: str, width: int) -> tuple[Wrong, Wrong]:
    """Rows of so many elements do not begin at multiples of 16 bytes: in fp32, and where fp32 is fine, in bf16."""
    even = width + (4 - width % 4)
    return (
        wrong(f"{axis} must be a multiple of 4 for torch.float32, got {width}", sizes={axis: width}),
        wrong(f"{axis} must be a multiple of 8 for torch.bf.*, got {even}", dtype=torch.bfloat16, sizes={axis: even}),
    )


# What a product's norm must come with.
NORM_WRONG = (
    *(wrong("x_scaled and sum_sq must be given together", **{name: None}) for name in ("x_scaled", "sum_sq")),
    wrong("x_scaled and sum_sq must come with norm_weight, got None", norm_weight=None),
    wrong(r"sum_sq must have shape \[M=\d+, D/16=3\], got \[\d+, 2\]", sum_sq=lambda s: s[:, :2].clone()),
)


def at(index: Any, value: float) -> Callable[[Tensor], Tensor]:
    """A copy with one element changed."""

    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[index] = value
        return changed

    return change


def run(case: Case, order: Any = None, **more: Any) -> dict[str, Tensor]:
    """Outputs of the kernel in the checked interpreter. more: further arguments."""
    with checked(order=order) as checks, poisoned():
        outputs = case.run(**more)
    assert checks.launches
    return outputs


def assert_same_bits(ours: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    assert ours.keys() == others.keys()
    for name in ours:
        assert same_bits(ours[name], others[name]), f"{name} has other bits"


@cache
def inputs_of(name: str, workload: str = "tiny", dtype: torch.dtype = torch.float32, **sizes: Any) -> dict[str, Any]:
    """Read only."""
    kernel = KERNELS[name]
    found = next(entry for entry in kernel.workloads if entry.name == workload)
    return kernel.make_inputs("cpu", dtype, **{**found.sizes, **sizes})


class OperatorTests:
    name: str
    costs: Mapping[str, tuple[int, int]]  # by workload in bf16 at the 8B model's sizes: bytes, FLOPs, counted by hand
    # Samples so large that luck has no part in their error: the 8B model's sizes, divided until the interpreter takes
    # about a second. Or EXACT: every result equals the oracle's, which the test holds to.
    accuracy: Sequence[Sizes]
    forms: Sequence[str] = ()  # workloads that leave arguments out
    fullest = "tiny"  # the small workload with every argument
    wrong: Sequence[Wrong] = ()
    slow_workloads: Collection[str] = ()  # seconds each

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        test, asked = metafunc.function.__name__, {*metafunc.fixturenames}
        if "workload" in asked:
            metafunc.parametrize(("workload", "dtype"), [*self._cases(test)])
        if "form" in asked:
            slow = [pytest.param(form, marks=pytest.mark.slow) for form in self.forms]
            metafunc.parametrize("form", ["tiny", *slow])
        if "sample" in asked:
            assert self.accuracy, f"{self.name}: accuracy needs samples, or is EXACT"
            metafunc.parametrize("sample", self.accuracy, ids=["-".join(sample) for sample in self.accuracy])
        if "argument" in asked:
            inputs = inputs_of(self.name, self.fullest)
            metafunc.parametrize("argument", [name for name, value in inputs.items() if isinstance(value, Tensor)])
        if "case" in asked:
            ids = ["-".join((str(i), *case.changes, *case.sizes)) for i, case in enumerate(self.wrong)]
            metafunc.parametrize("case", self.wrong, ids=ids)

    def _cases(self, test: str) -> Iterator[Any]:
        """Workloads in every dtype, and in fp32 the first of them with inputs that show what ordinary ones hide."""
        kernel = KERNELS[self.name]
        names = [workload.name for workload in small(kernel)]
        exotic = [f"tiny+{variant}" for variant, _ in variants(kernel)] if test == "test_matches_reference" else []
        for workload, dtype in [(name, dtype) for name in (*names, *exotic) for dtype in DTYPES]:
            single = dtype == "float32"
            if workload in exotic and not single:
                continue
            fast = workload not in self.slow_workloads and (single or (workload, dtype) == ("tiny", "bfloat16"))
            fast &= test == "test_matches_reference" or (workload, dtype) == ("tiny", "float32")
            yield pytest.param(workload, dtype, marks=[] if fast else [pytest.mark.slow])

    def case(self, workload: str, dtype: str = "float32") -> Case:
        """Read only. workload: a name, with "+" and a variant's where it has one."""
        name, _, variant = workload.partition("+")
        found = next(entry for entry in small(KERNELS[self.name]) if entry.name == name)
        return case_of(KERNELS[self.name], found, DTYPES[dtype], variant)

    # Results

    @interpreted
    def test_matches_reference(self, workload: str, dtype: str) -> None:
        """As exact as plain PyTorch, as `bench.proof.verify` says; results that are only rounded are the nearest."""
        case = self.case(workload, dtype)
        exact(case)
        rounded_once(case)

    @interpreted
    def test_invariants(self, workload: str, dtype: str) -> None:
        """The invariants of `bench.proof`; and results do not depend on the memory that they are written to."""
        case = self.case(workload, dtype)
        for invariant in INVARIANTS.values():
            invariant(case, None)
        assert_same_bits(run(case), case.run())

    @pytest.mark.slow
    @interpreted
    @pytest.mark.parametrize("precision", DTYPES)
    def test_accuracy(self, precision: str, sample: Sizes) -> None:
        if self.accuracy is EXACT:
            case = self.case("tiny", precision)
            outputs = run(case)
            assert outputs
            assert_same_bits(outputs, {name: x.to(outputs[name].dtype) for name, x in case.oracle.items()})
            return
        case = Case(KERNELS[self.name], Workload("sample", sample), dtype=DTYPES[precision])
        errors = case.compare(case.run()).errors
        assert any(error.torch_rms for error in errors), "plain PyTorch is exact: the operator's accuracy is EXACT"
        for error in errors:
            assert error.ratio <= bounds.sample_ratio(self.name), f"{error.output}: against plain PyTorch's error"

    # PyTorch's view

    @interpreted
    def test_opcheck(self, form: str) -> None:
        """Schema, what it says of changed arguments, fake results with static and symbolic sizes."""
        torch.library.opcheck(KERNELS[self.name].op, (), self.case(form).inputs)

    @interpreted
    def test_meta_results_look_like_real_ones(self, form: str) -> None:
        for dtype in DTYPES:
            case = self.case(form, dtype)
            meta = {name: x.to("meta") if isinstance(x, Tensor) else x for name, x in case.inputs.items()}
            fake = case.kernel.op(**meta)
            fake = fake if isinstance(fake, tuple) else (fake,) if fake is not None else ()
            real = [x for name, x in case.run().items() if name not in case.kernel.mutates]
            assert [(x.shape, x.dtype, x.stride()) for x in fake] == [(x.shape, x.dtype, x.stride()) for x in real]

    def test_cpu_fallback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a CPU without the interpreter, an operator is its reference, in memory of its own."""
        monkeypatch.setattr(_operator, "interpreted", lambda: False)
        single = [(entry.name, "float32") for entry in small(KERNELS[self.name])]
        for workload, dtype in [*single, ("tiny", "bfloat16"), ("tiny", "float16")]:
            case = self.case(workload, dtype)
            outputs = case.run()
            assert_same_bits(outputs, case.torch_outputs)
            assert all(x.is_contiguous() for x in outputs.values())
        torch.library.opcheck(KERNELS[self.name].op, (), self.case("tiny").inputs)

    # Wrong arguments: an error that names operator and argument, before anything is launched

    @pytest.fixture
    def refuses(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """refuses(error, message, inputs): on chip, and where the reference runs instead."""

        def launched(self: Any, *args: Any, **kwargs: Any) -> None:
            pytest.fail(f"{self.fn.__name__} was launched")

        def refusing(error: type[Exception], message: str, inputs: Any, launch_only: bool = False) -> None:
            for interprets in (True,) if launch_only else (True, False):
                monkeypatch.setattr(_operator, "interpreted", lambda interprets=interprets: interprets)
                with pytest.raises(error, match=f"^{self.name}: {message}") as raised:
                    KERNELS[self.name].op(**inputs)
                assert {*re.findall(r"(\w+)=True", str(raised.value))} <= {*inputs}, "advice that cannot be followed"

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", launched)
        return refusing

    @interpreted
    def test_a_launch_would_be_noticed(self, refuses: Callable[..., None]) -> None:
        with pytest.raises(pytest.fail.Exception, match="_kernel was launched"):
            KERNELS[self.name].op(**inputs_of(self.name, self.fullest))

    @interpreted
    def test_refuses_a_wrong_tensor(self, argument: str, refuses: Callable[..., None]) -> None:
        """Another shape, empty, another dtype, with gaps, transposed, at an odd address, on another device."""
        inputs = inputs_of(self.name, self.fullest)
        tensor = inputs[argument]
        shape, strides = (f"{argument} must {what} " for what in (r"have shape \[.*\],", "be contiguous,"))
        refused = [(shape, tensor[None]), (shape, tensor.flatten()[0]), ("", tensor[:0])]
        refused += [(strides, torch.stack([tensor, tensor], -1)[..., 0])]
        if tensor.ndim > 1 and not (transposed := tensor.mT.contiguous().mT).is_contiguous():
            refused.append((strides, transposed))
        if tensor.is_floating_point():
            address = f"{argument} must start at a multiple of 16 bytes, got an address that is 4 beyond one; clone it"
            refused.append((address, tensor.flatten().repeat(2)[1 : tensor.numel() + 1].view(tensor.shape)))
        for message, value in refused:
            refuses(ValueError, message, {**inputs, argument: value})
        for dtype in (torch.int16, torch.float64) if tensor.is_floating_point() else (torch.float32, torch.int16):
            message = f"{argument} must be torch.*, got {dtype}"
            refuses(TypeError, message, {**inputs, argument: tensor.to(dtype)})
        # The dispatcher takes the fake for the kernel; two real devices would meet the kernel's own check.
        apart, message = {**inputs, argument: tensor.to("meta")}, r"\w+ must be on (cpu|meta) like \w+, got (cpu|meta)"
        refuses(ValueError, message, apart)
        with pytest.raises(ValueError, match=f"^{self.name}: {message}"):
            KERNELS[self.name].op._init_fn(**apart)

    @interpreted
    def test_refuses_mixed_precision(self, refuses: Callable[..., None]) -> None:
        """The first float settles the dtype, so a change to it is seen in the second."""
        inputs = inputs_of(self.name, self.fullest)
        floats = [name for name, x in inputs.items() if isinstance(x, Tensor) and x.is_floating_point()]
        for argument in [one for one in floats if (self.name, one) != ("rotary", "x")]:  # its only one
            message = rf"\w+ must be torch.float32( like \w+)?, got torch.bfloat16|\w+ must be .* like {argument}, got"
            refuses(TypeError, f"({message})", {**inputs, argument: inputs[argument].bfloat16()})

    @interpreted
    def test_refuses_an_empty_batch(self, refuses: Callable[..., None]) -> None:
        inputs = inputs_of(self.name, self.fullest)
        empty = {name: inputs[name][:0] for name in ROWS[self.name] if inputs.get(name) is not None}
        refuses(ValueError, r"\w+ is empty: (M|B|T) must be at least 1, got shape \[0, ", {**inputs, **empty})

    @interpreted
    def test_refuses(self, case: Wrong, refuses: Callable[..., None]) -> None:
        inputs = inputs_of(self.name, case.workload or self.fullest, case.dtype, **case.sizes)
        changed = {name: change(inputs[name]) if callable(change) else change for name, change in case.changes.items()}
        refuses(ValueError, case.message, {**inputs, **changed}, case.launch_only)

    # What the module promises

    def test_docstring(self) -> None:
        text = importlib.import_module(f"zonos2_triton.kernels.{self.name}").__doc__ or ""
        assert ": " in text.splitlines()[0], "the first line is the maths or the effect"
        headed = dict(re.findall(r"^(Shapes|Dtypes|Raises|Reference|Source) +(\S.*)$", text, re.MULTILINE))
        assert [*headed] == ["Shapes", "Dtypes", "Raises", "Reference", "Source"]
        assert pkgutil.resolve_name(headed["Reference"]) is KERNELS[self.name].reference

    def test_signature(self) -> None:
        """A registered operator, named as its file, that takes what its reference takes."""
        kernel = KERNELS[self.name]
        op = getattr(importlib.import_module(f"zonos2_triton.kernels.{self.name}"), self.name)
        assert isinstance(op, CustomOpDef)
        assert op is kernel.op
        schema = getattr(torch.ops.zonos2_triton, self.name).default._schema
        assert schema.name == f"zonos2_triton::{self.name}"
        ours, theirs = schema.arguments, inspect.signature(kernel.reference).parameters
        assert [argument.name for argument in ours if argument.name != "counters"] == [*theirs]
        assert "counters" not in [argument.name for argument in ours[:-1]], "counters come last"
        changed = {argument.name for argument in ours if argument.alias_info and argument.alias_info.is_write}
        assert changed - {"counters"} == {*kernel.mutates}
        for mine, parameter in zip(ours, theirs.values(), strict=False):
            default = mine.default_value if mine.has_default_value() else inspect.Parameter.empty
            assert default == parameter.default

    def test_workloads(self) -> None:
        kernel = KERNELS[self.name]
        names = [workload.name for workload in kernel.workloads]
        assert len({*names}) == len(names)
        assert all(re.fullmatch(r"[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*", name) for name in names)
        assert any(workload.real for workload in kernel.workloads)
        assert "tiny" in {workload.name for workload in kernel.workloads if not workload.real}
        for workload in kernel.workloads:
            assert min(kernel.cost_of(workload, 2)) > 0

    def test_cost(self) -> None:
        real = {workload.name: workload for workload in KERNELS[self.name].workloads if workload.real}
        assert self.costs
        assert {name: KERNELS[self.name].cost_of(real[name], 2) for name in self.costs} == self.costs


class CountingTests(OperatorTests):
    """An operator whose programs wait for one another, by counters that a caller may keep."""

    counted: str  # a workload where they do

    @interpreted
    def test_counters_are_left_at_zero(self) -> None:
        case, counters = self.case(self.counted), torch.zeros(1000, dtype=torch.int32)
        for order in (None, "reversed"):  # the second finds the counters as the first left them
            assert_same_bits(run(case, order, counters=counters), run(case, order))
            assert not counters.any()

    @interpreted
    def test_opcheck_with_counters(self) -> None:
        inputs = {**self.case("tiny").inputs, "counters": torch.zeros(64, dtype=torch.int32)}
        torch.library.opcheck(KERNELS[self.name].op, (), inputs, test_utils=("test_schema", "test_faketensor"))

    @interpreted
    def test_refuses_counters_that_programs_cannot_count_in(self, refuses: Callable[..., None]) -> None:
        for counters, message in (
            (torch.zeros(64), r"must be one axis of int32 on cpu, got \[64\] of torch.float32"),
            (torch.zeros(8, 8, dtype=torch.int32), r"must be one axis of int32 on cpu, got \[8, 8\]"),
            (torch.zeros(128, dtype=torch.int32)[::2], r"must be contiguous, got strides \(2,\)"),
            (torch.zeros(1, dtype=torch.int32), r"must hold at least \d+ numbers, got 1"),
        ):
            inputs = {**inputs_of(self.name, self.fullest), "counters": counters}
            refuses(ValueError, f"counters {message}", inputs, launch_only=self.name == "moe_experts")


def wrong_attention(columns: slice) -> tuple[Wrong, ...]:
    """Arguments that both attentions refuse. columns: 128 of the 132 of qkvg."""
    heads = r"qkvg must have \(HQ \+ 2 \* HKV\) \* DH"
    columns_of = f"{heads} columns without qk_temperature and cos_sin_cache, HQ a multiple of .* HKV=2 heads of DH=16"
    first = {n: lambda x, n=n: x[:, :n].clone() for n in (127, 112, 64, 16)}
    both = "qk_temperature and cos_sin_cache must be given together, or neither"
    return (
        wrong(rf"{heads} \+ HQ = 132 columns, got 128", qkvg=lambda x: x[:, columns].clone()),
        *(wrong(f"{columns_of}, got {n}", "no-preamble", qkvg=change) for n, change in first.items()),
        *(wrong(both, **{name: None}) for name in ("qk_temperature", "cos_sin_cache")),
    )


class PagedTests(OperatorTests):
    """An attention with a paged cache."""

    @interpreted
    def test_a_page_table_of_positions_is_one_of_pages(self) -> None:
        """Engines number positions where this project numbers pages; without qk_temperature and cos_sin_cache too."""
        for workload, dtype in product(("tiny", "no-preamble"), DTYPES):
            case = self.case(workload, dtype)
            pages, size = case.inputs["block_table"], case.inputs["k_cache"].shape[1]
            single = {name: case.inputs[name].flatten(0, 1)[:, None] for name in case.kernel.mutates}
            single["block_table"] = (pages[..., None] * size + torch.arange(size, dtype=torch.int32)).flatten(1)
            want, got = run(case), run(case, **single)
            got |= {name: got[name].view(want[name].shape) for name in case.kernel.mutates}
            assert_same_bits(want, got)
