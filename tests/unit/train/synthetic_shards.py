"""Shards of synthetic sequences in the layout of the pack stage, small enough to train on in seconds."""

import json
from pathlib import Path

import numpy as np

from accordion.config.pretrain import ElasticConfig, MemberSpec, ModelShape, OptimizerConfig, PretrainConfig
from accordion.data.batch import COLUMNS
from tests.unit.model.synthetic import SIZES, small_batch

LENGTH = 48


def write_shards(folder: Path, sequences: int = 24) -> Path:
    """Write `sequences` training and 8 validation sequences with the columns and meta.json of the pack stage."""
    for seed, (split, count) in enumerate((("train", sequences), ("val", 8))):
        (folder / split).mkdir(parents=True)
        batch = small_batch(rows=count, length=LENGTH, seed=seed)
        for name, (_, kind) in COLUMNS.items():
            np.save(folder / split / f"{name}.npy", getattr(batch, name).numpy().astype(kind))
    splits = {"train": {"sequences": sequences, "positions": {}}, "val": {"sequences": 8, "positions": {}}}
    (folder / "meta.json").write_text(json.dumps({"sequence": LENGTH, **SIZES, "splits": splits}))
    return folder


def tiny_config(**changes) -> PretrainConfig:
    """A run of a few steps of a tiny elastic model."""
    values = {
        "model": ModelShape(hidden=16, layers=4, heads=2, experts=4, top_k=2, expert_hidden=8, shared_hidden=8),
        "elastic": ElasticConfig(layers=(3, 4), experts=(2, 4), top_k=(1, 2), warmup_share=0.1),
        "optimizer": OptimizerConfig(warmup_steps=2),
        "steps": 12, "batch": 4, "checkpoint_every": 4, "code_noise": 0.1,
        "family": (MemberSpec(name="full", layers=4, experts=4, top_k=2), MemberSpec(name="small", layers=3, experts=2,
                                                                                      top_k=1)),
    }  # fmt: skip
    return PretrainConfig(**{**values, **changes})
