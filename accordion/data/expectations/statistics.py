"""What a version of the data is like in figures, kept as statistics.json, so that a later version can be compared.

Counts (rows, documents, judgements), mixes (a category -> how often: languages, modalities, token ids) and lengths
(a histogram over fixed bins, sixteen a decade, and quantiles). `rests_on` names what a figure depends on besides the
data, for example the tokenizer of a token histogram: figures that rest on different things are not compared.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from accordion.errors import ArtifactError

FILE = "statistics.json"
SCHEMA = 1
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS_A_DECADE = 16


@dataclass(frozen=True)
class Lengths:
    """Lengths of many records: bin -> count (bin b holds 10^(b/16) up to 10^((b+1)/16)) and quantile -> length."""

    bins: dict[str, int]
    quantiles: dict[str, float]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Lengths":
        """Measure `values`; lengths of zero count as the smallest that is told apart, 0.001."""
        array = np.asarray(list(values), dtype=float)
        bins = np.floor(np.log10(np.maximum(array, 1e-3)) * BINS_A_DECADE + 1e-9).astype(int)
        numbers, counts = np.unique(bins, return_counts=True)
        quantiles = np.quantile(array, QUANTILES) if array.size else np.zeros(len(QUANTILES))
        return cls(
            {str(number): int(count) for number, count in zip(numbers, counts, strict=True)},
            {str(q): round(float(value), 4) for q, value in zip(QUANTILES, quantiles, strict=True)},
        )

    @property
    def count(self) -> int:
        return sum(self.bins.values())


@dataclass(frozen=True)
class Statistics:
    """The figures of one version.

    Attributes:
        of: `kind:digest` of what was measured; empty when it is no artifact.
        counts, mixes, lengths: name -> figures; the names are the same from version to version.
        rests_on: name of a figure -> what it depends on besides the data.
    """

    of: str
    counts: dict[str, int] = field(default_factory=dict)
    mixes: dict[str, dict[str, int]] = field(default_factory=dict)
    lengths: dict[str, Lengths] = field(default_factory=dict)
    rests_on: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write statistics.json into `folder`."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Statistics | None":
        """What `write` wrote; None when it is of another schema, and so cannot be compared with this one.

        Raises:
            ArtifactError: there is no readable statistics.json.
        """
        path = folder / FILE
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if document.pop("schema") != SCHEMA:
                return None
            lengths = {name: Lengths(**entry) for name, entry in document.pop("lengths").items()}
            return cls(**document, lengths=lengths)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path}: no readable statistics ({error}); run the stage that made {folder.parent.name} again"
            ) from None


def counted(values: Iterable[Any]) -> dict[str, int]:
    """Category -> how often, by name."""
    series = pd.Series(list(values), dtype=object).astype(str)
    return {str(name): int(number) for name, number in series.value_counts().sort_index().items()}


def histogram(counts: np.ndarray) -> dict[str, int]:
    """Counts of ids 0.. as a mix; ids that do not occur are left out."""
    return {str(index): int(counts[index]) for index in np.flatnonzero(counts)}


def settings_key(settings: Mapping[str, Any]) -> str:
    """A short name for settings, so that figures made with other settings are not compared."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
