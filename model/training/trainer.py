"""The training loop: it can be interrupted at any step and resumed to the bit."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from zonos2_triton.model.training.curves import Curves, check_plotting
from zonos2_triton.model.training.dataset import Item
from zonos2_triton.model.training.files import save_tensors
from zonos2_triton.model.training.forcing import dropped, packed, teacher_forced
from zonos2_triton.model.training.loss import Losses, TrainedCodes, losses, used_codes
from zonos2_triton.model.training.options import TrainOptions, schedule, weights_of
from zonos2_triton.model.training.parallel import Processes
from zonos2_triton.model.training.weights import FullWeights, groups
from zonos2_triton.model.weights.checkpoint import Checkpoint
from zonos2_triton.reference.config import Zonos2Config

MAY_DIFFER = ("log_every", "eval_every", "save_every")  # options of a resumed run


@dataclass(frozen=True)
class Result:
    """The end of a run."""

    step: int
    stopped: bool  # before its last step, because it was asked to
    cross_entropy: list[float]  # of the last point of the curves, per codebook
    held_out: list[float] | None  # the same of the held-out set


class Trainer:
    """Trains weights on items, and keeps a checkpoint in a folder.

    The state of a run is its weights, the optimiser's moments, and the place in the order of the data. All that is
    drawn at random is a function of the seed and the step.
    """

    def __init__(
        self,
        config: Zonos2Config,
        params: Mapping[str, Any],
        model: FullWeights,
        items: Sequence[Item],
        held_out: Sequence[Item],
        options: TrainOptions,
        folder: Path,
        dtype: str = "float32",
        notice: str = "",
        processes: Processes = Processes(),  # noqa: B008  frozen
    ) -> None:
        """params: of the model, for its params.json. dtype: of the weights that are written. notice: what `say` tells
        of them. ValueError: an option does not fit the model or the data."""
        check_plotting()
        weights_of(options, config.n_codebooks)
        if wrong := [layer for layer in options.guide_layers if layer >= config.n_layers]:
            raise ValueError(f"guide_layers must be in 0..{config.n_layers - 1}, got {wrong[0]}")
        if options.guide_layers and not any(item.alignment is not None for item in items):
            raise ValueError("guide_layers needs items with an alignment, the data has none")
        self.config, self.params, self.model, self.options = config, dict(params), model, options
        self.items, self.held_out, self.processes = items, held_out, processes
        self.dtype, self.notice, self.folder = dtype, notice, folder
        self.device = next(iter(model.trained.values())).device
        self.lengths = [item.length(config) for item in items]
        self.used = used_codes(config, items) if options.used_codes else None
        self.codes = None if self.used is None else TrainedCodes.of(config, self.used, self.device)
        voiced = any(item.speaker is not None for item in items)
        self.shared = [t for name, t in model.trained.items() if voiced or not name.startswith("speaker_")]
        betas = options.beta1, options.beta2
        self.optimizer = torch.optim.AdamW(groups(model.trained, options.weight_decay), lr=options.lr, betas=betas)
        self.step = self.epoch = self.index = 0  # the next batch
        self.curves = Curves(folder / "training")

    @property
    def state_file(self) -> Path:
        return self.folder / "training" / "state.safetensors"

    def run(self, stop: Callable[[], bool] = lambda: False) -> Result:
        """Train to the last step, or until stop() is true after one: a checkpoint is written then.

        ArithmeticError: the loss or the gradient is not finite; the last checkpoint stays.
        """
        stopped, points = False, list[dict[str, Any]]()
        bar = tqdm(total=self.options.steps, initial=self.step, unit="step", disable=None if self._first else True)
        with bar, _deterministic():
            batches = self._batches()
            while self.step < self.options.steps and not stopped:
                point, stopped = self._train(next(batches), stop())
                points.append(point)
                bar.update()
                last = self.step == self.options.steps
                if last or stopped or self.step % self.options.log_every == 0:
                    self.curves.training.append(_mean(points))
                    points.clear()
                    bar.set_postfix(loss=f"{self.curves.training[-1]['loss']:.3f}")
                if self.held_out and (last or self.step % self.options.eval_every == 0):
                    self.curves.held_out.append(self.evaluate())
                if last or stopped or self.step % self.options.save_every == 0:
                    self.save()
        training, held_out = self.curves.training, self.curves.held_out
        found = held_out[-1]["cross_entropy"] if held_out else None
        entropy = training[-1]["cross_entropy"] if training else []
        return Result(self.step, stopped and self.step < self.options.steps, entropy, found)

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Cross entropy and accuracy of the held-out set, per codebook."""
        sums = torch.zeros(2, self.config.n_codebooks, dtype=torch.float32, device=self.device)
        count = torch.zeros(1, dtype=torch.float32, device=self.device)
        lengths = [item.length(self.config) for item in self.held_out]
        for batch in packed(lengths, self.options.batch_tokens, 0, 0)[self.processes.rank :: self.processes.count]:
            found = self._losses([self.held_out[i] for i in batch], None, ())
            sums += torch.stack([found.cross_entropy, found.hits])
            count += found.targets
        self.processes.mean_([sums, count])
        entropy, accuracy = (sums / count).tolist()
        return {"step": self.step, "cross_entropy": entropy, "accuracy": accuracy}

    def save(self) -> None:
        """Write the model, the curves and, last, the state from which `resume` goes on."""
        if not self._first:
            return
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"weights/{name}": tensor.detach().contiguous() for name, tensor in self.model.saved.items()}
        for name, tensor in self.model.trained.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state[tensor].items()}
        self.model.export(self.folder, self.params, self.dtype, self.used, self.notice)
        self.curves.write()
        save_tensors(self.state_file, tensors, {"state": json.dumps(self._about())})

    def resume(self) -> None:
        """Go on from the state in the folder. ValueError: it is of a run with other data, sizes or options."""
        checkpoint = Checkpoint(self.state_file)
        found, own = json.loads(checkpoint.metadata.get("state", "{}")), self._about()
        for key in own.keys() - {"step", "epoch", "index"}:
            if (was := found.get(key)) != own[key]:
                raise ValueError(f"{self.state_file} cannot be resumed: {_difference(key, was, own[key])}")
        tensors = checkpoint.tensors(checkpoint.shapes)
        with torch.no_grad():
            for name, tensor in self.model.saved.items():
                tensor.copy_(tensors[f"weights/{name}"])
        for name, tensor in self.model.trained.items():
            state = {
                key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in tensors
            }
            if state:
                moved = {
                    key: value.clone() if key == "step" else value.to(self.device, copy=True)
                    for key, value in state.items()
                }
                self.optimizer.state[tensor] = moved
        self.step, self.epoch, self.index = (found[name] for name in ("step", "epoch", "index"))
        self.curves.read(self.step)

    @property
    def _first(self) -> bool:
        return self.processes.rank == 0

    def _about(self) -> dict[str, Any]:
        """The values that a resumed run must share, and its place."""
        options = {name: value for name, value in asdict(self.options).items() if name not in MAY_DIFFER}
        data = hashlib.sha256("\n".join(f"{i.id} {n}" for i, n in zip(self.items, self.lengths, strict=True)).encode())
        about = {
            "options": options,
            "params": self.params,
            "processes": self.processes.count,
            "data": data.hexdigest(),
            "base": self.model.identity,
        }
        place = {"step": self.step, "epoch": self.epoch, "index": self.index}
        return json.loads(json.dumps(about | place))

    def _batches(self) -> Iterator[list[Item]]:
        """The batches of this process, from the current place on."""
        rank, count = self.processes.rank, self.processes.count
        while True:
            batches = packed(self.lengths, self.options.batch_tokens, self.options.seed, self.epoch)
            rounds = len(batches) // count
            if not rounds:
                raise ValueError(f"{count} processes need as many batches, the data makes {len(batches)}")
            while self.index < rounds:
                self.index += 1
                yield [self.items[i] for i in batches[(self.index - 1) * count + rank]]
            self.epoch, self.index = self.epoch + 1, 0

    def _losses(self, items: Sequence[Item], prompts: Sequence[Any] | None, guide_layers: Sequence[int]) -> Losses:
        sequences = teacher_forced(self.config, items, [item.prompt for item in items] if prompts is None else prompts)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            return losses(self.config, self.model.weights(), sequences, self.codes, guide_layers)

    def _train(self, items: Sequence[Item], stop: bool) -> tuple[dict[str, Any], bool]:
        """One step -> its point of the curves, and whether a process was asked to stop."""
        options, settings, started = self.options, schedule(self.options, self.step), time.perf_counter()
        prompts = dropped(items, options.conditioning_dropout, options.seed, self.step, self.processes.rank)
        found = self._losses(items, prompts, options.guide_layers)
        loss = found.total(options, settings["guide_weight"])
        for tensor in self.shared:  # also of what this batch does not need, such as the speakers' weights
            tensor.grad = torch.zeros_like(tensor)
        loss.backward()
        gradients = [tensor.grad for tensor in self.shared if tensor.grad is not None]
        told = torch.stack([loss.detach(), found.guide.detach() / max(found.guided, 1), found.balance.detach()]).float()
        asked = told.new_tensor([stop])
        entropy = found.cross_entropy.detach() / found.targets
        self.processes.mean_([*gradients, told, asked, entropy, found.load])
        norm = torch.nn.utils.clip_grad_norm_(self.model.trained.values(), options.clip)
        if not (told[0].isfinite() and norm.isfinite()):
            at = ", ".join(item.id for item in items[:4])
            kept = f"{self.state_file} stays as it was" if self.state_file.exists() else "no checkpoint was written yet"
            raise ArithmeticError(
                f"step {self.step + 1}: loss {told[0]:.4g}, norm of the gradient {norm:.4g}; items {at}, ...; {kept}. "
                "A lower learning rate (--lr) or a longer --warmup often helps"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = settings["lr"]
        self.optimizer.step()
        self.model.balance(found.load, settings["balance_update"])
        self.step += 1
        values = dict(zip(("loss", "guide", "balance"), told.tolist(), strict=True))
        values |= {
            "lr": settings["lr"],
            "gradient_norm": norm.item(),
            "largest_load": found.load.max().item() if found.load.numel() else 0.0,
        }
        values |= {"tokens": sum(item.length(self.config) for item in items), "seconds": time.perf_counter() - started}
        return {"step": self.step, "epoch": self.epoch, **values, "cross_entropy": entropy.tolist()}, bool(asked[0] > 0)


def _mean(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One point for several steps: means, and the last step, epoch and learning rate."""
    mean = dict(points[-1])
    for key in ("loss", "guide", "balance", "gradient_norm", "largest_load", "tokens", "seconds"):
        mean[key] = sum(point[key] for point in points) / len(points)
    curves = zip(*(point["cross_entropy"] for point in points), strict=True)
    return mean | {"cross_entropy": [sum(values) / len(points) for values in curves]}


def _difference(key: str, was: Any, now: Any) -> str:
    """The first difference of two values of the state."""
    if isinstance(was, dict) and isinstance(now, dict):
        name = min(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
        return f"{name} was {was.get(name)}, now it is {now.get(name)}"
    if key == "base":
        return "it trains an adapter of another model"
    return "the data has other items" if key == "data" else f"{key} was {was}, now it is {now}"


@contextmanager
def _deterministic() -> Iterator[None]:
    """Inside, the same step gives the same bits, where torch has such an algorithm."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
