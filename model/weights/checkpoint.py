"""Tensors from untrusted files: checked as a whole before use, and never executed."""

import json
import pickle
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zonos2_triton._settings import local_path

SAFETENSORS_INDEX = ".safetensors.index.json"
ENDINGS = (".safetensors", SAFETENSORS_INDEX, ".pth", ".pt")
SHARD = re.compile(r"-\d+-of-\d+\.")  # in a file's name
NAMED = 8  # of a long list, in an error
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Checkpoint:
    """A file of named tensors, opened but not read: `shapes`, `dtypes`, and text `metadata`.

    `tensors(names)` maps the file into memory. Do not change the file while the tensors live.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_path(path)
        self.shapes: dict[str, list[int]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.metadata: dict[str, str] = {}
        self._files: dict[str, tuple[Path, str]] = {}  # name: (file, name in that file)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not a file")
        if self.path.name.endswith(SAFETENSORS_INDEX):
            places = _weight_map(self.path)
            for name in sorted({*places.values()}):
                self._list_safetensors(self.path.parent / name, places)
        elif self.path.suffix == ".safetensors":
            self._list_safetensors(self.path)
        elif self.path.suffix in (".pth", ".pt"):
            self._list_pickle(self.path)
        else:
            raise ValueError(f"{self.path}: a checkpoint must end in .safetensors, {SAFETENSORS_INDEX}, .pth or .pt")

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self.shapes)} tensors)"

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Views of the mapped files, on the CPU, as stored."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._files[name][0], []).append(name)
        found: dict[str, Tensor] = {}
        for file, wanted in by_file.items():
            if file.suffix == ".safetensors":
                with torch.device("cpu"), _open_safetensors(file) as handle:  # safetensors 0.5 takes the default device
                    found |= {name: handle.get_tensor(self._files[name][1]) for name in wanted}
            else:
                state, _ = _load_pickle(file)
                found |= {name: state[self._files[name][1]] for name in wanted}
        return found

    def _add(self, name: str, file: Path, shape: list[int], dtype: torch.dtype) -> None:
        official = name.replace(".parametrizations.", ".").removesuffix(".original")
        if official.endswith((".router.ent_denom", ".router.normalized_entropy")):
            return  # training statistics
        if official in self._files:
            raise ValueError(f"{self.path} holds {official} twice")
        self._files[official] = file, name
        self.shapes[official], self.dtypes[official] = shape, dtype

    def _list_safetensors(self, file: Path, places: Mapping[str, str] | None = None) -> None:
        """places: {name of a tensor: its file}, of an index."""
        with _open_safetensors(file) as handle:
            self.metadata |= handle.metadata() or {}
            for name in handle.keys():  # noqa: SIM118  a handle is no mapping
                if places is not None and places.get(name, file.name) != file.name:
                    continue  # a copy
                view = handle.get_slice(name)
                self._add(name, file, view.get_shape(), _SAFETENSORS_DTYPES.get(view.get_dtype(), torch.uint8))

    def _list_pickle(self, file: Path) -> None:
        state, self.metadata = _load_pickle(file)
        for name, tensor in state.items():
            self._add(name, file, list(tensor.shape), tensor.dtype)


_SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def _open_safetensors(file: Path):  # type: ignore[no-untyped-def]  # the library names no type
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file")
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is truncated, corrupt or no safetensors file: {error}") from error


def _weight_map(index: Path) -> dict[str, str]:
    """{name of a tensor: name of its file}."""
    try:
        places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"].items())
        outside = sorted(name for name in {*places.values()} if Path(name).name != name)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of safetensors files: {error!r}") from error
    if outside:
        raise ValueError(f"{index} names files outside of its folder: {', '.join(outside)}")
    return places


def _load_pickle(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Mapped tensors of a file of torch.save, and the entries of its 'metadata' as text or JSON."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
            raise ValueError(
                f"{file} is refused: it holds {found[1]}, whose code would run when it is loaded; a checkpoint must "
                "hold tensors only, best as safetensors"
            ) from error
        reason = next(iter(str(error).splitlines()), repr(error))
        raise ValueError(f"{file} is truncated, corrupt or no file of torch.save: {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file} must hold a dictionary of tensors, got {type(state).__name__}")
    metadata = state.get("metadata")
    for key in ("model", "state_dict"):  # the official backbone, the official codec
        if isinstance(state.get(key), Mapping):
            state = dict(state[key])
            break
    named = {name for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if others := [str(name) for name in state if name not in named]:
        raise ValueError(f"{file} must hold tensors by name only; these entries are none: {_first(others, ', ')}")
    pairs = metadata.items() if isinstance(metadata, Mapping) else ()
    texts = {str(key): value if isinstance(value, str) else json.dumps(value, default=str) for key, value in pairs}
    return state, texts


def _first(names: Sequence[str], joint: str) -> str:
    """The first names and the number of the others."""
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return joint.join([*names[:NAMED], *more])


def check_layout(source: object, shapes: Mapping[str, list[int]], layout: Mapping[str, list[int]]) -> None:
    """ValueError: tensors are missing, surplus or misshapen. It counts all and names the first of each kind."""
    prefix = _wrapper(shapes, layout)
    missing = [f"{name} {layout[name]}" for name in layout if name not in shapes and prefix + name not in shapes]
    surplus = [f"{name} {list(shapes[name])}" for name in shapes if name.removeprefix(prefix) not in layout]
    common = [(name, list(shape), layout[name]) for name, shape in shapes.items() if name in layout]
    wrong = [f"{name} is {shape}, expected {wanted}" for name, shape, wanted in common if shape != wanted]
    beside = " beside that" if prefix else ""
    kinds = ((f"missing{beside}", missing), (f"surplus{beside}", surplus), ("wrong shape", wrong))
    lines = [f"  {kind} ({len(found)}): {_first(found, '; ')}" for kind, found in kinds if found]
    if prefix:
        stripped = f"{{name.removeprefix({prefix!r}): tensor for name, tensor in tensors.items()}}"
        lines.insert(0, f"  every name begins with {prefix!r}, which a wrapper adds: save them as {stripped}")
    if lines:
        raise ValueError("\n".join([f"the tensors of {source} do not fit the configuration", *lines]))


def _wrapper(names: Collection[str], layout: Collection[str]) -> str:
    """A prefix that a wrapper has added to every name, or ""."""
    first = next(iter(names), "")
    if first in layout:
        return ""
    ends = (first[i + 1 :] for i, letter in enumerate(first) if letter == ".")
    prefix = next((first.removesuffix(end) for end in ends if end in layout), "")
    return prefix if all(name.startswith(prefix) for name in names) else ""


def value_faults(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> list[str]:
    """A line for each tensor that is not a dense float tensor, or holds NaN or Inf, also after a cast to `dtype`."""
    faults = []
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or tensor.layout != torch.strided or tensor.is_meta:
            faults.append(f"{name} must be a dense floating-point tensor, got {tensor.dtype}, {tensor.layout}")
        elif tensor.numel():
            # aminmax returns NaN if there is one, and unlike isfinite() allocates no mask.
            lowest, highest = torch.aminmax(tensor.to(dtype or tensor.dtype))
            if not (lowest.isfinite() and highest.isfinite()):
                faults.append(f"{name} holds NaN or Inf" + (f" as {dtype}" if dtype else ""))
    return faults


def check_values(source: object, tensors: Mapping[str, Tensor]) -> None:
    """ValueError: the faults of `value_faults`."""
    _raise_faults(source, value_faults(tensors))


def _raise_faults(source: object, faults: list[str]) -> None:
    if faults:
        raise ValueError(f"the tensors of {source} cannot be used\n  " + _first(faults, "\n  "))


def load_weights(
    checkpoint: Checkpoint, layout: Mapping[str, list[int]], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of `layout`, checked, as `dtype` on `device`.

    Tensors that need no change stay views of the mapped file. Otherwise they are converted layer by layer, so that the
    peak memory exceeds the result by one layer at most.
    """
    check_layout(checkpoint.path, checkpoint.shapes, layout)
    unchanged = device.type == "cpu" and all(checkpoint.dtypes[name] == dtype for name in layout)
    groups = [[*layout]] if unchanged else [[*names] for _, names in groupby(layout, lambda name: name.split(".")[:2])]
    weights: dict[str, Tensor] = {}
    faults: list[str] = []
    for names in groups:
        tensors = checkpoint.tensors(names)
        faults += value_faults(tensors, dtype)
        if not faults:
            weights |= {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
    _raise_faults(checkpoint.path, faults)
    return weights


def one_file(path: Path, what: str, patterns: Iterable[str], remedy: str = "instead of the folder") -> Path:
    """`path` if it is a file; in a folder, the file that the first matching pattern finds. remedy: for the error.

    ValueError: several files match. FileNotFoundError: none.
    """
    if path.is_file():
        return path
    patterns = list(patterns)
    for pattern in patterns:
        visible = (file for file in path.glob(pattern) if not file.name.startswith("."))  # Finder writes ._*
        found = sorted(file for file in visible if file.is_file())
        names, missing = ", ".join(file.name for file in found), f"*{SAFETENSORS_INDEX}"
        if len(found) > 1 and all(SHARD.search(file.name) for file in found):
            raise ValueError(f"{path} holds {names}: shards, without the index that comes with them, {missing}")
        if len(found) > 1:
            raise ValueError(f"{path} holds several files for {what}: {names}; name one of them {remedy}")
        if found:
            return found[0]
    raise FileNotFoundError(f"{path} holds no {what}; looked for {', '.join(patterns)}")
