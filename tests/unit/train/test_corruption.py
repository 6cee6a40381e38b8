"""Mistakes in the history that training reads: how many, and that what is to be predicted mends them."""

import pytest
import torch

from accordion.config.data import VisionTokenizerConfig
from accordion.config.pretrain import BitFlips, ModelConfig, model_config
from accordion.data.batch import IMAGE, VIDEO, Batch
from accordion.data.documents import Builder
from accordion.data.loader import ShardLoader
from accordion.data.shards import read_meta
from accordion.data.tokenizers.text import BOI, BOS
from accordion.data.tokenizers.vision import VisionTokenizer, accumulate, amplitude, quantize, upsample
from accordion.errors import ConfigError
from accordion.train.corruption import corrupt_codes, flip_bits
from tests.unit.model.synthetic import small_config
from tests.unit.train.synthetic_shards import tiny_config, write_shards

SCALES = (1, 2, 4)
SHAPE: ModelConfig = small_config(bits=6, scales=SCALES, frames=4)


def batch_of(latents: list[torch.Tensor]) -> Batch:
    """A row for each latent (1,T,4,4,6): BOS BOI and its frames."""
    rows = []
    for latent in latents:
        builder = Builder("image", bits=6, levels=2, codebook=7).tokens([BOS, BOI])
        kind = VIDEO if latent.shape[1] > 1 else IMAGE
        document = builder.vision(kind, quantize(latent, SCALES), latent).document()
        rows.append(Batch.from_columns({name: values[None] for name, values in document.columns.items()}))
    first, *others = rows
    names = vars(first)
    return Batch(**{name: torch.cat([getattr(row, name) for row in (first, *others)]) for name in names})


def latents(count: int, frames: int, seed: int = 0) -> list[torch.Tensor]:
    drawn = torch.randn(count, 1, frames, 4, 4, 6, generator=torch.Generator().manual_seed(seed))
    return list(drawn.half().float())  # as shards keep them


def test_without_flips_the_batch_stays_as_it_is_and_with_almost_none_it_is_found_again():
    batch = batch_of(latents(3, 4))
    assert flip_bits(batch, BitFlips(high=0), SHAPE, torch.Generator()) is batch
    again = flip_bits(batch, BitFlips(high=1e-9, growth=0), SHAPE, torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.vision_input, batch.vision_input, atol=5e-3, rtol=0)  # shards keep half floats
    assert torch.equal(again.target_bits, batch.target_bits)


def test_flipped_history_is_what_later_scales_read_and_their_targets_mend_it():
    """With half of the bits flipped, the targets of the last scale bring the read latent nearer to the true one."""
    given = latents(20, 1)
    batch = batch_of(given)
    flipped = flip_bits(batch, BitFlips(low=0.5, high=0.5), SHAPE, torch.Generator().manual_seed(1))
    assert torch.equal(flipped.vision_input[:, 2], batch.vision_input[:, 2])  # nothing comes before the first scale
    assert torch.equal(flipped.target_bits[:, 2], batch.target_bits[:, 2])
    assert not torch.equal(flipped.target_bits[:, 3:], batch.target_bits[:, 3:])
    last = flipped.vision_input[:, 7:]  # (20, 16, 6), the sum of the flipped scales at the finest side
    true = torch.cat(given).flatten(0, 1).flatten(1, 2)
    mended = last + amplitude(2) * (flipped.target_bits[:, 7:] * 2 - 1)
    stale = last + amplitude(2) * (batch.target_bits[:, 7:] * 2 - 1)
    assert torch.equal((true - last > 0).float(), flipped.target_bits[:, 7:])
    assert (mended - true).square().mean() < 0.8 * (stale - true).square().mean()


def test_a_later_frame_begins_with_what_the_flipped_one_before_it_came_to():
    batch = batch_of(latents(8, 3))
    flips = BitFlips(low=0.5, high=0.5, growth=0)
    flipped = flip_bits(batch, flips, SHAPE, torch.Generator().manual_seed(2))
    cells = 21
    second = flipped.vision_input[:, 2 + cells]
    assert not torch.allclose(second, batch.vision_input[:, 2 + cells], atol=0.1)
    first_frame = [flipped.vision_input[:, 2 + 5 : 2 + cells]]  # read before the last scale of frame 0
    apart = (second - first_frame[0].mean(1)).abs()
    assert float(apart.max()) <= amplitude(2) + 1e-5  # all that its last scale can add to the mean


def test_later_frames_draw_from_higher_up_and_never_above_a_half():
    batch = batch_of(latents(60, 4))

    def share(frame: int, flips: BitFlips) -> float:
        """Share of the 2x2 scale's bits of a frame that were read wrongly: (read - down(scale 1)) has their signs."""
        read = flip_bits(batch, flips, SHAPE, torch.Generator().manual_seed(3))
        start = 2 + frame * 21
        truth = read.target_bits[:, start] * 2 - 1  # 1x1
        told = read.vision_input[:, start + 1] * amplitude(0)
        return float((torch.sign(told) != truth).float().mean())

    steady = BitFlips(low=0.1, high=0.1, growth=0.1)
    shares = [share(frame, steady) for frame in range(4)]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.08)
    assert share(3, BitFlips(low=0.5, high=0.5, growth=0.5)) == pytest.approx(0.5, abs=0.08)
    with pytest.raises(ConfigError, match="low must not be above high"):
        BitFlips.parse({"low": 0.3, "high": 0.2})


def test_the_stored_latent_is_what_the_tokenizer_quantized():
    torch.manual_seed(0)
    config = VisionTokenizerConfig(channels=8, bits=6, low_bits=(), image_size=16, scales=SCALES, frames=2)
    frames = torch.rand(1, 2, 3, 16, 16)
    with torch.no_grad():
        tokenizer = VisionTokenizer(config).eval()
        latent = tokenizer.latent(frames)
    batch = batch_of([latent])
    held = batch.latent[0, 2:].unflatten(0, (2, 21))[:, 5:].unflatten(1, (4, 4))
    torch.testing.assert_close(held, latent[0], atol=2e-3, rtol=2e-3)
    assert not batch.latent[0, 2:].unflatten(0, (2, 21))[:, :5].any()
    bits = tokenizer.encode(frames)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(quantize(latent, SCALES), bits, strict=True))
    assert upsample(accumulate(bits)[0][1].flatten(0, 1), 4).shape == (2, 4, 4, 6)


def test_code_noise_changes_what_is_read_and_not_what_is_predicted(tmp_path):
    shards = write_shards(tmp_path / "shards")
    batch = next(ShardLoader(shards, "train", batch=24, seed=0))
    shape = model_config(tiny_config(), read_meta(shards))
    noisy = corrupt_codes(batch, 0.5, shape, torch.Generator().manual_seed(0))
    audio = batch.codes >= 0
    assert torch.equal(noisy.codes >= 0, audio) and noisy.codes.max() < shape.audio_codebook
    share = (noisy.codes != batch.codes)[audio].float().mean().item()
    assert 0.5 * (1 - 1 / shape.audio_codebook) == pytest.approx(share, abs=0.08)
    assert torch.equal(noisy.target_codes, batch.target_codes) and torch.equal(noisy.token, batch.token)
