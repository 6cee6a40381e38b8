"""Shards of synthetic sequences in the layout of the pack stage, small enough to train on in seconds."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from accordion.config.pretrain import ElasticConfig, MemberSpec, ModelShape, OptimizerConfig, PretrainConfig
from accordion.data.batch import COLUMNS, LEAST_SPOKEN, VOICE_SIZE, Batch, Columns
from tests.shard_files import write_datasets
from tests.unit.model.synthetic import SIZES, small_batch, sparse_batch

LENGTH = 48


def write_shards(folder: Path, sequences: int = 24) -> Path:
    """Write `sequences` training and 8 validation sequences as the pack stage does."""
    return write_columns(folder, {"train": small_columns(sequences, seed=0), "val": small_columns(8, seed=1)})


def small_columns(rows: int, seed: int) -> Columns:
    """Columns (rows,S,...) of a small batch, in the dtypes of the shards."""
    return columns_of(small_batch(rows=rows, length=LENGTH, seed=seed))


def columns_of(batch: Batch) -> Columns:
    """The columns of a batch, in the dtypes of the shards."""
    return {name: getattr(batch, name).numpy().astype(kind) for name, (_, kind) in COLUMNS.items()}


def doubled(columns: Columns) -> Columns:
    """Half as many sequences, twice as long."""
    rows = len(columns["modality"]) // 2
    double = {name: np.concatenate([part[:rows], part[rows:]], 1) for name, part in columns.items()}
    tables = (("patch", LENGTH), ("voice", LENGTH // LEAST_SPOKEN))
    for name, last in (("document", 4), ("group", 100), *tables):  # the second half goes on counting
        half = double[name][:, LENGTH:]
        half[half >= 0] += last
    return double


def write_sparse_shards(folder: Path) -> Path:
    """Sequences of usual and of double length, most of them text alone; some see images and clips, or hear voices."""
    train = columns_of(sparse_batch(rows=24, length=LENGTH))
    val = columns_of(small_batch(rows=8, length=LENGTH, seed=1, seeing=True, told=True))
    long = doubled(columns_of(sparse_batch(rows=24, length=LENGTH, seed=2)))
    return write_columns(folder, {"train": train, "val": val, "long": long}, understanding=True, voice_size=VOICE_SIZE)


def write_columns(folder: Path, splits: Mapping[str, Columns], **facts: int) -> Path:
    """Write each split's columns as its only dataset."""
    known = {"sequence": LENGTH, **SIZES, **facts}
    return write_datasets(folder, known, {split: {"all": columns} for split, columns in splits.items()})


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
