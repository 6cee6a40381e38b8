"""Seeing: features of an image or a clip that is given, for understanding it, on two paths and merged by attention.

One path is what the vision tokenizer's CNN says of a patch before quantization, the other a ViT over the pixels of the
frame (it learns with the backbone: there is no pre-trained one here). K neighbouring patches (2 x 2 of an image, 2 x 2
over 4 frames of a clip) give 2K vectors; they attend to each other, their mean is projected to one position of the
backbone (ERNIE 5.0, arXiv 2602.04705: no MLP merges patches; foundation model, section 2).

Legend: F frames with something to see, C patches of a frame, W width, K patches of a position.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accordion.config.pretrain import ModelConfig
from accordion.data.batch import LOOK_FRAMES, PATCH_PIXELS, VIDEO, Batch
from accordion.model.norm import RmsNorm

NEAR = 4  # neighbouring patches of a frame that are merged


class _Block(nn.Module):
    """Pre-norm self-attention and a GELU network over sets of vectors (n, length, W); every one sees every other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 32)
        self.norm_attention, self.norm_network = RmsNorm(width), RmsNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (n, heads, length, D)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_network(x))))


class Understanding(nn.Module):
    """Puts what is seen into the positions of a batch that look at patches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.cells = config.vit_width, config.scales[-1] ** 2
        self.pixels = nn.Linear(PATCH_PIXELS, width, bias=False)
        self.place = nn.Parameter(torch.empty(self.cells, width))
        self.vit = nn.ModuleList(_Block(width) for _ in range(config.vit_layers))
        self.norm_vit = RmsNorm(width)
        self.cnn = nn.Linear(config.bits, width, bias=False)
        self.slot = nn.Parameter(torch.empty(2, LOOK_FRAMES * NEAR, width))  # which path, which neighbour
        self.merge = _Block(width)
        self.norm_merge = RmsNorm(width)
        self.project = nn.Linear(width, config.hidden, bias=False)

    def forward(self, batch: Batch, x: Tensor) -> Tensor:
        """Input states (B, S, H) with those of looking positions replaced by what they see."""
        looking = batch.patch >= 0  # (B, S)
        at = looking.view(-1).nonzero().squeeze(1)
        if not len(at):
            return x
        rows, first = at // looking.shape[1], batch.patch.view(-1)[at]
        frame = first // self.cells  # of the sequence's table
        video = batch.modality.view(-1)[at] == VIDEO
        frames = batch.patch_pixels.shape[1] // self.cells
        used = torch.zeros(len(looking), frames, dtype=torch.bool, device=x.device)
        used[rows, frame] = True
        for later in range(1, LOOK_FRAMES):
            used[rows[video], frame[video] + later] = True
        known, seen = self._features(batch, used)  # each (F, C, W)
        number = (used.view(-1).cumsum(0) - 1).view_as(used)  # of each used frame among them
        start = number[rows, frame] * self.cells + first % self.cells
        found = x.new_zeros(len(at), x.shape[-1])
        for kind, depth in ((~video, 1), (video, LOOK_FRAMES)):
            if bool(kind.any()):
                offset = torch.arange(depth, device=x.device).unsqueeze(1) * self.cells
                near = (offset + torch.arange(NEAR, device=x.device)).flatten()  # (K,)
                found[kind] = self._merged(known, seen, start[kind].unsqueeze(1) + near).to(x.dtype)
        return x.view(-1, x.shape[-1]).index_copy(0, at, found).view_as(x)

    def _features(self, batch: Batch, used: Tensor) -> tuple[Tensor, Tensor]:
        """CNN and ViT features (F, C, W) of the frames `used` (B, frames) of the tables."""
        size = used.shape[1] * self.cells
        latent = batch.patch_latent[:, :size].unflatten(1, (-1, self.cells))[used]
        pixels = batch.patch_pixels[:, :size].unflatten(1, (-1, self.cells))[used]
        x = self.pixels(pixels.to(self.place.dtype) / 127.5 - 1) + self.place
        for block in self.vit:
            x = block(x)
        return self.cnn(latent), self.norm_vit(x)

    def _merged(self, known: Tensor, seen: Tensor, near: Tensor) -> Tensor:
        """One vector (n, H) from the patches `near` (n, K), indices into the frames' patches."""
        slot = self.slot[:, : near.shape[1]]
        both = [part.flatten(0, 1)[near] + slot[path] for path, part in enumerate((known, seen))]
        return self.project(self.norm_merge(self.merge(torch.cat(both, 1)).mean(1)))


def understanding_parameters(config: ModelConfig) -> int:
    """Parameters of `Understanding`; 0 where the model has none."""
    if not config.vit_layers:
        return 0
    width = config.vit_width
    block = 8 * width**2 + 2 * width
    table = (config.scales[-1] ** 2 + 2 * LOOK_FRAMES * NEAR) * width
    return (
        (config.vit_layers + 1) * block + table + (PATCH_PIXELS + config.bits) * width + 2 * width
        + width * config.hidden
    )  # fmt: skip
