"""Paired repeats of two ways to do the same thing, their ratios, tables and a JSON file.

The two sides alternate (A B A B ...), so that whatever else the machine does falls on both. Each pair gives one
ratio; their median and their range are what is reported. Absolute figures hold for the machine they are from.
"""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from accordion.home import REPOSITORY
from accordion.observe import progress
from accordion.store.atomic import atomic_write

Figures = Mapping[str, float]
PACKAGES = (
    "torch",
    "megatron-core",
    "transformers",
    "onnxruntime",
    "tritonclient",
    "flytekit",
    "mlflow",
    "dvc",
    "tokenizers",
    "tiktoken",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of both sides over all repeats.

    Attributes:
        figure, unit: what was measured.
        ours, peer: names of the sides.
        ours_values, peer_values: one value a repeat, paired.
        aim: what the ratio or difference should reach, in words; empty when there is none.
    """

    figure: str
    unit: str
    ours: str
    peer: str
    ours_values: Sequence[float]
    peer_values: Sequence[float]
    aim: str = ""

    @property
    def ratios(self) -> list[float]:
        return [ours / peer for ours, peer in zip(self.ours_values, self.peer_values, strict=True)]

    @property
    def differences(self) -> list[float]:
        return [ours - peer for ours, peer in zip(self.ours_values, self.peer_values, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """The row with its ratios: median, lowest and highest."""
        return {
            "figure": self.figure,
            "unit": self.unit,
            "ours": {"name": self.ours, "values": list(self.ours_values)},
            "peer": {"name": self.peer, "values": list(self.peer_values)},
            "ratio": spread(self.ratios),
            "difference": spread(self.differences),
            "aim": self.aim,
        }


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Figures that repeats would not change: a line for each subject, a column for each candidate.

    Attributes:
        title: what was measured, with its unit.
        columns: names of the candidates.
        lines: subject -> one value a column; None where it does not apply.
        notes: what a reader must know, for example which candidate is absent and how to install it.
    """

    title: str
    columns: Sequence[str]
    lines: Mapping[str, Sequence[float | None]]
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Subject -> candidate -> value."""
        lines = {subject: dict(zip(self.columns, values, strict=True)) for subject, values in self.lines.items()}
        return {"title": self.title, "lines": lines, "notes": list(self.notes)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def paired(
    ours: Callable[[], Figures], peer: Callable[[], Figures], *, repeats: int, label: str, warm_up: int = 1
) -> dict[str, tuple[list[float], list[float]]]:
    """Run `ours`, `peer`, `ours`, `peer`, ...: figure -> its values of both sides.

    Args:
        ours, peer: each does its work once and returns what it measured; both return the same figures.
        repeats: pairs that count, at least 1.
        warm_up: pairs before that, which do not count.
    """
    if repeats < 1:
        raise ValueError(f"repeats: got {repeats}, wants at least 1")
    values: dict[str, tuple[list[float], list[float]]] = {}
    for repeat in progress(range(-warm_up, repeats), label, unit="pair"):
        left, right = ours(), peer()
        if left.keys() != right.keys():
            raise ValueError(f"the sides measured different figures: {sorted(left)} and {sorted(right)}")
        if repeat >= 0:
            for name in left:
                both = values.setdefault(name, ([], []))
                both[0].append(left[name])
                both[1].append(right[name])
    return values


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _installed(name))},
        "commit": _commit(),
    }


def show(title: str, found: Sequence[Row | Sheet], console: Console) -> None:
    """Print the table of ratios, then each sheet."""
    rows = [row for row in found if isinstance(row, Row)]
    if rows:
        _show_rows(title, rows, console)
    for sheet in found:
        if isinstance(sheet, Sheet):
            _show_sheet(sheet, console)


def _show_sheet(sheet: Sheet, console: Console) -> None:
    table = Table(title=sheet.title, title_justify="left")
    table.add_column("")
    for name in sheet.columns:
        table.add_column(name, justify="right")
    for subject, values in sheet.lines.items():
        table.add_row(subject, *("" if value is None else f"{value:.4g}" for value in values))
    console.print(table)
    for note in sheet.notes:
        console.print(note, markup=False)


def _show_rows(title: str, rows: Sequence[Row], console: Console) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("figure", "unit", "ours", "peer", "ratio, median [range]", "difference", "repeats", "aim"):
        table.add_column(name, justify="left" if name in ("figure", "unit", "aim") else "right")
    for row in rows:
        ratio, difference = spread(row.ratios), spread(row.differences)
        table.add_row(
            row.figure,
            row.unit,
            f"{row.ours} {statistics.median(row.ours_values):.4g}",
            f"{row.peer} {statistics.median(row.peer_values):.4g}",
            f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]",
            f"{difference['median']:+.4g}",
            str(len(row.ratios)),
            row.aim,
        )
    console.print(table)


def write_json(path: Path, name: str, facts: Mapping[str, Any], found: Sequence[Row | Sheet]) -> None:
    """Write the rows with every single value, the sheets, and the facts of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"benchmark": name, "machine": dict(facts), "rows": [], "sheets": []}
    for part in found:
        document["rows" if isinstance(part, Row) else "sheets"].append(part.to_json())
    atomic_write(path, json.dumps(document, indent=1) + "\n")


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
