"""Stage `ingest`: source folder -> corpus (tables of text, images, audio, video; FAQ, dictionaries, collections).

Bad records go to `quarantine.jsonl`, whole groups are split, exact copies are dropped, and training text
loses every passage that is held out or belongs to an evaluation collection.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from accordion.config.data import IngestConfig
from accordion.data.sources.audio import read_audio
from accordion.data.sources.base import Quarantine, Row, Split, require
from accordion.data.sources.images import read_images
from accordion.data.sources.retrieval import Collection, read_collections
from accordion.data.sources.text import read_dictionaries, read_faq, read_text
from accordion.data.sources.video import read_video
from accordion.errors import DataError
from accordion.home import REPOSITORY
from accordion.observe import progress

PARTS = ("text", "images", "audio", "video", "faq", "dictionaries", "retrieval")
PASSAGE_CHARACTERS = 60  # shorter lines (headings, menu paths) are too common to count as leaked
SOURCE_DOMAIN = "libreoffice-help"  # retrieval trains on its sections; the other domains are for evaluation only


def ingest(config: IngestConfig, *, out: Path) -> dict[str, Any]:
    """Read the source folder and write a `corpus` artifact into `out`.

    Returns:
        rows (modality -> split -> count), languages (modality -> language -> count), audio_seconds,
        retrieval (domain -> documents, queries, judgements), duplicates, leaked_passages, quarantined.

    Raises:
        DataError: the source folder or a part of it is missing, or no usable record is left of a part.
    """
    folder = require(Path(config.source) if config.source else REPOSITORY / "data/sample", "source folder")
    for part in PARTS:
        require(folder / part, "a part of every source folder")
    quarantine = Quarantine(folder)
    split = Split(config.seed, config.validation_share)
    modalities = ("text", "images", "audio", "video")
    tables: dict[str, list[Row]] = {}
    for modality in progress(modalities, "reading", unit="modality"):
        tables[modality] = _read(modality, folder, quarantine, config)
    duplicates = {}
    for modality, (group, content) in {
        "text": ("group", "text"), "images": ("id", "png"), "audio": ("key", "pcm"),
    }.items():  # fmt: skip
        for row in tables[modality]:
            row["split"] = split.of(f"{modality}/{row[group]}")
        tables[modality], duplicates[modality] = _without_copies(tables[modality], content)
    collections = read_collections(folder, quarantine)
    tables["text"], leaked = _without_leaks(tables["text"], collections)
    for modality, rows in tables.items():
        if {row["split"] for row in rows} != {"train", "val"}:
            raise DataError(
                f"{folder / modality}: {len(rows)} records are too few for both splits; "
                "add records or change ingest.validation_share"
            )
        pd.DataFrame(rows).drop(columns="group", errors="ignore").to_parquet(out / f"{modality}.parquet", index=False)
    pd.DataFrame(read_faq(folder, quarantine)).to_parquet(out / "faq.parquet", index=False)
    _write_dictionaries(read_dictionaries(folder, quarantine), out / "dictionaries")
    for domain, collection in collections.items():
        _write_collection(collection, out / "retrieval" / domain)
    _write_lines(out / "quarantine.jsonl", quarantine.refused)
    return {
        **_counts(tables, collections),
        "duplicates": duplicates,
        "leaked_passages": leaked,
        "quarantined": len(quarantine.refused),
    }


def _read(modality: str, folder: Path, quarantine: Quarantine, config: IngestConfig) -> list[Row]:
    if modality == "video":
        return read_video(folder, quarantine, config.validation_share)
    return {"text": read_text, "images": read_images, "audio": read_audio}[modality](folder, quarantine)


def _without_copies(rows: list[Row], content: str) -> tuple[list[Row], int]:
    """Rows without exact copies, in their order; a copy in both splits stays in `val`."""
    seen: set[bytes] = set()
    kept = []
    for row in sorted(rows, key=lambda row: row["split"] != "val"):
        value = row[content]
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append(id(row))
    unique = set(kept)
    return [row for row in rows if id(row) in unique], len(rows) - len(unique)


def _passage(line: str) -> str:
    return " ".join(line.split()).casefold()


def _without_leaks(rows: list[Row], collections: dict[str, Collection]) -> tuple[list[Row], int]:
    """Training text without the lines that are held out or lie in an evaluation-only collection."""
    texts = [row["text"] for row in rows if row["split"] == "val"]
    texts += [row["text"] for domain, found in collections.items() if domain != SOURCE_DOMAIN for row in found.corpus]
    evaluated = {_passage(line) for text in texts for line in text.splitlines() if len(line) >= PASSAGE_CHARACTERS}
    kept, removed = [], 0
    for row in rows:
        if row["split"] == "train":
            all_lines = row["text"].splitlines()
            clean = [line for line in all_lines if _passage(line) not in evaluated]
            removed += len(all_lines) - len(clean)
            row = {**row, "text": "\n".join(clean)}
        if row["text"].strip():
            kept.append(row)
    return kept, removed


def _write_dictionaries(dictionaries: dict[str, list[Row]], folder: Path) -> None:
    folder.mkdir()
    for name, rows in dictionaries.items():
        text = "".join(f"{row['word']}\t{row['translation']}\n" for row in rows)
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")


def _write_collection(collection: Collection, folder: Path) -> None:
    (folder / "qrels").mkdir(parents=True)
    _write_lines(folder / "corpus.jsonl", collection.corpus)
    _write_lines(folder / "queries.jsonl", collection.queries)
    for split, judgements in collection.qrels.items():
        lines = "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in judgements)
        (folder / f"qrels/{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}", encoding="utf-8")


def _write_lines(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _counts(tables: dict[str, list[Row]], collections: dict[str, Collection]) -> dict[str, Any]:
    return {
        "rows": {name: dict(sorted(Counter(row["split"] for row in rows).items())) for name, rows in tables.items()},
        "languages": {
            name: dict(sorted(Counter(row["language"] for row in tables[name]).items())) for name in ("text", "audio")
        },
        "characters": sum(len(row["text"]) for row in tables["text"]),
        "audio_seconds": sum(len(row["pcm"]) / 2 / row["rate"] for row in tables["audio"]),
        "retrieval": {
            domain: {
                "documents": len(found.corpus),
                "queries": len(found.queries),
                "judgements": {split: len(rows) for split, rows in found.qrels.items()},
            }
            for domain, found in collections.items()
        },
    }
