"""The analyse stage: which experts each modality uses (arXiv 2602.04705, routing analysis; our design, section 6)."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import hypergeom

from accordion.config.pretrain import AnalyseConfig
from accordion.data.batch import MODALITIES
from accordion.data.loader import batches
from accordion.errors import DataError
from accordion.model import Model, load_model
from accordion.observe import progress
from accordion.store.atomic import atomic_write

TOP_SHARE = 0.25  # "most active" experts: this share of a layer's
NULLS = 20  # shufflings behind a null
BATCH = 8

Counts = NDArray[np.int64]


def analyse(config: AnalyseConfig, *, out: Path, checkpoint: Path, shards: Path) -> dict[str, Any]:
    """Route validation sequences through the full model and write `routing.json`.

    Returns:
        For the first, middle and last layer: IoU of the most active experts between modalities with its chance
        level, normalised entropy, max/mean load, dead experts, and I(expert; modality) with its shuffled null.
    """
    model = load_model(checkpoint)
    choices, labels = route(model, shards, config.sequences)
    names = [MODALITIES[label] for label in np.unique(labels)]
    generator = np.random.default_rng(config.seed)
    layers = [
        {"layer": layer, **describe(choice, labels, model.config.experts[layer], generator)}
        for layer, choice in enumerate(choices)
    ]
    document = {"modalities": names, "positions": len(labels), "layers": layers}
    atomic_write(out / "routing.json", json.dumps(document, indent=1) + "\n")
    shown = {"first": layers[0], "middle": layers[len(layers) // 2], "last": layers[-1]}
    return {
        "positions": len(labels),
        "dead_experts": sum(layer["dead"] for layer in layers),
        **{name: {k: v for k, v in layer.items() if k != "frequency"} for name, layer in shown.items()},
    }


@torch.no_grad()
def route(model: Model, shards: Path, sequences: int) -> tuple[list[Counts], Counts]:
    """The experts that validation positions choose.

    Returns:
        For each layer the choices (n, K) and, the same for all, the modality (n,) of each position; positions are
        in the order of the shards, padding is left out.

    Raises:
        DataError: the validation split is empty.
    """
    choices: list[list[Counts]] = [[] for _ in model.layers]
    labels: list[Counts] = []
    loaded = batches(shards, "val", BATCH)
    for _, batch in zip(progress(range(-(-sequences // BATCH)), "analyse", unit="batches"), loaded, strict=False):
        kinds = batch.modality.flatten().numpy()

        def keep(layer: int, positions: torch.Tensor, choice: torch.Tensor) -> None:
            choices[layer].append(choice[positions.argsort()].numpy())

        model.outputs(batch, observe=keep)
        labels.append(kinds[kinds > 0])
    if not labels:
        raise DataError(f"{shards}: the validation split is empty; there is nothing to route")
    return [np.concatenate(layer) for layer in choices], np.concatenate(labels)


def describe(choice: Counts, labels: Counts, experts: int, generator: np.random.Generator) -> dict[str, Any]:
    """The figures of one layer.

    Args:
        choice: (n, K) experts chosen by each position.
        labels: (n,) modality of each position.
        experts: how many the layer has, E.
        generator: shuffles labels for the null.
    """
    kinds = np.unique(labels)
    counts = _counts(choice, labels, kinds, experts)  # (M, E)
    frequency = counts / counts.sum(1, keepdims=True)
    top = max(1, round(TOP_SHARE * experts))
    busiest = {kind: set(np.argsort(-row, kind="stable")[:top]) for kind, row in zip(kinds, frequency, strict=True)}
    load = counts.sum(0)
    nulls = [mutual_information(_counts(choice, generator.permutation(labels), kinds, experts)) for _ in range(NULLS)]
    return {
        "frequency": {MODALITIES[kind]: row.tolist() for kind, row in zip(kinds, frequency, strict=True)},
        "iou": {
            f"{MODALITIES[a]}-{MODALITIES[b]}": len(busiest[a] & busiest[b]) / len(busiest[a] | busiest[b])
            for a, b in combinations(kinds, 2)
        },
        "iou_chance": chance_iou(experts, top),
        "entropy": {MODALITIES[kind]: entropy(row) for kind, row in zip(kinds, frequency, strict=True)},
        "max_over_mean_load": float(load.max() / load.mean()),
        "dead": int((load == 0).sum()),
        "mutual_information": mutual_information(counts),
        "mutual_information_null": float(np.mean(nulls)),
    }


def chance_iou(experts: int, top: int) -> float:
    """Expected intersection over union of two independent random sets of `top` out of `experts`."""
    shared = np.arange(top + 1)
    return float((hypergeom(experts, top, top).pmf(shared) * shared / (2 * top - shared)).sum())


def entropy(frequency: NDArray[np.float64]) -> float:
    """Normalised entropy -sum p log p / log E of expert frequencies (E,): 1 is even use, 0 a single expert."""
    used = frequency[frequency > 0]
    return float(-(used * np.log(used)).sum() / np.log(len(frequency)))


def mutual_information(counts: Counts) -> float:
    """I(expert; modality) in nats from assignment counts (M, E)."""
    joint = counts / counts.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())


def _counts(choice: Counts, labels: Counts, kinds: Counts, experts: int) -> Counts:
    return np.stack([np.bincount(choice[labels == kind].ravel(), minlength=experts) for kind in kinds])
