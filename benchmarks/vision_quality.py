"""Train the vision tokenizer with one profile's settings and print what is left of held-out pictures, by bit budget.

    python -m benchmarks.vision_quality --corpus FOLDER --profile workstation [--set KEY=VALUE ...]
    python -m benchmarks.vision_quality --corpus FOLDER --pack pictures.safetensors
    python -m benchmarks.vision_quality --pictures pictures.safetensors --profile workstation --minutes 4

Trains on a GPU if there is one. FOLDER is a corpus as the stage ingest writes it (images.parquet, video.parquet).
`--pack` writes its pictures to one file, for a machine that has PyTorch but none of the readers of media.
`--minutes` measures the speed of a step first and sets the number of steps that fit.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from accordion.config.data import VisionTokenizerConfig
from accordion.data.tokenizers.vision_features import Features
from accordion.data.tokenizers.vision_fit import Pictures, fit
from accordion.data.tokenizers.vision_metrics import measure
from accordion.device import training_device
from accordion.errors import AccordionError, ConfigError

PROBE = 40  # steps that the speed of a step is measured on
FIGURES = ("bits", "scales", "bits_per_frame", "psnr", "ssim", "feature_distance", "frechet_distance")
Split = Mapping[str, Pictures]


def main(arguments: list[str] | None = None) -> None:
    """Run one command line."""
    wanted = parser().parse_args(arguments)
    try:
        config = settings(wanted.profile, wanted.set)
        pictures = unpack(wanted.pictures) if wanted.pictures else read(wanted.corpus, config)
        if wanted.pack:
            pack(pictures, wanted.pack)
            return
        if wanted.minutes:
            config = config.model_copy(update={"steps": steps_within(wanted.minutes * 60, config, pictures["train"])})
        started = time.monotonic()
        model, loss = fit(config, pictures["train"])
        seconds = time.monotonic() - started
    except AccordionError as error:
        sys.exit(f"vision_quality: {error}")
    held, features = pictures["val"], Features()
    found = {"image": measure(model, held.images.unsqueeze(1), features), "video": measure(model, held.clips, features)}
    show(found)
    name = torch.cuda.get_device_name() if training_device().type == "cuda" else "CPU"
    print(f"{config.steps} steps of {config.batch} frames in {seconds:.1f} s on {name}; loss {loss}")
    if wanted.save:
        wanted.save.mkdir(parents=True, exist_ok=True)
        model.save(wanted.save)
    if wanted.json:
        document = {"config": config.model_dump(), "device": name, "seconds": seconds, "loss": loss, **found}
        wanted.json.write_text(json.dumps(document, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="vision_quality", description=__doc__.splitlines()[0] if __doc__ else None)
    source = found.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", type=Path, help="folder that the stage ingest wrote")
    source.add_argument("--pictures", type=Path, help="file that --pack wrote")
    found.add_argument("--profile", default="workstation", help="configs/NAME.yaml, its section tokenizers.vision")
    found.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that replace the profile's")
    found.add_argument("--minutes", type=float, help="train about so long instead of the profile's steps")
    found.add_argument("--pack", type=Path, help="write the pictures to this file and stop")
    found.add_argument("--save", type=Path, help="folder for the trained tokenizer")
    found.add_argument("--json", type=Path, help="file for every figure")
    return found


def settings(profile: str, changes: list[str]) -> VisionTokenizerConfig:
    """The profile's section with `KEY=VALUE` changes; `losses.KEY` for those of the losses.

    Raises:
        ConfigError: no such profile, key or value.
    """
    path = Path(__file__).parents[1] / "configs" / f"{profile}.yaml"
    if not path.is_file():
        raise ConfigError(f"--profile {profile}: no {path}")
    values: dict[str, Any] = (yaml.safe_load(path.read_text()).get("tokenizers") or {}).get("vision") or {}
    for change in changes:
        key, sign, value = change.partition("=")
        if not sign:
            raise ConfigError(f"--set {change}: wants KEY=VALUE")
        at = values
        for part in key.split(".")[:-1]:
            at = at.setdefault(part, {})
        at[key.rpartition(".")[2]] = yaml.safe_load(value)
    return VisionTokenizerConfig.parse(values, "tokenizers.vision")


def read(corpus: Path, config: VisionTokenizerConfig) -> dict[str, Pictures]:
    """Both splits of a corpus."""
    from accordion.data.tokenizers.vision_training import load_pictures  # needs the readers of media

    return {split: load_pictures(corpus, split, config) for split in ("train", "val")}


def pack(pictures: Split, file: Path) -> None:
    """Write both splits to one file."""
    save_file({f"{split}.{name}": getattr(part, name).contiguous()
               for split, part in pictures.items() for name in ("images", "clips")}, file)  # fmt: skip
    print(f"written: {file}, {file.stat().st_size / 1e6:.1f} MB")


def unpack(file: Path) -> dict[str, Pictures]:
    """Read what `pack` wrote."""
    stored = load_file(file)
    return {split: Pictures(stored[f"{split}.images"], stored[f"{split}.clips"]) for split in ("train", "val")}


def steps_within(seconds: float, config: VisionTokenizerConfig, pictures: Pictures) -> int:
    """Steps that fit into `seconds`, by the speed of a few of them with every loss heard from the first."""
    losses = config.losses.model_copy(update={"adversarial_start": 0.0})
    probe = config.model_copy(update={"steps": PROBE, "losses": losses})
    fit(probe, pictures)  # the first run also pays for starting the device
    started = time.monotonic()
    fit(probe, pictures)
    return max(int(seconds * PROBE / (time.monotonic() - started)), PROBE)


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of budgets for images and clips, and how the bits are used."""
    for name, figures in found.items():
        print(f"\n{name}: {figures['frames']} held-out frames\n" + "  ".join(f"{key:>17}" for key in FIGURES))
        for row in figures["budgets"]:
            cells = [row.get(key) for key in FIGURES]
            print("  ".join(f"{'' if cell is None else format(cell, '.4g'):>17}" for cell in cells))
        for key in ("bit_entropy_by_scale", "dead_bits_by_scale", "code_entropy_by_scale"):
            print(f"{key}: {[round(value, 3) for value in figures[key]]}")


if __name__ == "__main__":
    main()
