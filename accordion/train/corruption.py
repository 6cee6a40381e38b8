"""What is changed in the history that a model reads in training, so that it can go on from its own mistakes.

Audio codes are replaced at random. Of images and video, history bits are flipped, and what is to be predicted is
corrected: the residual that the flipped scales leave is quantized again, so that later scales learn to mend earlier
ones (VideoAR, arXiv 2601.05966; foundation model, section 3).
"""

from dataclasses import replace

import torch
from torch import Tensor

from accordion.config.pretrain import BitFlips, ModelConfig
from accordion.data.batch import IMAGE, VIDEO, Batch
from accordion.data.tokenizers.vision import add_scale, downsample
from accordion.train.ranks import Ranks

ALONE = Ranks()


def corrupt_codes(
    batch: Batch, chance: float, shape: ModelConfig, generator: torch.Generator, ranks: Ranks = ALONE
) -> Batch:
    """Replace each audio code that the model reads (not those it predicts) by a random one, with `chance`.

    It is to audio what flipping history bits is to vision: the model learns not to trust its own past to the letter,
    and cannot learn a small collection of clips by heart. Chance is drawn for the rows of all `ranks`.
    """
    if chance == 0:
        return batch
    whole, rows = (ranks.count * len(batch), *batch.codes.shape[1:]), ranks.part(len(batch))
    drawn = torch.randint(shape.audio_codebook, whole, generator=generator)[rows].to(batch.codes.device)
    hit = (torch.rand(whole, generator=generator)[rows] < chance).to(batch.codes.device)
    return replace(batch, codes=torch.where(hit & (batch.codes >= 0), drawn, batch.codes))


def flip_bits(
    batch: Batch, flips: BitFlips, shape: ModelConfig, generator: torch.Generator, ranks: Ranks = ALONE
) -> Batch:
    """Flip bits of the images and clips that the model reads, and correct what it is to predict of them.

    Each frame t draws one chance p ~ U(low + growth t, high + growth t), at most a half. Scale k predicts the signs of
    what the flipped scales before it leave of the latent: R_k = sign(down(latent - sum_{i<k} up(R~_i), h_k)), where
    R~_i is R_i with each bit flipped with chance p; the input of scale k is down(sum_{i<k} up(R~_i), h_k), and that of
    a later frame's first scale is what the flipped frame before it came to. Chance is drawn for the frames of all
    `ranks`.
    """
    if flips.high == 0:
        return batch
    cells = sum(side * side for side in shape.scales)
    vision = ((batch.modality == IMAGE) | (batch.modality == VIDEO)) & (batch.scale >= 0)
    at = vision.view(-1).nonzero().squeeze(1).view(-1, cells)  # (F, cells): frames are whole, in order
    before, total = ranks.share(len(at))
    if not total:
        return batch

    def uniform(*shape: int) -> Tensor:
        return torch.rand(total, *shape, generator=generator)[before : before + len(at)].to(at.device)

    side, width = shape.scales[-1], batch.latent.shape[-1]
    if not len(at):
        uniform()
        for height in shape.scales:
            uniform(height, height, width)
        return batch
    frame = batch.frame.view(-1)[at[:, 0]]  # (F,)
    latent = batch.latent.view(-1, width)[at[:, -side * side :]].unflatten(1, (side, side))
    low = flips.low + flips.growth * frame
    chance = (low + uniform() * (flips.high - flips.low)).clamp_max(0.5)
    read = torch.zeros_like(latent)  # what the flipped scales come to
    inputs, wanted = [], []
    for scale, height in enumerate(shape.scales):
        inputs.append(downsample(read, height).flatten(1, 2))
        bits = (downsample(latent - read, height) > 0).to(latent.dtype)
        flipped = uniform(*bits.shape[1:]) < chance.view(-1, 1, 1, 1)
        wanted.append(bits.flatten(1, 2))
        read = add_scale(read, torch.where(flipped, 1 - bits, bits), scale)
    inputs[0] = torch.zeros_like(inputs[0])
    later = (frame > 0).nonzero().squeeze(1)
    inputs[0][later] = downsample(read, shape.scales[0]).flatten(1, 2)[later - 1]
    return replace(
        batch,
        vision_input=_put(batch.vision_input, at, torch.cat(inputs, 1)),
        target_bits=_put(batch.target_bits, at, torch.cat(wanted, 1)),
    )


def _put(column: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """A copy of a column (B, S, D) with values (F, cells, D) at the flat positions `at` (F, cells)."""
    return column.flatten(0, 1).index_copy(0, at.flatten(), values.flatten(0, 1)).view_as(column)
