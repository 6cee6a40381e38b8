"""Shards of synthetic sequences in the layout of the pack stage, small enough to train on in seconds."""

from collections.abc import Mapping
from pathlib import Path

from accordion.config.pretrain import ElasticConfig, MemberSpec, ModelShape, OptimizerConfig, PretrainConfig
from accordion.data.batch import COLUMNS, Columns
from tests.shard_files import write_datasets
from tests.unit.model.synthetic import SIZES, small_batch

LENGTH = 48


def write_shards(folder: Path, sequences: int = 24) -> Path:
    """Write `sequences` training and 8 validation sequences as the pack stage does."""
    return write_columns(folder, {"train": small_columns(sequences, seed=0), "val": small_columns(8, seed=1)})


def small_columns(rows: int, seed: int) -> Columns:
    """Columns (rows,S,...) of a small batch, in the dtypes of the shards."""
    batch = small_batch(rows=rows, length=LENGTH, seed=seed)
    return {name: getattr(batch, name).numpy().astype(kind) for name, (_, kind) in COLUMNS.items()}


def write_columns(folder: Path, splits: Mapping[str, Columns]) -> Path:
    """Write each split's columns as its only dataset."""
    facts = {"sequence": LENGTH, **SIZES}
    return write_datasets(folder, facts, {split: {"all": columns} for split, columns in splits.items()})


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
