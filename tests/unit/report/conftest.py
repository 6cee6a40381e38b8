"""A run as its artifacts describe it, made up for these tests: figures of plausible size, real file formats."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from accordion.config.data import AudioTokenizerConfig, VisionTokenizerConfig
from accordion.data.expectations.statistics import Lengths, Statistics
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.evaluate.routing import GROUPS, describe, drift
from accordion.report.run import RunFigures
from accordion.report.summary import StageTiming

MODALITIES = ("text", "image", "video", "audio")
FULL = {"text": 4.012, "image": 0.611, "video": 0.583, "audio": 3.311}
UNIGRAM = {"text": 5.871, "image": 0.689, "video": 0.687, "audio": 3.902}


def interval(mean: float, count: int, half: float = 0.02) -> dict[str, Any]:
    return {"mean": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "count": count}


def examined(encoder: float, untrained: float, bm25: float, fusion: float, count: int) -> dict[str, Any]:
    systems = {"encoder": encoder, "untrained": untrained, "bm25": bm25, "fusion": fusion}
    figures: dict[str, Any] = {
        name: {
            "ndcg10": interval(value, count),
            "recall100": interval(min(1.0, value * 1.7), count),
            "mrr10": interval(value * 0.9, count),
        }
        for name, value in systems.items()
    }
    return figures | {"encoder_vs_untrained_p": 0.0004, "encoder_vs_bm25_p": 0.012}


def members() -> list[dict[str, Any]]:
    shapes = {
        "full": (8, 16, 4), "shallow": (6, 16, 4), "narrow": (8, 8, 4), "sparse": (8, 16, 2), "small": (6, 8, 2)
    }  # fmt: skip
    return [
        {
            "name": name,
            "layers": layers,
            "experts": experts,
            "top_k": top_k,
            "parameters": 400_000 * layers + 25_000 * layers * experts,
            "active_parameters": 200_000 * layers + 25_000 * layers * top_k,
            "val_loss": {m: FULL[m] * (1 + 0.012 * index) for m in MODALITIES},
        }
        for index, (name, (layers, experts, top_k)) in enumerate(shapes.items())
    ]


def metrics() -> dict[str, dict[str, Any]]:
    checks = [
        ("text under unigram", "pretrain.val_loss_full.text / pretrain.val_loss_unigram.text", "at_most", 0.75, 0.683),
        ("logits agree", "extract.max_abs_logit_diff", "at_most", 1e-5, 3.1e-7),
        ("passes more", "rl.pass_after.rate - rl.pass_before.rate", "above", 0.0, 0.2475),
        ("beats untrained", "evaluate.domains.libreoffice-help.encoder.ndcg10.mean", "at_least", 0.1, 0.291),
    ]
    return {
        "ingest": {
            "duplicates": {"exact": {"text": 3}, "near": {"text": 12}}, "quarantined": 2,
            "decontamination": {"removed": {"passages": 510}},
            "language_check": {"text": {"es": {"checked": 270, "mismatch_share": 0.09, "found": {"en": 24}}}},
        },
        "validate_data": {
            "expectations": 42, "failed": 0, "warned": 1, "notes": ["new: new in this version"],
            "suites": {"text": {"rows": 24, "expectations": 41, "failed": 0, "warned": 0},
                       "drift from 0a1b": {"rows": 1, "expectations": 1, "failed": 0, "warned": 1}},
            "drift": {
                "previous": "corpus:" + "0a1b" * 16, "accepted": True, "outside": 1,
                "shifts": [{
                    "figure": "text languages", "measure": "Jensen-Shannon", "value": 0.31, "low": 0, "high": 0.06,
                    "within": False, "told": "ja 14.0% -> 2.0%",
                }],
            },
        },
        "text_tokenizer": {"vocabulary": 2048, "characters_per_token": 3.41},
        "vision_tokenizer": {"loss": 0.02, "image": {"psnr": 19.4}, "video": {"psnr": 21.0}},
        "audio_tokenizer": {"val_si_sdr_db": 4.2, "codebook_use": [0.9, 0.8], "kbit_per_second": 0.3},
        "pretrain": {
            "val_loss_full": FULL,
            "val_loss_unigram": UNIGRAM,
            "submodels": members(),
            "tokens": 1_228_800,
            "speed": {"tokens_per_second": 6120.5},
            "steps": 300,
        },
        "analyse": {"iou_last": 0.31},
        "rl": {
            "pass_before": {"rate": 0.365, "low": 0.319, "high": 0.413, "count": 400},
            "pass_after": {"rate": 0.6125, "low": 0.564, "high": 0.659, "count": 400},
        },
        "extract": {"max_abs_logit_diff": 3.1e-7, "members": [{"name": n} for n in ("shallow", "narrow", "small")]},
        "distil": {"loss": 0.83, "queries_per_second": 410.0},
        "evaluate": {
            "domains": {
                "libreoffice-help": examined(0.291, 0.052, 0.414, 0.437, 1200),
                "kjv-naves": examined(0.142, 0.031, 0.354, 0.348, 900),
                "python-doc": examined(0.288, 0.084, 0.597, 0.561, 1100),
            }
        },
        "gate": {
            "passed": True,
            "checks": [
                {
                    "name": name, "figure": figure, "direction": direction, "threshold": threshold, "value": value,
                    "count": None, "minimum_count": 0, "passed": True, "message": f"{name} holds",
                }
                for name, figure, direction, threshold, value in checks
            ],
        },
        "register": {"model": "accordion-encoder", "version": 3, "aliases": ["candidate"]},
        "rollout": {
            "golden_cosine": 0.99999994,
            "served_version": 3,
            "requests": 450,
            "errors": 0,
            "p50_ms": 6.4,
            "p99_ms": 15.1,
            "timeline": [
                {"at": 100.0 + second, "event": event}
                for second, event in [
                    (0.0, "staged"), (0.4, "preflight"), (6.2, "loaded"), (6.5, "golden"), (8.0, "shadow"),
                    (9.1, "canary 10 %"), (12.4, "canary 50 %"), (15.0, "canary 100 %"), (18.3, "promoted"),
                ]
            ],
        },
    }  # fmt: skip


def timings() -> dict[str, StageTiming]:
    seconds = {
        "ingest": 9.1, "validate_data": 6.0, "text_tokenizer": 12.2, "vision_tokenizer": 71.0,
        "audio_tokenizer": 48.3, "pack": 20.7, "validate_shards": 4.4, "pretrain": 214.9, "analyse": 6.3,
        "sft": 30.2, "rl": 62.5, "extract": 9.9, "distil": 60.8, "evaluate": 21.6, "gate": 0.1, "register": 3.5,
        "rollout": 24.0,
    }  # fmt: skip
    cached = ("ingest", "validate_data")
    return {name: StageTiming(seconds=value, cached=name in cached) for name, value in seconds.items()}


def write_corpus(folder: Path) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    split = ["train"] * 8 + ["val"] * 16
    shared = {"split": split, "source": ["noto"] * 24, "licence": ["OFL-1.1"] * 24}
    languages = {"language": ["en", "de", "fr", "ru"] * 6}
    pq.write_table(pa.table({"text": ["word " * 9] * 24, **shared, **languages}), folder / "text.parquet")
    pngs = []
    for index in range(24):
        buffer = io.BytesIO()
        pixels = np.full((32, 32, 3), 255, np.uint8)
        pixels[6:26, 4 + index % 8 : 24 + index % 8] = draw.integers(0, 255, 3)
        Image.fromarray(pixels).save(buffer, format="PNG")
        pngs.append(buffer.getvalue())
    pq.write_table(
        pa.table({"id": [f"image/{n}" for n in range(24)], "png": pngs, **shared}), folder / "images.parquet"
    )
    tone = (np.sin(np.arange(16000) / 8) * 9000).astype("<i2")
    clips = {
        "pcm": [tone.tobytes()] * 24,
        "rate": [8000] * 24,
        "transcript": ["hello <world>"] * 24,
        "speaker": [""] * 24,
    }
    pq.write_table(pa.table({**clips, **shared, **languages}), folder / "audio.parquet")
    frames = draw.integers(0, 255, (24, 4, 32, 32, 3), dtype=np.uint8)
    sizes = {"n": [4] * 24, "height": [32] * 24, "width": [32] * 24}
    video = {"id": [f"video/{index}" for index in range(24)], "frames": [clip.tobytes() for clip in frames], **sizes}
    pq.write_table(pa.table({**video, **shared}), folder / "video.parquet")
    (folder / "quarantine.jsonl").write_text('{"file": "a.png", "record": 3, "error": "truncated"}\n')


def write_routing(folder: Path) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(1)
    labels = draw.integers(0, len(GROUPS), 400)
    choices = [draw.integers(0, 16, (400, 4)) for _ in range(8)]
    layers = [{"layer": layer, **describe(choice, labels, 16, draw)} for layer, choice in enumerate(choices)]
    document = {
        "modalities": GROUPS, "layers": layers, "members": {"full": layers, "small": layers[:4]}, "policy": layers,
        "drift": [drift(choice, choices[0], labels, 16) for choice in choices],
    }  # fmt: skip
    (folder / "routing.json").write_text(json.dumps(document))


def write_curves(folder: Path, names: dict[str, tuple[float, float]], steps: int) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(2)
    lines = []
    for step in range(steps):
        values = {n: end + (start - end) * np.exp(-6 * step / steps) for n, (start, end) in names.items()}
        lines.append(json.dumps({"step": step, **{n: v * (1 + 0.02 * draw.normal()) for n, v in values.items()}}))
    (folder / "curves.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFigures:
    root = tmp_path_factory.mktemp("run")
    write_corpus(root / "corpus")
    write_routing(root / "analysis")
    write_curves(root / "checkpoint", {f"loss/{m}": (UNIGRAM[m] * 1.3, FULL[m]) for m in MODALITIES}, 300)
    write_curves(root / "policy", {"reward/mean": (0.33, 0.6)}, 40)
    problems = [
        {"prompt": f"State the final answer to {i} + 4 = ?", "answer": str(i + 4),
         "before": {"response": "7", "passed": i == 3}, "after": {"response": str(i + 4), "passed": True}}
        for i in range(9)
    ]  # fmt: skip
    (root / "policy" / "problems.jsonl").write_text("\n".join(map(json.dumps, problems)))
    (root / "validation").mkdir()
    Statistics(
        "", {"text rows": 24}, {"text languages": {"en": 6, "de": 18}, "audio languages": {"en": 24}},
        {"text, characters": Lengths.of([45.0] * 20 + [120.0] * 4)},
    ).write(root / "validation")  # fmt: skip
    outcome = {"suite": "text", "type": "expect_column_values_to_be_unique", "column": "id", "arguments": {},
               "success": True, "observed": None, "failed": 0, "checked": 24}  # fmt: skip
    (root / "validation" / "result.json").write_text(json.dumps({"expectations": [outcome]}))
    (root / "vision").mkdir()
    torch.manual_seed(0)
    VisionTokenizer(VisionTokenizerConfig(channels=8)).save(root / "vision")
    (root / "audio").mkdir()
    AudioTokenizer(AudioTokenizerConfig(channels=8)).save(root / "audio")
    return RunFigures(
        metrics=metrics(),
        timings=timings(),
        folders={
            "ingest": root / "corpus",
            "validate_data": root / "validation",
            "analyse": root / "analysis",
            "pretrain": root / "checkpoint",
            "rl": root / "policy",
            "vision_tokenizer": root / "vision",
            "audio_tokenizer": root / "audio",
        },
        links={
            "endpoint": "http://127.0.0.1:8000/v2/models/encoder/versions/3/infer",
            "mlflow": "http://127.0.0.1:5000",
            "example": 'accordion query "insert a page number"',
        },
        about={"profile": "smoke", "started": "2026-03-01 12:00", "commit": "abc1234", "execution": "local-0001"},
    )
