"""Figures of the vision tokenizer: PSNR, SSIM against an independent computation, Frechet distance, code usage."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from accordion.config.data import VisionTokenizerConfig
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.data.tokenizers.vision_features import Features
from accordion.data.tokenizers.vision_metrics import code_usage, compare, frechet_distance, measure, ssim


def reference_ssim(left: np.ndarray, right: np.ndarray) -> float:
    """SSIM of (H,W) in [0,1] with scipy's Gaussian filter of the same radius, away from the border."""

    def smooth(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5]

    a, b = smooth(left), smooth(right)
    va, vb, cov = smooth(left**2) - a**2, smooth(right**2) - b**2, smooth(left * right) - a * b
    score = (2 * a * b + 1e-4) * (2 * cov + 9e-4) / ((a**2 + b**2 + 1e-4) * (va + vb + 9e-4))
    return float(score.mean())


def test_ssim_agrees_with_an_independent_computation() -> None:
    draw = np.random.default_rng(0)
    left = draw.random((3, 32, 32))
    right = np.clip(left + 0.2 * draw.standard_normal((3, 32, 32)), 0, 1)
    expected = np.mean([reference_ssim(a, b) for a, b in zip(left, right, strict=True)])
    found = ssim(torch.tensor(left)[None].float(), torch.tensor(right)[None].float())
    assert float(found) == pytest.approx(expected, abs=1e-4)
    assert float(ssim(torch.tensor(left)[None].float(), torch.tensor(left)[None].float())) == pytest.approx(1, abs=1e-6)


def test_psnr_is_over_all_pixels() -> None:
    originals = torch.zeros(2, 3, 32, 32)
    restored = originals.clone()
    restored[1] = 0.1
    assert compare(originals, restored)["psnr"] == pytest.approx(-10 * math.log10(0.01 / 2), abs=1e-4)
    assert compare(originals, originals)["psnr"] == pytest.approx(100)


def test_frechet_distance_of_gaussians() -> None:
    draw = np.random.default_rng(0)
    left = draw.standard_normal((50, 6)) @ draw.standard_normal((6, 6))
    right = draw.standard_normal((40, 6)) + 0.5
    cov_l, cov_r = np.cov(left.T, bias=True), np.cov(right.T, bias=True)
    gap = ((left.mean(0) - right.mean(0)) ** 2).sum()
    expected = gap + np.trace(cov_l + cov_r - 2 * sqrtm(cov_l @ cov_r).real)
    assert frechet_distance(torch.tensor(left), torch.tensor(right)) == pytest.approx(expected, rel=1e-6)
    few = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))  # a singular covariance
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_usage_finds_dead_bits_and_counts_whole_codes() -> None:
    fine = torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)
    fine[..., 0] = (torch.arange(64) % 2).view(8, 8)
    fine[..., 1] = fine[..., 0]
    coarse = torch.zeros(1, 1, 1, 1, 3, dtype=torch.uint8)
    usage = code_usage([coarse, fine])
    assert usage["dead_bits"] == 1 and usage["dead_bits_by_scale"] == [3, 1]
    assert usage["bit_entropy_by_scale"][1] == pytest.approx(2 / 3, abs=1e-6)
    assert usage["code_entropy_by_scale"][1] == pytest.approx(1.0)  # two codes, though two bits change


def test_every_budget_is_measured() -> None:
    torch.manual_seed(0)
    config = VisionTokenizerConfig(channels=8, bits=6, low_bits=(4,))
    frames = torch.randint(256, (3, 2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = measure(VisionTokenizer(config).eval(), frames, Features())
    assert [(row["bits"], row["scales"]) for row in found["budgets"]] == [(b, k) for b in (4, 6) for k in (1, 2, 3, 4)]
    assert [row["bits_per_frame"] for row in found["budgets"]][3:5] == [340, 6]
    assert found["psnr"] == found["psnr_by_scales"][-1] == found["budgets"][-1]["psnr"]
    assert found["feature_distance"] > 0 and found["frechet_distance"] > 0 and found["frames"] == 6
