"""Tables on the vision tokenizer: what is left of held-out pictures by bit budget, and how its bits are used."""

from collections.abc import Mapping
from typing import Any

from accordion.report.section import Table

NAMES = {"image": "images", "video": "clip frames"}


def vision_tables(figures: Mapping[str, Any]) -> list[Table]:
    """The budgets and the code usage of one run's vision tokenizer; empty for a run that did not measure them."""
    parts = {name: figures[name] for name in NAMES if "budgets" in figures.get(name, {})}
    if not parts:
        return []
    budgets = [
        (
            NAMES[name],
            row["bits_per_frame"],
            row["bits"],
            row["scales"],
            f"{row['psnr']:.2f}",
            f"{row['ssim']:.3f}",
            *(f"{row[key]:.3f}" if key in row else "" for key in ("feature_distance", "frechet_distance")),
        )
        for name, part in parts.items()
        for row in part["budgets"]
    ]
    usage = [
        (NAMES[name], scale + 1, f"{entropy:.3f}", part["dead_bits_by_scale"][scale], f"{code:.2f}")
        for name, part in parts.items()
        for scale, (entropy, code) in enumerate(
            zip(part["bit_entropy_by_scale"], part["code_entropy_by_scale"], strict=True)
        )
    ]
    return [
        Table(
            caption="Held-out pictures after encoding and decoding, by bit budget. The last two columns compare "
            "features of EfficientNet-Lite0 (ImageNet): their mean distance (in the form of LPIPS, uncalibrated) and "
            "their Fréchet distance (in the form of FID); lower is better, and they compare only with themselves.",
            header=("pictures", "bits a frame", "bits a token", "scales", "PSNR (dB)", "SSIM", "distance", "Fréchet"),
            rows=budgets,
            words=("pictures",),
        ),
        Table(
            caption="How the bits of each scale are used: mean entropy of a bit (1 is best), bits of a token that are "
            "always or never set, and entropy of the whole token in bits.",
            header=("pictures", "scale", "bit entropy", "dead bits", "token entropy"),
            rows=usage,
            words=("pictures",),
        ),
    ]
