"""Stage `ingest`: sources -> corpus (tables of text, images, audio, video; FAQ, dictionaries, collections).

The tier's data and a user's own go the same way: bad records go to `quarantine.jsonl`, languages are checked, whole
groups are split, copies are dropped, and training text loses every passage that is held out or belongs to an
evaluation collection. Payloads are streamed; what grows with the number of records is an index for duplicates.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from accordion.config.data import IngestConfig, SourceConfig
from accordion.data.decontamination import Decontamination
from accordion.data.duplicates import Duplicates
from accordion.data.languages import Languages
from accordion.data.ngrams import tokens
from accordion.data.sources.audio import audio_rows
from accordion.data.sources.base import Quarantine, Row, Split, nothing_left, require
from accordion.data.sources.images import image_rows
from accordion.data.sources.retrieval import copy_collection, domains, texts_of
from accordion.data.sources.text import read_dictionaries, read_faq, text_rows
from accordion.data.sources.video import video_rows
from accordion.data.tables import COLUMNS, Spool, Table
from accordion.data.tier import source_folder
from accordion.errors import DataError
from accordion.observe import progress

PARTS = ("text", "images", "audio", "video", "retrieval")  # kinds of ingest.sources
OTHER_PARTS = ("faq", "dictionaries")
MODALITIES = ("text", "images", "audio", "video")


def ingest(config: IngestConfig, *, out: Path) -> dict[str, Any]:
    """Read the sources and write a `corpus` artifact into `out`.

    Returns:
        rows (modality -> split -> count), languages (modality -> language -> count), characters, audio_seconds,
        retrieval (domain -> documents, queries, judgements),
        duplicates (exact and near: modality -> records dropped; examples),
        language_check (kind -> language -> checked, mismatch_share, found),
        decontamination (ngrams_held, ngrams_found, removed and sources: documents cut and dropped, passages),
        quarantined (records refused), quarantined_by_file.

    Raises:
        DataError: a source is missing, or no usable record is left of a needed part.
    """
    folder = source_folder(config)
    quarantine = Quarantine(folder)
    sources = {part: _sources(part, folder, config) for part in PARTS}
    for part in OTHER_PARTS:
        require(folder / part, "a part of every source folder")
    run = _Ingest(config, out, quarantine)
    collections = run.collections(sources["retrieval"])
    counts = {modality: run.modality(modality, sources[modality]) for modality in progress(MODALITIES, "ingest")}
    pd.DataFrame(read_faq(folder, quarantine)).to_parquet(out / "faq.parquet", index=False)
    _write_dictionaries(read_dictionaries(folder, quarantine), out / "dictionaries")
    _write_lines(out / "quarantine.jsonl", quarantine.refused)
    files = Counter(row["file"] for row in quarantine.refused)
    return {
        "rows": {name: dict(sorted(found["split"].items())) for name, found in counts.items()},
        "languages": {name: dict(sorted(counts[name]["language"].items())) for name in ("text", "audio")},
        "characters": counts["text"]["size"]["characters"],
        "audio_seconds": counts["audio"]["size"]["samples"] / config.audio_rate,
        "retrieval": collections,
        "duplicates": run.duplicates.report(),
        "language_check": run.languages.report(),
        "decontamination": run.decontamination.report(),
        "quarantined": len(quarantine.refused),
        "quarantined_by_file": dict(sorted(files.items(), key=lambda item: (-item[1], item[0]))[:20]),
    }


def _sources(part: str, folder: Path, config: IngestConfig) -> list[SourceConfig]:
    """The tier's source of a part, unless it is replaced, and the user's."""
    found = [source for source in config.sources if source.kind == part]
    if part in config.replace:
        return found
    path = require(folder / part, "a part of every source folder")
    return [SourceConfig(kind=part, path=str(path)), *found]


class _Ingest:
    """What the parts share: the quarantine, the split, and what is known of earlier records."""

    def __init__(self, config: IngestConfig, out: Path, quarantine: Quarantine) -> None:
        self.config, self.out, self.quarantine = config, out, quarantine
        self.split = Split(config.seed, config.validation_share)
        self.languages = Languages(config.languages)
        self.duplicates = Duplicates(config.duplicates)
        self.decontamination = Decontamination(config.decontamination)

    def collections(self, sources: list[SourceConfig]) -> dict[str, Any]:
        """Copy the retrieval collections; the text of those for evaluation only is held against the training text."""
        counts = {}
        for source in sources:
            for domain in domains(source, self.config.train_domains):
                counts[domain.name] = copy_collection(domain, self.out / "retrieval", self.quarantine)
                if not domain.trained:
                    for text in texts_of(self.out / "retrieval" / domain.name):
                        self.decontamination.hold(text)
        return counts

    def modality(self, name: str, sources: list[SourceConfig]) -> dict[str, Counter[str]]:
        """Read, check, split, and write one table; returns its counts by split and language, and its size."""
        with TemporaryDirectory(dir=self.out, prefix=".spool-") as folder:
            spool = Spool(Path(folder), name)
            ids: set[str] = set()
            for source in sources:
                for file, record, row in self._rows(name, source):
                    if row["id"] in ids:
                        self.quarantine.refuse(file, record, f"duplicate id {row['id']}")
                        continue
                    ids.add(row["id"])
                    if self._tagged(name, file, record, row):
                        row["split"] = self._split_of(name, source, row)
                        spool.add(row)
            where = ", ".join(source.path for source in sources)
            if not ids:
                raise nothing_left(where, self.quarantine)
            return self._write(name, spool.rows(), where)

    def _rows(self, name: str, source: SourceConfig) -> Iterator[tuple[Path, str, Row]]:
        if name == "text":
            return text_rows(source, self.quarantine)
        readers = {"images": image_rows, "audio": audio_rows, "video": video_rows}
        return readers[name](source, self.quarantine, self.config)

    def _tagged(self, name: str, file: Path, record: str, row: Row) -> bool:
        """Whether a row stays after its language has been looked at."""
        if name == "text":
            mismatch = self.languages.tag(row)
            if mismatch and self.config.languages.mismatch == "quarantine":
                self.quarantine.refuse(file, record, mismatch)
                return False
        elif name == "audio":
            row["language"] = self.languages.pool("audio", row["language"], row["transcript"])
        elif name == "images":
            for language, caption in json.loads(row["captions"]).items():
                self.languages.pool("images", language, caption)
        return True

    def _split_of(self, name: str, source: SourceConfig, row: Row) -> str:
        if source.role == "evaluation":
            return "val"
        return str(row["split"]) if name == "video" else self.split.of(f"{name}/{row['group']}")

    def _write(self, name: str, rows: Iterable[Row], where: str) -> dict[str, Counter[str]]:
        """Drop copies, clean training text, write the table."""
        counts: dict[str, Counter[str]] = {"split": Counter(), "language": Counter(), "size": Counter()}
        table = Table(self.out / f"{name}.parquet", COLUMNS[name])
        for row in rows:
            hashes = tokens(row["text"]) if name == "text" else None
            if self.duplicates.is_copy(name, row, hashes):
                continue
            if hashes is not None and row["split"] == "val":
                self.decontamination.hold(row["text"], hashes)
            elif hashes is not None:
                row["text"] = self.decontamination.clean(row["text"], hashes, row["source"])
                if not row["text"] or self.duplicates.is_exact_copy(name, row):  # two texts can become one by cuts
                    continue
            table.add(row)
            counts["split"][row["split"]] += 1
            counts["language"][row.get("language") or ""] += 1
            counts["size"]["characters"] += len(row.get("text", ""))
            counts["size"]["samples"] += len(row.get("pcm", b"")) // 2
        table.close()
        if set(counts["split"]) != {"train", "val"}:
            raise DataError(
                f"{where}: {table.count} records are too few for both splits; "
                "add records or change ingest.validation_share"
            )
        return counts


def _write_dictionaries(dictionaries: dict[str, list[Row]], folder: Path) -> None:
    folder.mkdir()
    for name, rows in dictionaries.items():
        text = "".join(f"{row['word']}\t{row['translation']}\n" for row in rows)
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")


def _write_lines(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
