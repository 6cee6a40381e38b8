"""What the report is made from: the figures, times, folders and addresses of one run, and how they are kept."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accordion.errors import DataError
from accordion.report.summary import StageTiming
from accordion.store.atomic import atomic_write

RUN_FILE = "run.json"


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """One run, as the report sees it.

    Attributes:
        metrics: stage -> what the stage returned (the contents of its metrics.json).
        timings: stage -> seconds and whether it was a cache hit, in the order of the DAG.
        folders: stage -> its artifact folder (curves.jsonl, routing.json, ... are read from there).
        links: name -> address: `mlflow` (UI), `endpoint` (where the model is served), `example` (a command
            that sends one request). Shown as text and links; nothing is loaded from them.
        about: name -> text shown under the title, for example profile, execution, commit, started.
    """

    metrics: Mapping[str, Mapping[str, Any]]
    timings: Mapping[str, StageTiming]
    folders: Mapping[str, Path] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write run.json into `folder`, so that `load` and `render` can make the report again."""
        document = asdict(self)
        document["timings"] = {stage: timing.model_dump() for stage, timing in self.timings.items()}
        document["folders"] = {stage: str(path) for stage, path in self.folders.items()}
        atomic_write(folder / RUN_FILE, json.dumps(document, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "RunFigures":
        """Read what `save` wrote.

        Raises:
            DataError: there is no readable run.json in `folder`.
        """
        path = folder / RUN_FILE
        if not path.is_file():
            raise DataError(f"{folder}: no {RUN_FILE}, so no report was made there; pass a folder of a finished run")
        try:
            document = json.loads(path.read_text())
            return cls(
                metrics=document["metrics"],
                timings={stage: StageTiming(**timing) for stage, timing in document["timings"].items()},
                folders={stage: Path(text) for stage, text in document["folders"].items()},
                links=document["links"],
                about=document["about"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not readable ({error}); run the pipeline again to write a new one") from None

    def file(self, stage: str, name: str) -> Path | None:
        """A file of a stage's artifact, or None when the stage did not run or the artifact was collected."""
        folder = self.folders.get(stage)
        path = folder / name if folder is not None else None
        return path if path is not None and path.is_file() else None


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Each line of a JSON-lines file.

    Raises:
        DataError: a line is no JSON object; the text names file and line.
    """
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: not JSON ({error}); run the stage that wrote it again") from None
            if not isinstance(value, dict):
                raise DataError(f"{path}:{number}: got {type(value).__name__}, wants an object")
            yield value


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """curves.jsonl (`{"step": n, "loss/text": x, ...}` a line) as name -> [(step, value), ...]."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in read_jsonl(path):
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                curves.setdefault(name, []).append((int(row["step"]), float(value)))
    return curves
