"""What a vision tokenizer keeps of held-out pictures: PSNR, SSIM, feature distances, and how its bits are used.

Legend: B batch, T frames, N = B x T, D bits of a token, h side of a scale.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.data.tokenizers.vision_features import Features, feature_distance

CHUNK = 64  # clips at a time
COMPARED = 128  # frames whose features are compared; more would cost time and change little


@torch.no_grad()
def measure(model: VisionTokenizer, frames: Tensor, features: Features) -> dict[str, Any]:
    """Figures of held-out frames (B,T,3,H,W), uint8, each decoded from every budget.

    Returns:
        `psnr` (dB, over all pixels), `ssim`, `feature_distance` and `frechet_distance` (of EfficientNet-Lite0) with
        all bits; the same by budget in `budgets`, with `bits` of a token, `scales`, and `bits_per_frame`;
        `psnr_by_scales` with all bits of the first k scales; and `usage` of the bits (`code_usage`).
    """
    clips = frames.float() / 255
    parts = [model.encode(part) for part in clips.split(CHUNK)]
    bits = [torch.cat(grids) for grids in zip(*parts, strict=True)]
    compared = _spread(clips.flatten(0, 1), COMPARED)
    target = _features(features, compared)
    budgets = []
    for depth in model.config.budgets:
        for scales in range(1, len(bits) + 1):
            told = [grid[..., :depth] for grid in bits[:scales]]
            restored = torch.cat([model.decode(part) for part in _chunks(told)])
            figures = compare(clips.flatten(0, 1), restored.flatten(0, 1))
            if scales == len(bits):  # the features of coarser pictures say little and cost most
                seen = _features(features, _spread(restored.flatten(0, 1), COMPARED))
                figures |= {"feature_distance": float(feature_distance(seen, target).double().mean()),
                            "frechet_distance": frechet_distance(_pooled(seen), _pooled(target))}  # fmt: skip
            size = depth * sum(side * side for side in model.config.scales[:scales])
            budgets.append({"bits": depth, "scales": scales, "bits_per_frame": size, **figures})
    whole = budgets[-1]
    return {
        **{name: whole[name] for name in ("psnr", "ssim", "feature_distance", "frechet_distance")},
        "psnr_by_scales": [row["psnr"] for row in budgets if row["bits"] == model.config.bits],
        "budgets": budgets,
        **code_usage(bits),
        "frames": int(clips.shape[0] * clips.shape[1]),
    }


def compare(originals: Tensor, restored: Tensor) -> dict[str, float]:
    """PSNR in dB over all pixels, and mean SSIM, of frames (N,3,H,W) in [0,1]."""
    error = float((originals - restored).double().square().mean())
    pairs = zip(originals.split(CHUNK), restored.split(CHUNK), strict=True)
    similar = torch.cat([ssim(left, right) for left, right in pairs])
    return {"psnr": -10 * math.log10(max(error, 1e-10)), "ssim": float(similar.double().mean())}


def ssim(left: Tensor, right: Tensor) -> Tensor:
    """Structural similarity of frames (N,C,H,W) in [0,1], (N,): mean over channels and places.

    Gaussian window of 11 pixels and sigma 1.5, constants 0.01^2 and 0.03^2, places whose window lies inside
    (Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861, equation 13).
    """
    channels = left.shape[1]
    line = torch.exp(-((torch.arange(11, device=left.device) - 5.0) ** 2) / (2 * 1.5**2))
    rows = (line / line.sum()).view(1, 1, 11, 1).expand(channels, 1, 11, 1)

    def smooth(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, rows, groups=channels), rows.mT, groups=channels)

    a, b = smooth(left), smooth(right)
    variance_a, variance_b = smooth(left * left) - a * a, smooth(right * right) - b * b
    covariance = smooth(left * right) - a * b
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * a * b + c1) * (2 * covariance + c2) / ((a * a + b * b + c1) * (variance_a + variance_b + c2))
    return score.mean((1, 2, 3))


def frechet_distance(left: Tensor, right: Tensor) -> float:
    """Distance of two sets of features (N,C) as Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The form of FID (arXiv 1706.08500, equation 6). The trace of the root comes from the eigenvalues of
    C1^(1/2) C2 C1^(1/2), which is symmetric, so that singular covariances of few samples are no trouble.
    """
    left, right = left.double(), right.double()
    gap = (left.mean(0) - right.mean(0)).square().sum()
    first, second = (torch.cov(side.T, correction=0) for side in (left, right))
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return max(float(gap + first.trace() + second.trace() - 2 * shared), 0.0)


def code_usage(bits: Sequence[Tensor]) -> dict[str, Any]:
    """How the bits (B,T,h,h,D) of each scale are used.

    Returns:
        `bit_entropy`: mean entropy of a bit in bits, 1 is best; `dead_bits`: bits of a token that are always or
        never set (under 0.1 % the other way), over all scales; both again `..._by_scale`; and `code_entropy_by_scale`:
        entropy of the whole token in bits, as far as the number of tokens lets it show.
    """
    grids = [grid.flatten(0, 3) for grid in bits]  # (tokens, D)
    entropy, dead = _usage(torch.cat(grids))
    by_scale = [_usage(grid) for grid in grids]
    return {
        "bit_entropy": entropy,
        "dead_bits": dead,
        "bit_entropy_by_scale": [found for found, _ in by_scale],
        "dead_bits_by_scale": [found for _, found in by_scale],
        "code_entropy_by_scale": [_code_entropy(grid) for grid in grids],
    }


def _usage(tokens: Tensor) -> tuple[float, int]:
    share = tokens.double().mean(0)  # (D,)
    dead = (share < 0.001) | (share > 0.999)
    share = share.clamp(1e-12, 1 - 1e-12)
    entropy = -(share * share.log2() + (1 - share) * (1 - share).log2())
    return float(entropy.mean()), int(dead.sum())


def _code_entropy(tokens: Tensor) -> float:
    """Entropy in bits of the tokens (n, D) as whole codes."""
    powers = 2 ** torch.arange(tokens.shape[1], device=tokens.device)
    share = torch.unique((tokens.long() * powers).sum(1), return_counts=True)[1].double() / len(tokens)
    return float(-(share * share.log2()).sum())


def _spread(frames: Tensor, most: int) -> Tensor:
    """At most `most` frames, evenly spread."""
    return frames[:: math.ceil(len(frames) / most)]


def _chunks(bits: Sequence[Tensor]) -> list[list[Tensor]]:
    return [list(part) for part in zip(*(grid.split(CHUNK) for grid in bits), strict=True)]


def _features(net: Features, frames: Tensor) -> list[Tensor]:
    parts = [net(part) for part in frames.split(CHUNK)]
    return [torch.cat(layers) for layers in zip(*parts, strict=True)]


def _pooled(layers: list[Tensor]) -> Tensor:
    """The last layer's features averaged over places, (N,C)."""
    return layers[-1].mean((2, 3))
