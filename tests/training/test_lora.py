import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from zonos2_triton.model import Backbone
from zonos2_triton.model.cli import main
from zonos2_triton.model.training.dataset import write_dataset
from zonos2_triton.model.weights.lora import adapted, lora_layout
from zonos2_triton.model.weights.tiny import write_tiny

QUICK = ["--batch-tokens", "400", "--steps", "4", "--lr", "2e-2", "--warmup", "1", "--log-every", "1", "--lora", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, items, tiny_folder):
    """A folder with a model and a run that trained adapters of it, merged, too."""
    place = tmp_path_factory.mktemp("lora")
    shutil.copytree(tiny_folder, place / "tiny")
    data = write_dataset(place / "train.jsonl", items[:3])
    words = ["train", str(data), "--init", str(place / "tiny"), *QUICK]
    assert main([*words, "--out", str(place / "run"), "--merge"]) == 0
    return place


def test_adapters_learn_and_say_speaks_with_them(run, config, items):
    curve = [
        point["cross_entropy"][0]
        for point in json.loads((run / "run" / "training" / "curves.json").read_text())["training"]
    ]
    assert curve[-1] < 0.9 * curve[0]
    lora = run / "run" / "adapter.safetensors"
    ids = items[0].prompt_ids(config)
    plain, spoken = (
        Backbone.load(run / "tiny" / "model.safetensors", lora=path).trace(ids)["logits"] for path in (None, lora)
    )
    merged = Backbone.load(run / "run" / "model.safetensors").trace(ids)["logits"]
    assert torch.equal(spoken, merged)
    assert (spoken - plain).abs().max() > 0.01
    words = [
        "say",
        "Hi.",
        "--model",
        str(run / "tiny"),
        "--out",
        str(run / "a.wav"),
        "--max-frames",
        "12",
        "--seed",
        "3",
    ]
    assert main(words) == main([*words[:5], str(run / "b.wav"), *words[6:], "--lora", str(lora)]) == 0
    assert (run / "a.wav").read_bytes() != (run / "b.wav").read_bytes()


def test_adapters_are_of_attention_and_experts(run, config):
    weights, adapter = load_file(run / "tiny" / "model.safetensors"), load_file(run / "run" / "adapter.safetensors")
    assert {name: list(t.shape) for name, t in adapter.items()} == lora_layout(Backbone.layout(config), 2)
    changed = load_file(run / "run" / "model.safetensors")
    touched = {name for name, tensor in weights.items() if not torch.equal(tensor, changed[name])}
    assert {name.split(".", 2)[2] for name in touched} == {
        *("attention.wq.weight", "attention.wkv.weight", "attention.wo.weight"),
        *("feed_forward.experts.w13", "feed_forward.experts.w2"),
    }
    name = "layers.2.feed_forward.experts.w2"
    a, b = adapter[f"{name}.lora_a"], adapter[f"{name}.lora_b"]
    product = torch.einsum("eor,eri->eoi", b, a)
    torch.testing.assert_close(adapted(weights, adapter, 8.0)[name], weights[name] + 8 * product)


def test_an_interrupted_run_ends_with_the_same_adapters(run, monkeypatch):
    words = ["train", str(run / "train.jsonl"), "--init", str(run / "tiny"), "--out", str(run / "parts"), *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr("zonos2_triton.model.training.trainer.Trainer._train", _failing_at(2))
        assert main([*words, "--save-every", "1"]) == 2
    assert main([*words, "--resume"]) == 0
    one, other = (load_file(run / name / "adapter.safetensors") for name in ("run", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (run / "parts" / "model.safetensors").exists()


def _failing_at(step):
    from zonos2_triton.model.training.trainer import Trainer

    right = Trainer._train

    def failing(self, *arguments):
        if self.step == step:
            raise OSError("power failure")
        return right(self, *arguments)

    return failing


def test_wrong_adapters_are_refused(run, tmp_path, capsys):
    other = write_tiny(tmp_path / "other", seed=1)
    lora, model = run / "run" / "adapter.safetensors", run / "tiny" / "model.safetensors"
    with pytest.raises(ValueError, match=r"adapter.safetensors is a LoRA adapter of another model than .*other"):
        Backbone.load(other / "model.safetensors", lora=lora)
    with pytest.raises(ValueError, match=r"model.safetensors is no LoRA adapter of zonos2-triton"):
        Backbone.load(model, lora=model)
    with pytest.raises(FileNotFoundError):
        Backbone.load(model, lora=tmp_path / "none.safetensors")
    tensors, about = load_file(lora), {"lora": json.dumps({"rank": 2, "alpha": 1, "base": ""})}
    save_file(
        {name: t for name, t in tensors.items() if "layers.3.attention.wo" not in name},
        tmp_path / "a.safetensors",
        about,
    )
    with pytest.raises(
        ValueError, match=r"of another model.*: layers.3.attention.wo.weight.lora_a is None, expected \[2"
    ):
        Backbone.load(model, lora=tmp_path / "a.safetensors")
    words = ["train", str(run / "train.jsonl"), "--out", str(run / "run"), *QUICK]
    for more, message in (
        (["--resume", "--init", str(other)], "cannot be resumed: it trains an adapter of another model"),
        (["--resume"], "--lora trains adapters of a model: name its folder by --init"),
        (["--init", str(other), "--used-codes"], "used_codes trains the head, which lora leaves as it is"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
