"""Versions of datasets and tokenizers: listed from DVC's history, compared with each other, restored."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from accordion.config.data import DriftConfig
from accordion.data.expectations import drift
from accordion.data.expectations.raw import measure_corpus
from accordion.data.expectations.shards import measure_shards
from accordion.data.expectations.statistics import Statistics
from accordion.data.tokenizers.text import SPECIAL, TextTokenizer
from accordion.errors import ArtifactError, DataError
from accordion.store import Artifact, Manifest, Store, atomic_folder
from accordion.store.dvc import Versions

KINDS = ("corpus", "tokenizer-text", "tokenizer-vision", "tokenizer-audio", "shards")
TEXTS = 200  # validation texts that two text tokenizers are compared on


@dataclass(frozen=True)
class Listed:
    """One version: when it was made and by whom, how large it is, which runs used it, whether it is in the store."""

    artifact: str
    at: str
    message: str
    bytes: int
    files: int
    runs: int
    profiles: tuple[str, ...]
    in_store: bool


@dataclass(frozen=True)
class Comparison:
    """Two versions of one kind.

    Attributes:
        before, now: `kind:digest`.
        sizes: `bytes` and `files` of both.
        settings: dotted key -> values in both, where they differ.
        shifts: figure -> how far it moved, and whether within the default bounds of drift.
        figures: dotted name of a measured figure -> values in both (None: not measured).
        vocabulary: of two text tokenizers, what they share.
        notes: what was not compared, and why.
    """

    before: str
    now: str
    sizes: dict[str, tuple[int, int]]
    settings: dict[str, tuple[Any, Any]]
    shifts: list[drift.Shift]
    figures: dict[str, tuple[Any, Any]]
    vocabulary: dict[str, float]
    notes: list[str]

    def document(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self) | {"shifts": [asdict(shift) | {"within": shift.within} for shift in self.shifts]}


def listed(versions: Versions, kinds: Iterable[str] = KINDS) -> list[Listed]:
    """Every recorded version of these kinds, oldest first."""
    wanted = set(kinds)
    records: dict[str, list[Any]] = {}
    for record in versions.history():
        if record.artifact.partition(":")[0] in wanted:
            records.setdefault(record.artifact, []).append(record)
    found = []
    for text, uses in records.items():
        artifact = Artifact.parse(text)
        size = versions.version(artifact)
        runs = {use.message.rpartition("run ")[2].partition(" ")[0] for use in uses if "run " in use.message}
        profiles = tuple(sorted({use.profile for use in uses if use.profile}))
        present = versions.store.path(artifact).is_dir()
        found.append(Listed(text, uses[0].at, uses[0].message, size.bytes, size.files, len(runs), profiles, present))
    return found


def compare(before: Path, now: Path, store: Store) -> Comparison:
    """Compare two verified artifact folders of one kind.

    Args:
        store: where the corpus of a tokenizer is looked for.

    Raises:
        ArtifactError: they are of different kinds.
        DataError: a table of a corpus is missing or not readable.
    """
    first, second = Manifest.read(before), Manifest.read(now)
    if first.kind != second.kind:
        raise ArtifactError(f"{first.kind} and {second.kind} cannot be compared; give two versions of one kind")
    old, new = (sum(entry["bytes"] for entry in each.files.values()) for each in (first, second))
    sizes = {"bytes": (old, new), "files": (len(first.files), len(second.files))}
    shifts, notes = _shifts(first.kind, before, now)
    figures = {} if shifts else _differences(_metrics(before), _metrics(now))
    vocabulary: dict[str, float] = {}
    if first.kind == "tokenizer-text":
        vocabulary, note = _vocabularies(before, now, second, store)
        notes += note
    elif first.kind.startswith("tokenizer-") and first.parents.get("corpus") != second.parents.get("corpus"):
        notes.append("each was measured on the validation split of its own corpus, and those differ")
    return Comparison(
        before=f"{first.kind}:{first.digest}", now=f"{second.kind}:{second.digest}", sizes=sizes,
        settings=_differences(first.config, second.config), shifts=shifts, figures=figures, vocabulary=vocabulary,
        notes=notes,
    )  # fmt: skip


def restore(versions: Versions, artifact: Artifact, to: Path | None, say: Any) -> Path:
    """Bring a version back into the store, or write it into the new folder `to`; every file is verified.

    Raises:
        ArtifactError: it was never versioned, or the remote's copy is missing or altered.
        DataError: `to` is there already.
    """
    folder = versions.open(artifact, say)
    if to is None:
        return folder
    if to.exists():
        raise DataError(f"{to}: is there already; name a new folder")
    to.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(to) as fresh:
        shutil.copytree(folder, fresh, dirs_exist_ok=True)
        Manifest.read(fresh).verify(fresh)
    return to


def _shifts(kind: str, before: Path, now: Path) -> tuple[list[drift.Shift], list[str]]:
    measures = {"corpus": measure_corpus, "shards": measure_shards}
    if kind in measures:
        both = [measures[kind](folder) for folder in (before, now)]
    elif kind.startswith("validation"):
        read = [Statistics.read(folder) for folder in (before, now)]
        both = [each for each in read if each is not None]
        if len(both) < len(read):
            return [], ["the statistics of one of them are in another form"]
    else:
        return [], []
    return drift.compare(both[0], both[1], DriftConfig())


def _metrics(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and all(isinstance(each, int | float) for each in value):
            yield from ((f"{prefix}{key}.{number}", each) for number, each in enumerate(value, 1))
        else:
            yield f"{prefix}{key}", value


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    one, two = dict(_flat(before)), dict(_flat(now))
    return {key: (one.get(key), two.get(key)) for key in sorted({*one, *two}) if one.get(key) != two.get(key)}


def _vocabularies(before: Path, now: Path, manifest: Manifest, store: Store) -> tuple[dict[str, float], list[str]]:
    """What two text tokenizers share, and characters a token on the same texts of the newer one's corpus."""
    one, two = TextTokenizer.load(before), TextTokenizer.load(now)
    words = [{*tokenizer.tokens()[SPECIAL:]} for tokenizer in (one, two)]
    shared = len(words[0] & words[1])
    figures = {
        "shared": shared, "only_before": len(words[0]) - shared, "only_now": len(words[1]) - shared,
        "overlap": shared / max(len(words[0] | words[1]), 1),
    }  # fmt: skip
    corpus = Artifact.parse(manifest.parents["corpus"]) if "corpus" in manifest.parents else None
    if corpus is None or not store.path(corpus).is_dir():
        return figures, [
            "fertility on the same texts was not measured: the corpus of the newer one is not in the store"
        ]
    table = pd.read_parquet(store.open(corpus) / "text.parquet", columns=["text", "split"])
    texts = list(table.loc[table["split"] == "val", "text"].head(TEXTS))
    characters = sum(map(len, texts))
    for name, tokenizer in (("characters_per_token_before", one), ("characters_per_token_now", two)):
        figures[name] = characters / max(sum(map(len, tokenizer.encode_batch(texts))), 1)
    return figures, [f"characters per token: on the same {len(texts)} validation texts of {str(corpus)[:23]}"]
