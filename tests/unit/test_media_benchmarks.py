"""The benchmarks of the vision tokenizer: speed beside WebP, and the table of held-out pictures by bit budget."""

import json
from pathlib import Path

import pytest
import torch

from accordion.data.tokenizers.vision_fit import Pictures
from benchmarks import media_tokenizers, vision_quality


def test_media_tokenizers_are_measured_beside_webp() -> None:
    pictures = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = media_tokenizers.vision(pictures, repeats=1)
    assert [row.figure.removeprefix("vision: ") for row in rows] == list(media_tokenizers.FIGURES)
    assert all(row.ours_values[0] > 0 and row.peer_values[0] > 0 for row in rows)


def test_the_vision_table_is_trained_from_packed_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = torch.Generator().manual_seed(0)
    parts = {
        split: Pictures(*(torch.randint(256, shape, dtype=torch.uint8, generator=draw)
                          for shape in ((4, 3, 32, 32), (4, 4, 3, 32, 32))))
        for split in ("train", "val")
    }  # fmt: skip
    vision_quality.pack(parts, tmp_path / "pictures.safetensors")
    small = ["steps=2", "batch=4", "channels=8", "losses.perceptual=0"]
    vision_quality.main(
        ["--pictures", str(tmp_path / "pictures.safetensors"), "--set", *small, "--json", str(tmp_path / "found.json")]
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["config"]["channels"] == 8 and len(found["image"]["budgets"]) == 12
    assert "16 held-out frames" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="did you mean 'bits'"):
        vision_quality.main(["--pictures", str(tmp_path / "pictures.safetensors"), "--set", "bitts=3"])
