"""Files of the artifacts that the report shows, read into what the figures and tables want."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from accordion.errors import DataError
from accordion.report.plots import RoutingLayer, RoutingMember
from accordion.report.run import read_jsonl
from accordion.report.words import mark

Overlap = tuple[str, str, float]  # layer title, the two groups, IoU of their busiest experts
Drift = tuple[str, str, float, float, float]  # layer title, group, total variation, its null, IoU before and after


def routing_layers(path: Path) -> tuple[list[RoutingLayer], list[Overlap], float]:
    """First, middle and last layer of routing.json, every pair's overlap in them, and the chance level.

    Raises:
        DataError: the file is not what the stage `analyse` writes; the text names the key.
    """
    try:
        document = json.loads(path.read_text())
        modalities, layers = document["modalities"], document["layers"]
        chosen = sorted({0, len(layers) // 2, len(layers) - 1})
        titles = {index: f"layer {layers[index]['layer']}, {_place(index, len(layers))}" for index in chosen}
        chance = float(layers[-1]["iou_chance"])
        heat, overlaps = [], []
        for index in chosen:
            layer = layers[index]
            pairs = [(name.replace("-", " and "), float(value)) for name, value in layer["iou"].items()]
            overlaps += [(titles[index], names, value) for names, value in pairs]
            mean = f"IoU {np.mean([value for _, value in pairs]):.2f}, " if pairs else ""
            heat.append(
                RoutingLayer(
                    name=titles[index],
                    modalities=modalities,
                    frequency=np.array([layer["frequency"][modality] for modality in modalities], dtype=float),
                    note=f"{mean}chance {float(layer['iou_chance']):.2f}",
                )
            )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a routing analysis ({error!r}); run the stage analyse again") from None
    return heat, overlaps, chance


def routing_members(path: Path) -> tuple[list[RoutingMember], list[Drift]]:
    """First, middle and last layer of every member in routing.json and of the policy, and the drift through RL.

    Raises:
        DataError: the file is not what the stage `analyse` writes; the text names the key.
    """
    try:
        document = json.loads(path.read_text())
        family = {**document["members"], "full, after RL": document["policy"]}
        members = [_member(name, layers) for name, layers in family.items()]
        drift = []
        for index in sorted({0, len(document["drift"]) // 2, len(document["drift"]) - 1}):
            title = f"layer {index}, {_place(index, len(document['drift']))}"
            for group, found in document["drift"][index].items():
                drift.append((title, group, found["total_variation"], found["null"], found["iou"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a routing analysis ({error!r}); run the stage analyse again") from None
    return members, drift


def _member(name: str, layers: Sequence[dict[str, Any]]) -> RoutingMember:
    three = [layers[index] for index in sorted({0, len(layers) // 2, len(layers) - 1})]
    return RoutingMember(
        name=name,
        overlap=[float(np.mean(list(layer["iou"].values()) or [0.0])) for layer in three],
        chance=[layer["iou_chance"] for layer in three],
        information=[layer["mutual_information"] for layer in three],
        null=[layer["mutual_information_null"] for layer in three],
        load=[layer["max_over_mean_load"] for layer in three],
    )


def _place(index: int, count: int) -> str:
    return "first" if index == 0 else "last" if index == count - 1 else "middle"


@dataclass(frozen=True)
class Problems:
    """Held-out problems as table rows."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def problem_rows(path: Path | None, count: int = 8) -> Problems:
    """Some held-out problems with the greedy answers before and after; half of them newly solved, if there are any."""
    if path is None:
        return Problems((), [])
    rows = list(read_jsonl(path))
    try:
        new = [row for row in rows if row["after"]["passed"] and not row["before"]["passed"]]
        rest = [row for row in rows if row not in new]
        chosen = new[: count // 2] + rest[: count - len(new[: count // 2])]
        return Problems(
            ("problem", "answer", "before", "after"),
            [(row["prompt"], str(row["answer"]), _said(row["before"]), _said(row["after"])) for row in chosen],
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: {error!r} is missing in a row; run the stage rl again") from None


def _said(answer: dict[str, Any]) -> Markup:
    return mark(answer["passed"], escape(answer["response"].strip() or "(nothing)"))
