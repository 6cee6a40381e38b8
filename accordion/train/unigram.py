"""What a model that ignores all context would score: the baseline that pre-training has to beat.

Marginals are counted on the training shards and scored on the validation shards, in nats: a text token by its
frequency, a vision bit by its index, an audio code by its level. Counts start at a half, so that a validation
token which training never showed costs much but not infinity.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from accordion.config.pretrain import ModelConfig
from accordion.data.batch import IMAGE, VIDEO, Batch
from accordion.data.shards import chunks

Array = np.ndarray
COLUMNS = ("modality", "target_token", "target_bits", "target_codes")
ROWS = 256  # sequences read at a time
PRIOR = 0.5


def unigram_losses(shards: Path, config: ModelConfig, data: Iterable[Batch]) -> dict[str, float]:
    """Mean nats per text token, image bit, video bit and audio code of the context-free model on `data`."""
    seen = _count(_stored(shards), config)
    columns = ([getattr(batch, name).numpy().astype(np.int64) for name in COLUMNS] for batch in data)
    losses = {}
    for name, table in _count(columns, config).items():
        counts = seen[name] + PRIOR
        probability = counts / counts.sum(-1, keepdims=True)
        total = table.sum()
        if total:
            losses[name] = float(-(table * np.log(probability)).sum() / total)
    return losses


def _count(chunks: Iterable[Sequence[Array]], config: ModelConfig) -> dict[str, Array]:
    """How often each value occurs: text (1, V), image and video (d, 2), audio (Q, C + 1)."""
    text = np.zeros((1, config.text_vocabulary))
    bits = {IMAGE: np.zeros((config.bits, 2)), VIDEO: np.zeros((config.bits, 2))}
    audio = np.zeros((config.audio_levels, config.audio_codebook + 1))
    for modality, token, target, codes in chunks:
        text[0] += np.bincount(token[token >= 0], minlength=config.text_vocabulary)
        for kind, table in bits.items():
            chosen = target[(modality == kind) & (target[..., 0] >= 0)]
            ones = chosen.sum(0, dtype=np.int64)
            table += np.stack((len(chosen) - ones, ones), 1)
        for level, table_row in enumerate(audio):
            column = codes[..., level]
            table_row += np.bincount(column[column >= 0], minlength=config.audio_codebook + 1)
    return {"text": text, "image": bits[IMAGE], "video": bits[VIDEO], "audio": audio}


def _stored(shards: Path) -> Iterator[Sequence[Array]]:
    for _, _, columns in chunks(shards, "train", ROWS):
        yield [columns[name] for name in COLUMNS]
