"""Seeing: which patches reach which positions, both paths, and that what is seen is learnt from."""

from dataclasses import replace

import torch

from accordion.data.batch import IMAGE, VIDEO
from accordion.model import Model, parameter_counts
from tests.unit.model.synthetic import small_batch, small_config

CONFIG = small_config(vit_layers=2, vit_width=32)


def states(model: Model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model.embeddings(batch)


def changed(batch, name: str, row: int, patch: int) -> torch.Tensor:
    """(B, S) bool: input states that a change of one patch of one sequence reaches."""
    model = Model(CONFIG, seed=1).eval()
    table = getattr(batch, name).clone()
    table[row, patch] = 255 - table[row, patch]
    return (states(model, batch) != states(model, replace(batch, **{name: table}))).any(-1)


def test_an_image_is_seen_through_its_four_patches_and_a_clip_through_four_frames():
    batch = small_batch(rows=3, seeing=True)
    image, clip = (((batch.patch >= 0) & (batch.modality == kind)) for kind in (IMAGE, VIDEO))
    assert image.sum() == clip.sum() == 3
    for name in ("patch_pixels", "patch_latent"):
        for patch in range(24):
            reached = changed(batch, name, 1, patch)
            wanted = torch.zeros_like(reached)
            if patch < 20:  # four of the image, then four in each of four frames
                wanted[1] = image[1] if patch < 4 else clip[1]
            assert torch.equal(reached, wanted), (name, patch)


def test_what_is_seen_changes_what_is_said_and_is_learnt_through_both_paths():
    batch, model = small_batch(seeing=True), Model(CONFIG, seed=1).train()
    blank = replace(batch, patch_pixels=torch.zeros_like(batch.patch_pixels))
    losses = model(batch)
    assert not torch.equal(model.outputs(blank).text, model.outputs(batch).text)
    losses.means["text"].backward()
    for name, weight in model.embeddings.understanding.named_parameters():
        assert weight.grad is not None and weight.grad.any(), name
    assert losses.counts["image"] == Model(CONFIG)(small_batch()).counts["image"]  # looking is not drawing


def test_the_patches_of_a_position_are_told_apart():
    """Attention alone would not know their order: swapping two patches changes what is seen."""
    batch = small_batch(rows=1, seeing=True)
    swapped = batch.patch_latent[:, [1, 0, *range(2, batch.patch_latent.shape[1])]]
    model = Model(CONFIG, seed=1).eval()
    assert not torch.allclose(states(model, batch), states(model, replace(batch, patch_latent=swapped)), atol=1e-4)


def test_its_parameters_are_counted_and_a_model_for_blind_shards_has_none():
    model = Model(CONFIG)
    assert parameter_counts(CONFIG)[0] == sum(weight.numel() for weight in model.parameters())
    assert Model(small_config()).embeddings.understanding is None
