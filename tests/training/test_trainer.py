import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from zonos2_triton.model import Backbone, Sampling
from zonos2_triton.model.training import trainer as module
from zonos2_triton.model.training.options import TrainOptions
from zonos2_triton.model.training.trainer import Trainer
from zonos2_triton.model.training.weights import FullWeights, new_weights
from zonos2_triton.model.weights.tiny import PARAMS

OPTIONS = TrainOptions(
    steps=8,
    batch_tokens=130,
    lr=3e-3,
    warmup=2,
    seed=5,
    guide_layers=(2,),
    used_codes=True,
    log_every=2,
    eval_every=4,
    save_every=3,
)


@pytest.fixture
def trainer(config, items, tmp_path):
    def make(name="run", options=OPTIONS, params=PARAMS, data=items):
        model = FullWeights(config, new_weights(config, 1), torch.device("cpu"))
        return Trainer(config, params, model, data[:5], data[5:], options, tmp_path / name)

    return make


def after(calls):
    """A stop that comes at the nth step."""
    return iter([False] * (calls - 1) + [True] * 99).__next__


def weights(trainer):
    return load_file(trainer.folder / "model.safetensors")


def test_a_run_interrupted_twice_ends_with_the_same_bits(trainer):
    whole = trainer("whole")
    assert not whole.run().stopped
    parts = trainer("parts")
    assert parts.run(after(3)).stopped
    for calls, step in ((2, 5), (99, 8)):
        parts = trainer("parts")
        parts.resume()
        assert parts.run(after(calls)).step == step
    for name in ("model.safetensors", "training/state.safetensors"):
        one, other = load_file(whole.folder / name), load_file(parts.folder / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert parts.curves.held_out == whole.curves.held_out


def test_it_learns(trainer):
    """A few sentences by heart: the loss falls far below that of new weights."""
    made = trainer(options=TrainOptions(steps=15, batch_tokens=400, lr=1e-2, warmup=3, log_every=1, used_codes=True))
    made.run()
    first, last = (made.curves.training[i]["cross_entropy"][0] for i in (0, -1))
    assert last < 0.6 * first


def test_the_product_loads_and_speaks_what_was_trained(trainer, config):
    made = trainer()
    made.run()
    backbone = Backbone.load(made.folder / "model.safetensors", backend="reference")
    (result,) = backbone.generate([made.items[0].prompt_ids(config)], Sampling(max_frames=4, seed=1))
    assert len(result.frames) == 4
    assert os.stat(made.folder / "model.safetensors").st_mode & 0o777 == 0o666 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_curves_hold_every_point(trainer):
    made = trainer()
    result = made.run()
    found = json.loads((made.folder / "training" / "curves.json").read_text())
    assert [point["step"] for point in found["training"]] == [2, 4, 6, 8]
    assert [point["step"] for point in found["held_out"]] == [4, 8]
    assert found["held_out"][-1]["cross_entropy"] == result.held_out
    assert len(result.held_out) == len(result.cross_entropy) == 9
    assert (made.folder / "training" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_nan_ends_the_run_and_the_checkpoint_stays(trainer, monkeypatch):
    made, losses, calls = trainer(), module.losses, []

    def failing(*args):
        calls.append(0)
        found = losses(*args)
        return found.__class__(**{**vars(found), "z": found.z * (float("nan") if len(calls) == 6 else 1)})

    monkeypatch.setattr(module, "losses", failing)
    with pytest.raises(
        ArithmeticError, match=r"step 5: loss nan, .* items item\d, .*state.safetensors stays as it was"
    ):
        made.run()
    resumed = trainer()
    resumed.resume()
    assert resumed.step == 3
    assert all(tensor.isfinite().all() for tensor in resumed.model.saved.values())


def test_a_full_disk_keeps_the_last_checkpoint(trainer, monkeypatch):
    made = trainer()
    made.run(after(2))
    before = made.state_file.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("zonos2_triton.model.training.files.save_file", full)
    resumed = trainer()
    resumed.resume()
    with pytest.raises(OSError, match=r"cannot write .*model.safetensors: No space left on device"):
        resumed.run()
    assert made.state_file.read_bytes() == before
    assert sorted(path.name for path in made.state_file.parent.iterdir()) == [
        "curves.json",
        "curves.png",
        "state.safetensors",
    ]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"options": TrainOptions(**{**vars(OPTIONS), "steps": 9})}, "steps was 8, now it is 9"),
        ({"params": PARAMS | {"dim": 128}}, "dim was 64, now it is 128"),
        ({"data": "fewer"}, "the data has other items"),
    ],
)
def test_another_run_is_not_resumed(trainer, items, other, message):
    trainer().save()
    if "data" in other:
        other = {"data": [items[0], *items]}
    with pytest.raises(ValueError, match=f"cannot be resumed: {message}"):
        trainer(**other).resume()


def test_options_that_do_not_fit(trainer, items):
    with pytest.raises(ValueError, match=r"guide_layers must be in 0..5, got 6"):
        trainer(options=TrainOptions(guide_layers=(6,)))
    with pytest.raises(ValueError, match="codebook_weights must name at most 9 weights, got 10"):
        trainer(options=TrainOptions(codebook_weights=(1,) * 10))
    with pytest.raises(ValueError, match="the data has none"):
        trainer(
            options=TrainOptions(guide_layers=(1,)),
            data=[items[0].__class__(**{**vars(item), "alignment": None}) for item in items],
        )


def test_an_idle_expert_becomes_likelier(config):
    for strategy, sign in (("legacy", 1), ("quantile", -1)):
        changed = config.from_params(PARAMS | {"moe_balancing_strategy": strategy})
        model = FullWeights(changed, new_weights(changed, 1), torch.device("cpu"))
        model.balance(torch.tensor([[0.0, 0.5, 0.25, 0.25]] * len(changed.moe_layers)), 0.1)
        biases = model.saved[f"layers.{changed.moe_layers[0]}.feed_forward.router.balancing_biases"]
        torch.testing.assert_close(sign * biases, torch.tensor([0.1, -0.1, 0, 0]))


def test_weights_that_the_data_does_not_reach_stay(trainer):
    """Those of speakers, without any in the data: no weight decay changes them."""
    made = trainer()
    before = {name: tensor.clone() for name, tensor in made.model.saved.items() if name.startswith("speaker_")}
    made.run(after(2))
    assert before
    assert all(torch.equal(made.model.saved[name], tensor) for name, tensor in before.items())
