"""Vision tokenizer: causal multi-scale residual codes of sign bits; an image is a one-frame video.

The encoder maps a frame to a latent of `side x side x bits`. Scale by scale, from 1x1 to the full side,
the residual of what is already explained is pooled to that scale and reduced to its signs (lookup-free
quantization, LFQ, arXiv 2310.05737; next-scale residuals, arXiv 2404.02905; foundation model, sections 2 and 3).
Scale k adds its bits with the fixed amplitude 2^(-k/2), so that `accumulate` needs no parameters and is
shared by the tokenizer, packing and generation. With binary spherical quantization (BSQ, arXiv 2406.07548) the
latent lies on the unit sphere and a bit is +-1/sqrt(D); here all is times sqrt(D), so that `accumulate` stays the same.

A token has several budgets: its first bits are a code of their own (low-bit first, then more bits). Channels of
a later budget never change what an earlier one says, and what is not sent, bits or scales, is zero to the decoder.

Convolutions are 2D ones inflated to causal 3D: the last temporal slice is the 2D kernel, the others act on
earlier frames and start at zero. Frames before the first do not exist and add nothing, so a one-frame
clip gives exactly the image result, whatever the kernels learn: the kernels of earlier frames are not applied to it.

Legend: B batch, T frames, C channels, H W pixels, D bits of a token, h side of a scale.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accordion.config.data import VisionTokenizerConfig
from accordion.errors import ArtifactError, DataError

PATCH = 4  # pixels of a latent cell's side


def amplitude(scale: int) -> float:
    """How much a bit of scale index `scale` adds to the accumulated feature: 2^(-scale/2)."""
    return 2.0 ** (-scale / 2)


def upsample(grid: Tensor, side: int) -> Tensor:
    """Spread (N,h,h,D) to (N,side,side,D), bilinear and centre-aligned."""
    if grid.shape[1] == side:
        return grid
    wide = F.interpolate(grid.movedim(-1, 1), size=(side, side), mode="bilinear", align_corners=False)
    return wide.movedim(1, -1)


def downsample(grid: Tensor, side: int) -> Tensor:
    """Pool (N,h,h,D) to (N,side,side,D) by the mean over each area."""
    if grid.shape[1] == side:
        return grid
    return F.adaptive_avg_pool2d(grid.movedim(-1, 1), side).movedim(1, -1)


def add_scale(accumulated: Tensor, bits: Tensor, scale: int) -> Tensor:
    """Add the bits (N,h,h,D) of one scale to the accumulated feature (N,side,side,D)."""
    return accumulated + amplitude(scale) * upsample(bits.to(accumulated.dtype) * 2 - 1, accumulated.shape[1])


def accumulate(bits: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The input of each scale and the final latent, from the bits alone (foundation model, section 3).

    F_k = down(sum over i<k of up(R_i), h_k). The first scale of frame 1 gets zeros, of a later frame the
    accumulated feature of the frame before it, pooled to 1x1.

    Args:
        bits: for each scale, coarse to fine, (B,T,h,h,D) in {0, 1}.

    Returns:
        for each scale the float32 input (B,T,h,h,D), and the accumulated latent (B,T,side,side,D).
    """
    count, frames, side, _, depth = bits[-1].shape
    accumulated = torch.zeros(count * frames, side, side, depth, device=bits[-1].device)
    inputs = []
    for scale, grid in enumerate(bits):
        height = grid.shape[2]
        inputs.append(downsample(accumulated, height).unflatten(0, (count, frames)))
        accumulated = add_scale(accumulated, grid.flatten(0, 1), scale)
    latent = accumulated.unflatten(0, (count, frames))
    first = bits[0].shape[2]
    inputs[0] = torch.zeros_like(inputs[0])
    if frames > 1:
        inputs[0][:, 1:] = downsample(latent[:, :-1].flatten(0, 1), first).unflatten(0, (count, frames - 1))
    return inputs, latent


def quantize(latent: Tensor, scales: Sequence[int]) -> list[Tensor]:
    """Signs of the residual at each scale: (B,T,side,side,D) -> for each scale uint8 (B,T,h,h,D)."""
    count, frames = latent.shape[:2]
    residual = latent.flatten(0, 1)
    bits = []
    for scale, height in enumerate(scales):
        grid = (downsample(residual, height) > 0).to(torch.uint8)
        residual = add_scale(residual, 1 - grid, scale)  # adding the opposite signs subtracts the code
        bits.append(grid.unflatten(0, (count, frames)))
    return bits


def assemble(bits: Sequence[Tensor], side: int, depth: int) -> Tensor:
    """The latent (B,T,side,side,depth) of the bits of the first scales; scales and channels not given add nothing."""
    count, frames = bits[0].shape[:2]
    latent = torch.zeros(count * frames, side, side, bits[0].shape[-1], device=bits[0].device)
    for scale, grid in enumerate(bits):
        latent = add_scale(latent, grid.flatten(0, 1), scale)
    return F.pad(latent, (0, depth - latent.shape[-1])).unflatten(0, (count, frames))


class CausalConv(nn.Module):
    """A 3x3 convolution over (B,T,C,H,W) that also sees `memory` earlier frames.

    The kernel of the present frame is the 2D kernel; those of earlier frames start at zero (inflation)
    and are not applied where there is no earlier frame.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, memory: int = 1) -> None:
        super().__init__()
        self.present = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        kernels = [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False) for _ in range(memory)]
        for kernel in kernels:
            nn.init.zeros_(kernel.weight)
        self.past = nn.ModuleList(kernels)

    def forward(self, x: Tensor) -> Tensor:
        count, frames = x.shape[:2]
        out = self.present(x.flatten(0, 1)).unflatten(0, (count, frames))
        for back, kernel in enumerate(self.past, 1):
            if frames > back:
                seen = kernel(x[:, :-back].flatten(0, 1)).unflatten(0, (count, frames - back))
                out = torch.cat([out[:, :back], out[:, back:] + seen], dim=1)
        return out


class Block(nn.Module):
    """Residual block of two causal convolutions; the norm is within a frame, so it stays causal."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.first = CausalConv(channels, channels)
        self.second = CausalConv(channels, channels, memory=0)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        return x + self.second(F.silu(self.first(hidden)))


class VisionTokenizer(nn.Module):
    """Frames to bits and back.

    Args:
        config: sizes; `image_size` must be four times the last of `scales`.
    """

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        if config.image_size != PATCH * config.scales[-1] or list(config.scales) != sorted(set(config.scales)):
            raise DataError(
                f"tokenizers.vision: image_size {config.image_size} and scales {config.scales} do not fit; "
                f"scales must grow and image_size must be {PATCH} times the last one"
            )
        self.config = config
        c = config.channels
        self.encoder = nn.Sequential(
            CausalConv(12, c), Block(c), CausalConv(c, 2 * c, stride=2), Block(2 * c), CausalConv(2 * c, config.bits)
        )
        self.decoder_in = nn.Sequential(CausalConv(config.bits, 2 * c), Block(2 * c), Block(2 * c))
        self.decoder_out = nn.Sequential(CausalConv(c, c), Block(c), CausalConv(c, 12, memory=0))
        self.widen = CausalConv(2 * c, 4 * c, memory=0)
        self._start_later_bits_unheard()

    def _start_later_bits_unheard(self) -> None:
        """The decoder gives no weight to bits of later budgets, so a switch to them changes nothing at first."""
        reader = self.decoder_in[0]
        assert isinstance(reader, CausalConv)
        nn.init.zeros_(reader.present.weight[:, self.config.budgets[0] :])

    def latent(self, frames: Tensor) -> Tensor:
        """Frames (B,T,3,H,W) in [0,1] -> unquantized latent (B,T,side,side,D)."""
        self._check(frames)
        packed = F.pixel_unshuffle(frames.flatten(0, 1) * 2 - 1, 2).unflatten(0, frames.shape[:2])
        latent: Tensor = self.encoder(packed).movedim(2, -1)
        return self._on_spheres(latent) if self.config.quantizer == "bsq" else latent

    def _on_spheres(self, latent: Tensor) -> Tensor:
        """Each budget's own channels on a sphere of their own: root mean square 1 (BSQ, section 3, times sqrt(D))."""
        budgets = (0, *self.config.budgets)
        sizes = [high - low for low, high in itertools.pairwise(budgets)]
        return torch.cat(
            [F.normalize(part, dim=-1) * part.shape[-1] ** 0.5 for part in latent.split(sizes, -1)], dim=-1
        )

    def pixels(self, latent: Tensor) -> Tensor:
        """Accumulated latent (B,T,side,side,D) -> frames (B,T,3,H,W), not clamped."""
        return self.paint(self.understand(latent))

    def understand(self, latent: Tensor) -> Tensor:
        """The decoder's first half: accumulated latent (B,T,side,side,D) -> features (B,T,2C,side,side)."""
        hidden: Tensor = self.decoder_in(latent.movedim(-1, 2))
        return hidden

    def paint(self, hidden: Tensor) -> Tensor:
        """The decoder's second half: features (B,T,2C,side,side) -> frames (B,T,3,H,W), not clamped."""
        shape = hidden.shape[:2]
        hidden = F.pixel_shuffle(self.widen(hidden).flatten(0, 1), 2).unflatten(0, shape)
        out = self.decoder_out(hidden)
        return (F.pixel_shuffle(out.flatten(0, 1), 2).unflatten(0, shape) + 1) / 2

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weights, at which the adversarial term is balanced."""
        last = self.decoder_out[-1]
        assert isinstance(last, CausalConv)
        return last.present.weight

    @torch.no_grad()
    def encode(self, frames: Tensor) -> list[Tensor]:
        """Frames (B,T,3,H,W) in [0,1] -> for each scale its bits, uint8 (B,T,h,h,D) in {0, 1}."""
        return quantize(self.latent(frames), self.config.scales)

    @torch.no_grad()
    def decode(self, bits: Sequence[Tensor]) -> Tensor:
        """Bits -> frames (B,T,3,H,W) in [0,1].

        Args:
            bits: (B,T,h,h,d) of the first scale or more of them, coarse to fine; d is any of the budgets.

        Raises:
            DataError: other scales, or a number of bits that is no budget.
        """
        scales, budgets = tuple(self.config.scales), self.config.budgets
        sides, depths = tuple(grid.shape[2] for grid in bits), {grid.shape[-1] for grid in bits}
        if not sides or sides != scales[: len(sides)] or len(depths) != 1 or not depths <= set(budgets):
            raise DataError(
                f"vision bits: scales {sides} of {sorted(depths)} bits; this tokenizer has scales {scales}, "
                f"of which the first ones may be given, and tokens of {' or '.join(map(str, budgets))} bits"
            )
        return self.pixels(assemble(bits, scales[-1], self.config.bits)).clamp(0, 1)

    def _check(self, frames: Tensor) -> None:
        size = self.config.image_size
        if frames.ndim != 5 or tuple(frames.shape[2:]) != (3, size, size) or not frames.shape[1]:
            raise DataError(
                f"frames of shape {tuple(frames.shape)}: wants (batch, frames, 3, {size}, {size}); "
                "resize the image first"
            )
        if not frames.is_floating_point():
            raise DataError(f"frames of type {frames.dtype}: wants floats in [0, 1]; divide bytes by 255")
        low, high = float(frames.min()), float(frames.max())
        if not (low >= 0 and high <= 1):
            raise DataError(f"frames between {low:g} and {high:g}: wants finite values in [0, 1]")

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into `folder`."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(self.config.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "VisionTokenizer":
        """Read what `save` wrote, in evaluation mode.

        Raises:
            ArtifactError: a file is missing, damaged, or does not fit the configuration.
        """
        model = cls(VisionTokenizerConfig.from_json(read_file(Path(folder) / "config.json", "train_vision_tokenizer")))
        load_weights(model, Path(folder) / "model.safetensors", "train_vision_tokenizer")
        return model.eval()


def read_file(path: Path, stage: str) -> str:
    """The text of one file of a tokenizer artifact; `stage` is what to run when it is missing."""
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; run the stage {stage}, or give its output folder")
    return path.read_text()


def load_weights(model: nn.Module, path: Path, stage: str) -> None:
    """Load safetensors weights strictly: every name, shape and type must fit.

    Raises:
        ArtifactError: the file is missing, damaged or of another model.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; run the stage {stage}, or give its output folder")
    try:
        held = load_file(path)
        wrong = [name for name, own in model.state_dict().items() if name in held and held[name].dtype != own.dtype]
        if wrong:
            raise ArtifactError(
                f"{path}: {wrong[0]} is {held[wrong[0]].dtype}, another type than here; run {stage} again"
            )
        model.load_state_dict(held, strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(f"{path}: does not fit its config.json, or damaged ({error}); run {stage} again") from None
