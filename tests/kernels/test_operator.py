"""Properties of all operators: registration, the fallback on a CPU, compilers, and rules that span the kernels."""

import ast
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from tests.kernels.operator_suite import EXACT, OperatorTests, inputs_of, interpreted
from zonos2_triton import kernels
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.units import ROWS
from zonos2_triton.bench.proof.verify import Case
from zonos2_triton.kernels import _operator
from zonos2_triton.kernels._operator import cpu_fallback, direct, runs_kernel, zeroed_counters
from zonos2_triton.reference.numeric import SWITCHES

# In a process that does not interpret: every operator is its reference, and says so without a launch.
COMPILING = """
import torch, triton
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import Case
assert not triton.knobs.runtime.interpret
for kernel in KERNELS.values():
    case = Case(kernel, next(workload for workload in kernel.workloads if workload.name == "tiny"))
    for name, result in case.run().items():
        assert torch.equal(result, case.torch_outputs[name]), (kernel.name, name)
    print(kernel.name)
"""
# Looked up beforehand: a compiler need not follow how the catalogue is made.
OPS = {name: kernel.op for name, kernel in KERNELS.items()}
SOME = ["rotary", "add_rms_norm", "conv1d_snake"]
EVERY = pytest.param([*KERNELS], True, marks=[pytest.mark.slow, interpreted])


class Everything(torch.nn.Module):
    def forward(self, inputs):
        return {name: OPS[name](**arguments) for name, arguments in inputs.items()}


def copies(names):
    """Tiny inputs of some operators, which may be changed."""
    return pytree.tree_map_only(torch.Tensor, torch.clone, {name: inputs_of(name) for name in names})


def test_every_operator_is_in_the_catalogue_and_has_a_test_file():
    modules = [info.name for info in pkgutil.iter_modules(kernels.__path__) if not info.name.startswith("_")]
    assert sorted(KERNELS) == modules
    assert all(name == kernel.name for name, kernel in KERNELS.items())
    assert [name for name in modules if not Path(__file__).with_name(f"test_{name}.py").exists()] == []


@interpreted
@pytest.mark.parametrize("name", KERNELS)
def test_none_is_refused_where_a_tensor_is_required(name):
    """The dispatcher lets None pass for any tensor."""
    schema = getattr(torch.ops.zonos2_triton, name).default._schema
    required = [argument.name for argument in schema.arguments if str(argument.type) == "Tensor"]
    assert required
    for argument in required:
        with pytest.raises(TypeError, match=f"^{name}: {argument} must be a tensor, got None"):
            KERNELS[name].op(**{**inputs_of(name), argument: None})


@interpreted
@pytest.mark.parametrize("name", KERNELS)
def test_meta_function_keeps_the_batch_symbolic(name):
    """One graph of torch.compile(dynamic=True) or torch.export serves any number of tokens, slots and sequences."""
    env, inputs = ShapeEnv(), inputs_of(name)
    mode = FakeTensorMode(shape_env=env)

    def fake(key, tensor):
        dynamic = [DimDynamic.STATIC] * tensor.ndim
        if key in (*ROWS[name], "sorted_slot_ids"):  # [M * K]
            dynamic[0] = DimDynamic.DYNAMIC
        context = StatelessSymbolicContext(dynamic_sizes=dynamic)
        return mode.from_tensor(tensor, source=ConstantSource(key), symbolic_context=context)

    fakes = {key: fake(key, x) if isinstance(x, torch.Tensor) else x for key, x in inputs.items()}
    KERNELS[name].op(**fakes)
    batches = {key: fakes[key].shape[0].node.expr for key in ROWS[name] if inputs.get(key) is not None}
    assert batches
    assert [key for key, size in batches.items() if env.replace(size).is_number] == []


@interpreted
def test_no_accuracy_is_taken_for_granted():
    """Neither of an operator that names no samples, nor of one that says its results are exact."""
    asked = SimpleNamespace(function=OperatorTests.test_accuracy, fixturenames=["sample"])
    claims = type("Claims", (OperatorTests,), {"name": "rotary", "accuracy": ()})()
    with pytest.raises(AssertionError, match="accuracy needs samples, or is EXACT"):
        claims.pytest_generate_tests(asked)
    claims.accuracy = EXACT
    with pytest.raises(AssertionError, match="result has other bits"):
        claims.test_accuracy("float32", {})


@pytest.mark.parametrize("path", sorted(Path(kernels.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_a_kernel_file_can_be_read(path):
    """The formatter is on, a jit body has at most 80 lines, and each pointer of a kernel stands with its shape."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert "fmt: " not in text
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    for function in (node for node in functions if any("jit" in ast.unparse(each) for each in node.decorator_list)):
        assert function.end_lineno - function.body[0].lineno < 80, function.name
        pointers = [each for each in function.args.args if each.arg.endswith("_ptr")]
        shapeless = [each.arg for each in pointers if "# [" not in lines[each.lineno - 1]]
        assert not (function.name.endswith("_kernel") and shapeless), (function.name, shapeless)


def test_the_only_atomic_counts():
    """The only atomic is of an integer, in a function that never waits: sums of floats have a fixed order."""
    calls = {
        (path.name, node.func.attr)
        for path in Path(kernels.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "atomic" in node.func.attr
    }
    assert calls == {("_math.py", "atomic_add")}


@pytest.mark.slow
def test_a_process_without_the_interpreter_runs_every_operator():
    """Each file patches the fallback into this process, whose kernels are interpreted; here they are not."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", COMPILING], capture_output=True, text=True, env=environment)
    assert run.stdout.split() == [*KERNELS], run.stderr


@pytest.mark.parametrize(("names", "interprets"), [(SOME, False), EVERY], ids=["cpu-fallback", "interpreter"])
@pytest.mark.parametrize("way", ["compile", "export"])
def test_compilers_take_operators_without_a_break(way, names, interprets, monkeypatch):
    """As one graph, with the same results and the same changes to the caches."""
    monkeypatch.setattr(_operator, "interpreted", lambda: interprets)
    module, inputs, ours = Everything(), copies(names), copies(names)
    want = module(inputs)
    if way == "compile":
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    else:
        compiled = torch.export.export(module, (copies(names),)).module()
    results = pytree.tree_leaves((want, inputs)), pytree.tree_leaves((compiled(ours), ours))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_the_kernel_runs_where_it_can(monkeypatch):
    x = torch.zeros(1)
    for interprets in (True, False):
        monkeypatch.setattr(_operator, "interpreted", lambda interprets=interprets: interprets)
        assert runs_kernel(x) is interprets
    with torch._subclasses.fake_tensor.FakeTensorMode():
        assert runs_kernel(torch.zeros(1))


@interpreted
@pytest.mark.parametrize("name", ["output_projection", "sample_codes"])
def test_an_operator_as_a_plain_function_does_the_same(name):
    kernel = KERNELS[name]
    case = Case(kernel, next(workload for workload in kernel.workloads if workload.name == "tiny"))
    plain, dispatched = case.run(direct(kernel.op)), case.run()
    assert plain.keys() == dispatched.keys()
    assert all(torch.equal(plain[key], dispatched[key]) for key in plain)


@interpreted
def test_a_plain_function_checks_its_arguments_once_for_the_same_weights(monkeypatch):
    checked, check = [], _operator.check
    monkeypatch.setattr(_operator, "check", lambda *arguments: checked.append(arguments[0]) or check(*arguments))
    project, (y, weight) = direct(OPS["output_projection"]), (torch.ones(2, 64), torch.ones(32, 64))
    with pytest.raises(ValueError, match=r"^output_projection: weight must have shape \[D, K=64\], got \[32, 48\]"):
        project(y, torch.ones(32, 48), None)
    for tokens in (y, y[:1], torch.zeros(5, 64)):
        project(tokens, weight, None)
    assert len(checked) == 2
    project(y, weight.clone(), None)
    project(y, weight=weight, residual=None)
    assert len(checked) == 3


def test_results_are_nobody_elses_memory(monkeypatch):
    """As an operator must return them, whatever the reference returns."""
    x, y = torch.arange(6.0).view(2, 3), torch.ones(2)
    monkeypatch.setattr(_operator, "_reference", lambda op: lambda x, y: (x, x.T, y, y, x + 1))
    results = cpu_fallback("any", x, y=y)
    assert [*map(torch.equal, results, (x, x.T, y, y, x + 1))] == [True] * 5
    assert len({tensor.untyped_storage().data_ptr() for tensor in (*results, x, y)}) == 7
    assert all(result.is_contiguous() for result in results)
    monkeypatch.setattr(_operator, "_reference", lambda op: lambda x: x[0])
    assert cpu_fallback("any", x).data_ptr() != x.data_ptr()
    monkeypatch.setattr(_operator, "_reference", lambda op: lambda x: None)
    assert cpu_fallback("any", x) is None


def test_the_reference_runs_in_ieee_fp32_without_gradients_and_without_autocast(monkeypatch):
    seen = []

    def spying(x):
        switches = [getattr(owner, name) for owner, name, _ in SWITCHES]
        seen.append((switches, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return x * 1

    monkeypatch.setattr(_operator, "_reference", lambda op: spying)
    with torch.autocast("cpu", torch.bfloat16):
        cpu_fallback("any", torch.ones(2, requires_grad=True))
    assert seen == [([value for _, _, value in SWITCHES], False, False)]


def test_counters_on_another_device():
    with pytest.raises(ValueError, match=r"^moe_router: counters must be one axis of int32 on cpu, got .* on meta"):
        zeroed_counters(torch.empty(3), 2, torch.zeros(4, dtype=torch.int32, device="meta"), "moe_router")
