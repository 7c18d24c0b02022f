import torch

from zonos2_triton.model.prompt import build_prompt
from zonos2_triton.model.training.forcing import delayed_frames, dropped, packed, teacher_forced
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.stopping import find_end


def test_the_product_hears_the_codes_and_the_end(config, items):
    """The frames that would be sampled, undone by the product's own rules, are the data."""
    for item in items:
        frames = delayed_frames(config, item.codes, torch.full((config.n_codebooks,), 7))
        _, eos_frame = find_end(frames, config.eoa_id)
        assert eos_frame == len(item.codes)
        assert torch.equal(shear_up(frames, config.audio_pad_id)[:eos_frame], item.codes.long())


def test_inputs_are_the_prompt_and_every_frame_but_the_last(config, items):
    options = [item.prompt for item in items]
    found = teacher_forced(config, items, options)
    assert found.cu_seqlens[-1] == len(found.ids) == sum(item.length(config) for item in items)
    start = 0
    for i, item in enumerate(items):
        a, b = found.cu_seqlens[i : i + 2]
        prompt = build_prompt(config, item.text, **item.prompt).long()
        n = len(item.codes) + config.n_codebooks
        targets = found.targets[start : start + n]
        assert torch.equal(found.ids[a : a + len(prompt)], prompt)
        assert torch.equal(found.ids[a + len(prompt) : b, :-1], targets[:-1])  # as the product feeds them back
        assert (found.ids[a + len(prompt) : b, -1] == config.text_vocab).all()
        assert found.at[start : start + n].tolist() == list(range(a + len(prompt) - 1, b))
        start += n


def test_alignment_points_at_the_bytes(config, items):
    found = teacher_forced(config, items, [item.prompt for item in items])
    for i, item in enumerate(items):
        for token, byte in zip(found.alignment[i].tolist(), item.alignment.tolist(), strict=True):
            assert (
                token == -1
                if byte < 0
                else found.ids[found.cu_seqlens[i] + token, -1] == item.text.encode()[byte] + 192
            )


def test_an_epoch_holds_each_item_once_in_an_order_of_its_own():
    lengths = [10 + i % 7 for i in range(50)]
    first, again, second = packed(lengths, 64, 3, 0), packed(lengths, 64, 3, 0), packed(lengths, 64, 3, 1)
    assert first == again != second
    for batches in (first, second):
        assert sorted(i for batch in batches for i in batch) == list(range(50))
        assert all(sum(lengths[i] for i in batch) <= 64 for batch in batches)


def test_dropout_is_a_function_of_the_step(items):
    kept = [dropped(items, 0.5, 0, step, 0) for step in range(20)]
    assert kept == [dropped(items, 0.5, 0, step, 0) for step in range(20)]
    share = sum("speaking_rate" in options for step in kept for options in step) / (20 * len(items))
    assert 0.3 < share < 0.7
    assert dropped(items, 0, 0, 0, 0) == [item.prompt for item in items]
