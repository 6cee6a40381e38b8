"""Vision tokenizer: an image is a one-frame clip, causality, accumulation, training, bad input."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from accordion.config.data import VisionTokenizerConfig
from accordion.data.tokenizers.vision import (
    CausalConv,
    VisionTokenizer,
    accumulate,
    add_scale,
    assemble,
    downsample,
    quantize,
)
from accordion.data.tokenizers.vision_losses import Kept, Objective
from accordion.data.tokenizers.vision_training import read_png
from accordion.errors import ArtifactError, DataError

CONFIG = VisionTokenizerConfig(channels=8, bits=6, low_bits=(4,), steps=4, batch=4)


def random_(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> VisionTokenizer:
    """A tokenizer whose temporal kernels are not zero, as after training on clips."""
    torch.manual_seed(0)
    model = VisionTokenizer(CONFIG).eval()
    for module in model.modules():
        if isinstance(module, CausalConv):
            for kernel in module.past:
                torch.nn.init.normal_(kernel.weight, std=0.1)
    return model


def test_a_one_frame_clip_is_exactly_the_image(model: VisionTokenizer) -> None:
    clip = random_(2, 4, 3, 32, 32)
    image = clip[:, :1]
    for whole, alone in zip(model.encode(clip), model.encode(image), strict=True):
        assert torch.equal(whole[:, :1], alone)
    flat = VisionTokenizer(CONFIG).eval()  # the 2D network: the same weights of the present frame, no memory
    flat.load_state_dict({k: v if ".past." not in k else torch.zeros_like(v) for k, v in model.state_dict().items()})
    assert torch.equal(model.latent(image), flat.latent(image))
    bits = model.encode(image)
    assert torch.equal(model.decode(bits), flat.decode(bits))


def test_inflation_starts_as_the_2d_network_on_every_frame() -> None:
    torch.manual_seed(0)
    fresh = VisionTokenizer(CONFIG).eval()
    clip = random_(1, 4, 3, 32, 32)
    each = torch.cat([fresh.latent(clip[:, t : t + 1]) for t in range(4)], dim=1)
    torch.testing.assert_close(fresh.latent(clip), each, atol=1e-5, rtol=1e-5)


def test_the_past_matters_and_the_future_does_not(model: VisionTokenizer) -> None:
    clip = random_(1, 4, 3, 32, 32)
    changed = clip.clone()
    changed[:, 2] = random_(3, 32, 32, seed=1)
    before, after = model.latent(clip), model.latent(changed)
    torch.testing.assert_close(before[:, :2], after[:, :2], atol=1e-6, rtol=0)
    assert not torch.allclose(before[:, 3], after[:, 3], atol=1e-3)


def test_accumulate_gives_what_generation_can_know(model: VisionTokenizer) -> None:
    bits = model.encode(random_(2, 3, 3, 32, 32))
    inputs, latent = accumulate(bits)
    assert [tuple(grid.shape) for grid in inputs] == [tuple(grid.shape) for grid in bits]
    assert torch.count_nonzero(inputs[0][:, 0]) == 0
    torch.testing.assert_close(inputs[0][:, 1], downsample(latent[:, 0], 1))
    changed = [grid.clone() for grid in bits]
    changed[2] = 1 - changed[2]  # the input of a scale knows the scales before it only
    again, _ = accumulate(changed)
    assert all(torch.equal(again[k][:, 0], inputs[k][:, 0]) for k in (0, 1, 2))
    assert not torch.equal(again[3], inputs[3])


def test_each_scale_corrects_what_the_coarser_ones_left() -> None:
    smooth = torch.linspace(-1, 1, 8)[None, None, :, None, None].expand(1, 1, 8, 8, 6)
    bits = quantize(smooth, (1, 2, 4, 8))
    errors, latent = [], torch.zeros(1, 8, 8, 6)
    for scale, grid in enumerate(bits):
        latent = add_scale(latent, grid[0], scale)
        errors.append(float((latent - smooth[0]).square().mean()))
    assert errors[1] < errors[0]
    assert errors[3] < errors[2] < errors[0]
    torch.testing.assert_close(accumulate(bits)[1][0], latent)


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = VisionTokenizer(CONFIG)
    frames = random_(4, 1, 3, 8, 8).repeat_interleave(4, 3).repeat_interleave(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    objective = Objective(CONFIG.losses, 2 * CONFIG.channels)
    kept = Kept(torch.full((4,), 4), torch.full((4,), CONFIG.bits))
    losses = []
    for _ in range(25):
        loss = torch.stack(list(objective(model, frames, kept)[0].values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_any_budget_of_bits_and_any_first_scales_decode(model: VisionTokenizer) -> None:
    bits = model.encode(random_(2, 2, 3, 32, 32))
    for depth in CONFIG.budgets:
        for kept in (1, 2, 3, 4):
            told = [grid[..., :depth] for grid in bits[:kept]]
            assert model.decode(told).shape == (2, 2, 3, 32, 32)
            latent = assemble(told, 8, CONFIG.bits)
            assert torch.count_nonzero(latent[..., depth:]) == 0
    torch.testing.assert_close(assemble(bits, 8, CONFIG.bits), accumulate(bits)[1])
    assert not torch.equal(model.decode(bits), model.decode(bits[:3]))
    with pytest.raises(DataError, match="tokens of 4 or 6 bits"):
        model.decode([grid[..., :5] for grid in bits])
    with pytest.raises(DataError, match="first ones"):
        model.decode(bits[1:])
    with pytest.raises(DataError, match="scales"):
        model.decode([])


def test_save_and_load_keep_every_bit(model: VisionTokenizer, tmp_path) -> None:
    model.save(tmp_path)
    clip = random_(1, 2, 3, 32, 32)
    for before, after in zip(model.encode(clip), VisionTokenizer.load(tmp_path).encode(clip), strict=True):
        assert torch.equal(before, after)
    path = tmp_path / "model.safetensors"
    save_file({name: t.half() if t.is_floating_point() else t for name, t in load_file(path).items()}, path)
    with pytest.raises(
        ArtifactError, match=r"torch\.float16, another type than here; run train_vision_tokenizer again"
    ):
        VisionTokenizer.load(tmp_path)
    path.write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="train_vision_tokenizer"):
        VisionTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        (torch.zeros(1, 1, 3, 16, 16), "resize"),
        (torch.zeros(1, 3, 32, 32), "wants"),
        (torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8), "divide bytes"),
        (torch.full((1, 1, 3, 32, 32), 2.0), "finite values"),
        (torch.full((1, 1, 3, 32, 32), float("nan")), "finite values"),
    ],
)
def test_bad_frames_are_named(model: VisionTokenizer, frames: torch.Tensor, match: str) -> None:
    with pytest.raises(DataError, match=match):
        model.encode(frames)


def test_bad_bits_and_bad_files_are_named(model: VisionTokenizer) -> None:
    with pytest.raises(DataError, match="scales"):
        model.decode(model.encode(random_(1, 1, 3, 32, 32))[:2] * 2)
    with pytest.raises(DataError, match="image cat"):
        read_png(b"no image", "cat", 32)
    with pytest.raises(DataError, match="image_size"):
        VisionTokenizer(VisionTokenizerConfig(image_size=48))
