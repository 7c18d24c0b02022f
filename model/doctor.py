"""A report on this installation: packages, devices, backends. It also works with missing or broken packages."""

import json
import os
import platform
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

from zonos2_triton import __version__, _settings
from zonos2_triton._settings import BACKENDS
from zonos2_triton.model import threads
from zonos2_triton.model.tables import fitted, text_table

REQUIRED = ("torch", "triton", "numpy", "einops", "nvtx", "safetensors", "soundfile", "tqdm")
EXTRAS = (
    "huggingface_hub",
    "matplotlib",
    "kitten-text-processing",
    "flash-attn",
    "pytest-benchmark",
    "jinja2",
    "jsonschema",
    "scipy",
)


def diagnose() -> dict[str, Any]:
    """Versions, devices and the backend of each device. It only asks a GPU for its properties."""
    faults = {"torch": _import_fault("torch")}
    # Triton is imported after `_usable`, because the first import decides whether it interprets.
    cpu: dict[str, Any] = {"device": "cpu", "name": platform.processor() or platform.machine()}
    if faults["torch"]:
        nothing = "nothing, for torch cannot be imported"
        devices, backends = [cpu | {"runs": nothing}], dict.fromkeys(BACKENDS, nothing)
    else:
        devices, backends = _devices(cpu), {name: _usable(name) for name in BACKENDS}
    faults |= {name: _import_fault(name) for name in REQUIRED if name != "torch"}
    packages = {name: None if faults[name] else _version(name) or "of unknown version" for name in REQUIRED}
    variables = {name: {"value": v, "fault": fault} for name, (v, fault) in _settings.present().items()}
    if backends["triton"].startswith(_settings.LAUNCH_CONFIG):
        variables[_settings.LAUNCH_CONFIG]["fault"] = backends["triton"]
    return {
        "zonos2-triton": __version__,
        "op_schemas": json.loads((files("zonos2_triton") / "kernels" / "schemas.json").read_text("utf-8"))["version"],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "extras": {name: _version(name) for name in EXTRAS},
        "devices": devices,
        "threads": threads.diagnosis(devices[0]["threads"]) if "threads" in devices[0] else None,
        "backends": backends,
        "drop_in": _integrations(),
        "variables": variables,
        "triton_interpreter": os.environ.get("TRITON_INTERPRET") == "1",
        "missing": [name for name, found in packages.items() if found is None],
        "faults": {name: fault for name, fault in faults.items() if fault},
    }


def _import_fault(name: str) -> str | None:
    """Why a package cannot be imported, or None."""
    try:
        import_module(name)
    except Exception as error:  # a broken one may raise anything
        return " ".join(str(error).split())[:300] or repr(error)
    return None


def _devices(cpu: dict[str, Any]) -> list[dict[str, Any]]:
    import torch

    devices = [cpu | {"threads": torch.get_num_threads()}]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(i)
        sm = f"sm_{card.major}{card.minor}"
        memory = round(card.total_memory / 2**30, 1)
        devices.append({"device": f"cuda:{i}", "name": card.name, "arch": sm, "memory_gib": memory})
    for device in devices:
        device["runs"] = _resolved("auto", device["device"])
    return devices


def as_text(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"zonos2-triton {report['zonos2-triton']}, Python {report['python']}, {report['platform']}"]
    lines.append(f"schemas of torch.ops.zonos2_triton {report['op_schemas']}")

    def add(title: str, rows: Iterable[tuple[str, str]], least: int = 17) -> None:
        lines.append(title)
        if listed := [*rows]:
            lines.append(text_table(listed, heads=False, indent=2, least=[least]))

    packages = report["packages"].items()
    add("packages", ((name, found or f"MISSING: {report['faults'][name]}") for name, found in packages))
    extras, hint = report["extras"].items(), "not installed: pip install "
    pip = {"flash-attn": "--no-build-isolation flash-attn"}  # its build needs torch
    add("extras", ((name, found or hint + pip.get(name, name)) for name, found in extras))
    devices = []
    for device in report["devices"]:
        details = ", ".join(f"{key} {device[key]}" for key in device if key not in ("device", "runs"))
        devices.append((device["device"], f"runs: {device['runs']} ({details})"))
    add("devices", devices)
    if told := report["threads"]:
        lines.append(f"threads of say on a CPU: {told['default']}, small models {told['small_model']}: {told['why']}")
        lines.append(f"  between operations they wait {told['waiting']}")
    add("backends", report["backends"].items())
    integrations = report["drop_in"].items()
    row = "{}; known: {from} to below {below}"
    title = "drop-in" if integrations else "drop-in: not known without the packages that are missing"
    add(title, ((name, row.format(found["version"] or "not installed", **found)) for name, found in integrations), 21)
    variables = report["variables"].items()
    title = "variables" if variables else f"variables: no {_settings.PREFIX}* is set"
    shown = ((name, repr(v["value"]) + (f": {v['fault']}" if v["fault"] else "")) for name, v in variables)
    add(title, shown, 21)
    return fitted("\n".join(lines))


def _integrations() -> dict[str, dict[str, str | None]]:
    """Packages that `accelerate` patches, with the installed and the known versions."""
    try:
        from zonos2_triton.model.integrations.accelerate import known_integrations

        integrations = known_integrations()
    except Exception:  # a missing package, reported above
        return {}
    known = ((each.package, each.versions) for each in integrations if each.package and each.versions)
    return {package: {"version": _version(package), "from": low, "below": high} for package, (low, high) in known}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _resolved(backend: str, device: str) -> str:
    """The backend that runs, or why none does."""
    import torch

    from zonos2_triton.model.backend import resolve_backend

    try:
        return resolve_backend(backend, torch.device(device))
    except ValueError as error:
        return str(error)


def _usable(backend: str) -> str:
    resolved = _resolved(backend, "cpu")
    if resolved == backend:
        return "ready"
    return f"means {resolved}" if resolved in BACKENDS else resolved
