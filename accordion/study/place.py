"""Where a study works, and its finished units: each says what it was made of, so that none of another study is read."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from accordion.config.study import StudyConfig
from accordion.errors import ArtifactError
from accordion.store.atomic import atomic_write
from accordion.study.units import FIXED, Unit, settings, units
from accordion.train.checkpoint import differences

NAMED = 3  # differences that an error lists


@dataclass(frozen=True)
class Place:
    """Where a study works.

    Attributes:
        study: its settings.
        data: exported shards.
        out: folder of `units/` (figures of the finished ones), `models/` and `partial/` (checkpoints).
        device: of the runs.
        digest: of the data; units and checkpoints of other data or settings are refused.
        deadline: `time.time()` at which a run saves its state and stops; None: never.
        made: what is told of a unit that this call works on: command, commit, device, versions.
    """

    study: StudyConfig
    data: Path
    out: Path
    device: str
    digest: str
    deadline: float | None = None
    made: Mapping[str, Any] = field(default_factory=dict)

    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.time() > self.deadline

    def result(self, unit: Unit | str) -> Path:
        """The figures of a finished unit."""
        return self.out / "units" / f"{unit if isinstance(unit, str) else unit.name}.json"

    def model(self, name: str) -> Path:
        """The weights of a finished unit."""
        return self.out / "models" / name

    def partial(self, unit: Unit) -> Path:
        """The checkpoints of an unfinished unit."""
        return self.out / "partial" / unit.name

    def made_now(self) -> dict[str, Any]:
        """What is told of the work of this process."""
        return {**self.made, "threads": torch.get_num_threads()}


def identity(place: Place, unit: Unit) -> dict[str, Any]:
    """What determines the training of a unit; of a recovery also the weights it begins with, once they are known."""
    found = {
        "unit": unit.name,
        "settings": json.loads(settings(place.study, unit).model_dump_json()),
        "data": place.digest,
    }
    if unit.needs is not None and place.result(unit.needs).is_file():
        found["source"] = {"unit": unit.needs, "weights": read_json(place.result(unit.needs)).get("weights")}
    return found


def whole_identity(place: Place, unit: Unit) -> dict[str, Any]:
    """What determines the figures of a finished unit: its training, and on what it is judged."""
    judged = {"validation_sequences": place.study.validation_sequences}
    if unit.kind == FIXED:
        judged["ranking_sequences"] = place.study.ranking_sequences
    return {**identity(place, unit), "judged": judged}


def read_unit(place: Place, unit: Unit) -> dict[str, Any] | None:
    """The figures of a unit; None where it is not finished.

    Raises:
        ArtifactError: it is of other settings or data, or says of none.
    """
    path = place.result(unit)
    if not path.is_file():
        return None
    figures = read_json(path)
    check_identity(str(path), figures.get("identity"), whole_identity(place, unit))
    return figures


def write_unit(place: Place, unit: Unit, figures: Mapping[str, Any], made: Iterable[Mapping[str, Any]]) -> None:
    """Keep the figures of a unit that is finished; `made`: of each call that worked on it."""
    document = {**figures, "made": list(made), "identity": whole_identity(place, unit)}
    place.result(unit).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(place.result(unit), json.dumps(document, indent=1) + "\n")


def unfinished(place: Place) -> list[Unit]:
    """The units that are still to be run, in order.

    Raises:
        ArtifactError: finished units are of other settings or data; names the first.
    """
    found, refused = [], []
    for unit in units(place.study):
        try:
            if read_unit(place, unit) is None:
                found.append(unit)
        except ArtifactError as error:
            refused.append(error)
    if refused:
        others = f" (so for {len(refused) - 1} other finished units)" if len(refused) > 1 else ""
        raise ArtifactError(f"{refused[0]}{others}")
    return found


def check_identity(where: str, held: Any, wanted: Mapping[str, Any]) -> None:
    """Refuse figures that were not made as they would be now.

    Raises:
        ArtifactError: names the file and the settings that differ.
    """
    why = "does not say of which settings and data it is"
    if isinstance(held, dict):
        lines = differences({key: held.get(key) for key in wanted}, dict(wanted))
        if not lines:
            return
        more = f"; and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
        why = f"was made with other settings or data ({'; '.join(lines[:NAMED])}{more})"
    raise ArtifactError(f"{where}: {why}; give a new --out, or delete this file so that it is made again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ArtifactError(f"{path}: not readable ({error}); delete this file so that it is made again") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{path}: holds no figures; delete this file so that it is made again")
    return found
