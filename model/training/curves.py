"""Learning curves: a JSON file of points and a picture."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zonos2_triton.model.files import whole_file, write_whole


def check_plotting() -> None:
    """ImportError: matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise ImportError("learning curves need matplotlib: pip install 'zonos2-triton[train]'")


class Curves:
    """Points of a run by step: losses of training, and of the held-out set."""

    def __init__(self, folder: Path) -> None:
        self.file, self.picture = folder / "curves.json", folder / "curves.png"
        self.training: list[dict[str, Any]] = []
        self.held_out: list[dict[str, Any]] = []

    def read(self, step: int) -> None:
        """The points of an earlier part of the run, up to a step."""
        if self.file.exists():
            found = json.loads(self.file.read_text(encoding="utf-8"))
            for name in ("training", "held_out"):
                setattr(self, name, [point for point in found[name] if point["step"] <= step])

    def write(self) -> None:
        points = {"training": self.training, "held_out": self.held_out}
        write_whole(self.file, json.dumps(points, indent=1) + "\n")
        with whole_file(self.picture) as part:
            self._draw(part)

    def _draw(self, path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 7), layout="constrained")
        FigureCanvasAgg(figure)
        entropy, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for points, style, label in ((self.training, "-", "training"), (self.held_out, "o--", "held out")):
            steps, values = [p["step"] for p in points], [p["cross_entropy"] for p in points]
            for j, curve in enumerate(zip(*values, strict=True)):
                entropy.plot(steps, curve, style, color=f"C{j}", label=f"codebook {j}, {label}", markersize=3)
        entropy.set(ylabel="cross entropy (nats)")
        if self.training or self.held_out:
            entropy.legend(fontsize="x-small", ncols=2)
        rate.plot([p["step"] for p in self.training], [p["lr"] for p in self.training])
        rate.set(xlabel="step", ylabel="learning rate")
        figure.savefig(path, format="png", dpi=100)
