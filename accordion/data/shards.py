"""The shard folder: one memory-mapped .npy a column for each split, and meta.json."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from accordion.data.batch import COLUMNS, MODALITIES
from accordion.data.documents import Assembler, Document, empty_columns
from accordion.errors import ArtifactError, DataError
from accordion.observe import progress


def write_split(
    folder: Path, documents: list[Document], sequences: list[list[int]], assembler: Assembler
) -> dict[str, Any]:
    """Write the sequences (lists of document indices) of one split and count what they hold."""
    if not sequences:
        raise DataError(f"{folder.name}: no documents to pack; check the corpus' `{folder.name}` split")
    folder.mkdir(parents=True, exist_ok=True)
    count, length = len(sequences), assembler.sequence
    files = {
        name: open_memmap(folder / f"{name}.npy", "w+", dtype=one.dtype, shape=(count, length, *one.shape[1:]))
        for name, one in empty_columns((1,), assembler.bits, assembler.levels).items()
    }
    for row, members in enumerate(progress(sequences, f"write {folder.name}", unit="sequences")):
        packed = empty_columns((length,), assembler.bits, assembler.levels)
        start = groups = 0
        for number, index in enumerate(members):
            columns = documents[index].columns
            stop = start + documents[index].length
            for name, values in columns.items():
                packed[name][start:stop] = values
            packed["document"][start:stop] = number
            packed["group"][start:stop] += groups
            groups = int(packed["group"][stop - 1]) + 1
            start = stop
        for name, values in packed.items():
            files[name][row] = values
    for file in files.values():
        file.flush()
    held = np.bincount(files["modality"].reshape(-1), minlength=len(MODALITIES))
    used = Counter(documents[index].kind for members in sequences for index in members)
    return {
        "sequences": count,
        "positions": {name: int(number) for name, number in zip(MODALITIES[1:], held[1:], strict=True)},
        "documents": dict(sorted(used.items())),
        "padding_share": float(held[0] / held.sum()),
    }


def write_meta(folder: Path, assembler: Assembler, splits: dict[str, dict[str, Any]]) -> None:
    """Write meta.json: sizes the model and its readers need, and the counts of each split."""
    vision, audio = assembler.vision.config, assembler.audio.config
    meta = {
        "sequence": assembler.sequence,
        "text_vocabulary": assembler.text.vocabulary,
        "bits": vision.bits,
        "scales": list(vision.scales),
        "frames": vision.frames,
        "audio_levels": audio.levels,
        "audio_codebook": audio.codebook,
        "splits": splits,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a shard folder."""
    path = folder / "meta.json"
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; run the pack stage, or give its output folder")
    return json.loads(path.read_text())


def open_split(folder: Path, split: str) -> dict[str, np.ndarray]:
    """The columns of one split, memory-mapped read-only, (N,S,...).

    Raises:
        ArtifactError: a column is missing, unreadable, or of another shape than meta.json states.
    """
    meta = read_meta(folder)
    if split not in meta["splits"]:
        raise ArtifactError(f"{folder}: no split {split!r}; it has {', '.join(meta['splits'])}")
    wanted = (meta["splits"][split]["sequences"], meta["sequence"])
    columns = {}
    for name in COLUMNS:
        path = folder / split / f"{name}.npy"
        try:
            columns[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: not readable ({error}); run the pack stage again") from None
        if columns[name].shape[:2] != wanted:
            raise ArtifactError(f"{path}: shape {columns[name].shape}; meta.json says {wanted}; run pack again")
    return columns
