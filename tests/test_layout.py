"""The layout: what may import what, how large files are, what editors, type checkers and wheels see."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("kernels", "model", "reference", "bench")
MAY_IMPORT = {
    "reference": {"reference"},
    "kernels": {"kernels", "reference"},  # the latter in one place: see below
    "model": {"model", "reference", "kernels"},
    "bench": {*ROOMS},
}
LIBRARIES = {
    "reference": {"torch", "einops"},
    "kernels": {"torch", "triton"},
    "model": {
        "torch",
        "triton",
        "numpy",
        "nvtx",
        "safetensors",
        "soundfile",
        "tqdm",
        "huggingface_hub",
        "kitten_text_processing",
        "matplotlib",
    },
    "bench": {*["torch", "triton", "numpy", "einops", "pytest", "jinja2", "jsonschema", "matplotlib", "scipy"]}
    | {"flash_attn", "flashinfer", "liger_kernel", "transformers"},  # where they are installed
}
ABOVE = {"_settings", "__version__"}  # of the package itself, for every room
REFERENCE = "zonos2_triton.reference"
FILES = [(room, path) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


OF_INTEGERS = {"torch.arange", "torch.as_tensor", "torch.randint", "torch.randperm"}  # here
MAKERS = ("empty", "full", "hann_window", "linspace", "ones", "rand", "randn", "tensor", "zeros")
OF_FLOATS = {f"torch.{name}" for name in MAKERS}


def named(value):
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else value


@pytest.mark.parametrize("path", [path for room, path in FILES if room != "bench"], ids=named)
def test_whatever_makes_a_tensor_names_its_device_and_dtype(path):
    """Without them the caller's defaults would count."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in OF_INTEGERS | OF_FLOATS:
            wanted = {"device"} if name in OF_INTEGERS else {"device", "dtype"}
            assert wanted <= {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno} {name}"


@pytest.mark.parametrize(("room", "path"), FILES, ids=named)
def test_imports_follow_the_arrows(room, path):
    names = imports(path)
    rooms = {name.split(".")[1] for name in names if name.startswith("zonos2_triton.")} - ABOVE
    libraries = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"zonos2_triton"}
    assert rooms <= MAY_IMPORT[room]
    assert libraries <= LIBRARIES[room]


def test_kernels_know_the_reference_in_one_place_and_load_it_there_alone():
    """The CPU fallback runs the reference; on a GPU it is never imported."""
    kernels = [path for room, path in FILES if room == "kernels"]
    knowing = [path.name for path in kernels if any(name.startswith(REFERENCE) for name in imports(path))]
    assert knowing == ["_operator.py"]
    tree = ast.parse((ROOT / "kernels" / "_operator.py").read_text(encoding="utf-8"))
    top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not any(module.startswith(REFERENCE) for module in top)


def test_the_source_tree_links_to_every_room():
    tree = ROOT / ".src" / "zonos2_triton"
    links = {path.name: path.readlink().as_posix() for path in tree.iterdir() if path.is_symlink()}
    assert links == {room: f"../../{room}" for room in ROOMS}
    assert not [path for _, path in FILES if not path.with_name("__init__.py").is_file()]


def test_the_top_level_is_what_the_readme_maps():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    top = {name.split("/")[0] for name in tracked.stdout.splitlines() if not name.startswith(".")}
    needed = {*ROOMS, "tests", "pyproject.toml", "README.md", "Makefile", "LICENSE"}
    assert needed <= top <= {*needed, "CONTRIBUTING.md", "CHANGELOG.md"}


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for _, path in FILES}
    return {".".join(["zonos2_triton", *names]).removesuffix(".__init__"): path for path, names in parts.items()}


def test_no_file_imports_itself_through_others():
    """Packages are left out: an __init__ gathers what its modules define."""
    known = {name: path for name, path in modules().items() if path.name != "__init__.py"}
    edges = {
        name: {target for full in imports(path) for target in (full, full.rpartition(".")[0]) if target in known}
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, [*way, name])
            done.add(name)

    for name in edges:
        visit(name, [])


def test_no_file_is_longer_than_one_can_read():
    files = [*(path for _, path in FILES), *(ROOT / "tests").rglob("*.py")]
    assert [path for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []


@pytest.mark.needs("jedi")
@pytest.mark.parametrize("path", ["kernels.moe_router.moe_router", "model.pipeline.Zonos2", "bench.catalogue.KERNELS"])
def test_an_editor_jumps_to_the_file_in_its_room(path):
    import jedi

    module, _, name = path.rpartition(".")
    text = f"from zonos2_triton.{module} import {name}\n{name}\n"
    project = jedi.Project(ROOT, added_sys_path=[str(ROOT / ".src")], load_unsafe_extensions=False)
    (found,) = jedi.Script(text, path=ROOT / "example.py", project=project).goto(2, 0, follow_imports=True)
    assert found.module_path.resolve() == ROOT / f"{module.replace('.', '/')}.py"


@pytest.mark.slow
def test_the_type_checker_reads_the_file_in_its_room(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from zonos2_triton.kernels._args import check_batch\ncheck_batch()\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--verbose", str(wrong)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert 'in call to "check_batch"' in run.stdout
    assert ".src/zonos2_triton/kernels/_args.py" in run.stderr  # a link to the room


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_no_relative_link(tmp_path):
    source = tmp_path / "source"  # a build leaves a folder that the next one takes for sources
    for name in (*ROOMS, ".src"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", f"--outdir={tmp_path}", str(source)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (metadata,) = [wheel.read(name).decode() for name in names if name.endswith("/METADATA")]
    every = [file for room in ROOMS for file in (ROOT / room).rglob("*") if file.suffix in {".py", ".json", ".j2"}]
    files = {f"zonos2_triton/{file.relative_to(ROOT)}" for file in every}
    above = {f"zonos2_triton/{path.name}" for path in (ROOT / ".src" / "zonos2_triton").glob("*.py")}
    held = {name for name in names if not name.startswith("zonos2_triton-")}
    assert files | above | {"zonos2_triton/py.typed"} == held
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]+)\)", metadata))


def test_every_direct_dependency_is_locked():
    """The pair of torch and Triton that a file names is the one that it pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "flash-attn"}
    lines = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    wanted = {re.split(r"[\[<>=;]", line)[0].replace("_", "-") for line in lines}
    locks = sorted((ROOT / ".ci").glob("torch-*.txt"))
    assert len(locks) >= 3
    for lock in locks:
        minor = dict(re.findall(r"^([\w.-]+)==(\w+(?:\.\w+)?)", lock.read_text(encoding="utf-8"), flags=re.MULTILINE))
        assert wanted - {"zonos2-triton"} <= minor.keys()
        assert lock.stem == f"torch-{minor['torch']}-triton-{minor['triton']}"
