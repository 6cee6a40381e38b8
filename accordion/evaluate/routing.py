"""The analyse stage: which experts each modality uses (arXiv 2602.04705, routing analysis; our design, section 6).

Positions fall into six groups: text; images and video that are read (the words come after them) and that are made (the
words come before); audio. The analysis is done for the full model and for every member of its family, and for the full
model again after reinforcement learning.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import hypergeom

from accordion.config.pretrain import AnalyseConfig
from accordion.data.batch import AUDIO, IMAGE, TEXT, VIDEO, Batch
from accordion.data.loader import sample
from accordion.data.tokenizers.text import SPECIAL
from accordion.model import Model, SubmodelSpec, load_model
from accordion.observe import progress
from accordion.store.atomic import atomic_write

GROUPS = ("text", "image read", "image made", "video read", "video made", "audio")
NO_GROUP = -1
TOP_SHARE = 0.25  # "most active" experts: this share of a layer's
NULLS = 20  # shufflings behind a null
BATCH = 8
FULL = "full"

Counts = NDArray[np.int64]


def analyse(config: AnalyseConfig, *, out: Path, checkpoint: Path, policy: Path, shards: Path) -> dict[str, Any]:
    """Route validation sequences through the full model, its members and the policy, and write `routing.json`.

    Args:
        checkpoint: the pre-trained model.
        policy: the same model after reinforcement learning.
        shards: packed data.

    Returns:
        For the first, middle and last layer of the full model, of each member and of the policy: IoU of the most active
        experts between groups with its chance level, normalised entropy, max/mean load, dead experts, and
        I(expert; group) with its shuffled null; and how far the policy's choices have drifted, with the drift between
        two halves of the sequences as a null.
    """
    data = sequences(shards, config.sequences)
    labels = np.concatenate([group_labels(batch) for batch in data])
    generator = np.random.default_rng(config.seed)
    model = load_model(checkpoint)
    specs = {FULL: SubmodelSpec.full(model.config)}
    specs |= {m.name: SubmodelSpec.of(model.config, m) for m in config.members}
    before: list[Counts] = []
    members = {}
    for name, spec in progress(specs.items(), "analyse", total=len(specs), unit="members"):
        choices = route(model, data, spec)
        before = choices if name == FULL else before
        members[name] = _layers(choices, labels, spec, generator)
    trained = load_model(policy)
    after = route(trained, data, specs[FULL])
    changes = [
        drift(old, new, labels, count) for old, new, count in zip(before, after, model.config.experts, strict=True)
    ]
    document = {
        "modalities": _names(labels),
        "positions": len(labels),
        "layers": members[FULL],
        "members": members,
        "policy": _layers(after, labels, specs[FULL], generator),
        "drift": changes,
    }
    atomic_write(out / "routing.json", json.dumps(document, indent=1) + "\n")
    return {
        "positions": len(labels),
        "dead_experts": sum(layer["dead"] for layer in members[FULL]),
        **_ends(members[FULL]),
        "members": {name: _ends(layers) for name, layers in members.items() if name != FULL},
        "drift": {place: changes[at] for place, at in _places(len(changes)).items()},
    }


def sequences(shards: Path, count: int) -> list[Batch]:
    """`count` validation sequences of every kind, as batches."""
    drawn = sample(shards, "val", count)
    return [drawn.select(slice(at, at + BATCH)) for at in range(0, len(drawn), BATCH)]


def group_labels(batch: Batch) -> Counts:
    """Index into GROUPS of every position that is no padding, in order.

    A picture is made if words stand before it in its document, or none at all; it is read if they only come after.
    """
    kinds, documents = batch.modality.numpy(), batch.document.numpy()
    words = (kinds == TEXT) & (batch.token.numpy() >= SPECIAL)
    vision = (kinds == IMAGE) | (kinds == VIDEO)
    labels = np.full(kinds.shape, NO_GROUP)
    labels[kinds == TEXT] = GROUPS.index("text")
    labels[kinds == AUDIO] = GROUPS.index("audio")
    for row in range(len(kinds)):
        for document in np.unique(documents[row][vision[row]]):
            own = documents[row] == document
            seen = own & vision[row]
            first = int(np.argmax(seen))
            made = bool(words[row, :first][own[:first]].any()) or not bool(words[row][own].any())
            kind = "image" if kinds[row, first] == IMAGE else "video"
            labels[row][seen] = GROUPS.index(f"{kind} {'made' if made else 'read'}")
    return labels[labels != NO_GROUP]


@torch.no_grad()
def route(model: Model, data: Sequence[Batch], spec: SubmodelSpec) -> list[Counts]:
    """The experts that positions choose when the model runs as `spec`.

    Returns:
        for each kept layer the choices (n, K), numbered from 0 among the experts kept; positions are in order, padding
        is left out, and a choice that a member does not make is the number of experts kept.
    """
    choices: dict[int, list[Counts]] = {layer: [] for layer in spec.layers}
    for batch in data:

        def keep(layer: int, positions: torch.Tensor, choice: torch.Tensor) -> None:
            choices[layer].append(choice[positions.argsort()].numpy())

        model.outputs(batch, [spec] * len(batch), observe=keep)
    found = []
    for layer, kept in zip(spec.layers, spec.experts, strict=True):
        place = np.full(model.config.experts[layer] + 1, len(kept))
        place[list(kept)] = np.arange(len(kept))
        found.append(place[np.concatenate(choices[layer])])
    return found


def describe(choice: Counts, labels: Counts, experts: int, generator: np.random.Generator) -> dict[str, Any]:
    """The figures of one layer.

    Args:
        choice: (n, K) experts chosen by each position; `experts` where one chose fewer.
        labels: (n,) group of each position.
        experts: how many the layer has, E.
        generator: shuffles labels for the null.
    """
    kinds = np.unique(labels)
    counts = _counts(choice, labels, kinds, experts)  # (M, E)
    frequency = counts / counts.sum(1, keepdims=True)
    top = max(1, round(TOP_SHARE * experts))
    most = dict(zip(kinds.tolist(), (busiest(row, top) for row in frequency), strict=True))
    load = counts.sum(0)
    nulls = [mutual_information(_counts(choice, generator.permutation(labels), kinds, experts)) for _ in range(NULLS)]
    return {
        "frequency": {GROUPS[kind]: row.tolist() for kind, row in zip(kinds, frequency, strict=True)},
        "iou": {f"{GROUPS[a]}-{GROUPS[b]}": overlap(most[a], most[b]) for a, b in combinations(kinds.tolist(), 2)},
        "iou_chance": chance_iou(experts, top),
        "entropy": {GROUPS[kind]: entropy(row) for kind, row in zip(kinds, frequency, strict=True)},
        "max_over_mean_load": float(load.max() / load.mean()),
        "dead": int((load == 0).sum()),
        "mutual_information": mutual_information(counts),
        "mutual_information_null": float(np.mean(nulls)),
    }


def drift(before: Counts, after: Counts, labels: Counts, experts: int) -> dict[str, dict[str, float]]:
    """How far the choices of one layer moved, by group: total variation between expert frequencies, 0 to 1.

    Args:
        before, after: (n, K) choices of the same positions.

    Returns:
        for each group `total_variation`; `null`, that between the even and the odd positions before; and `iou`, the
        overlap of the busiest experts before and after.
    """
    kinds = np.unique(labels)
    half = np.arange(len(labels)) % 2 == 0
    old, new, even, odd = (
        _counts(choice, own, kinds, experts)
        for choice, own in (
            (before, labels), (after, labels), (before[half], labels[half]), (before[~half], labels[~half])
        )
    )  # fmt: skip
    top = max(1, round(TOP_SHARE * experts))
    return {
        GROUPS[kind]: {
            "total_variation": total_variation(old[at], new[at]),
            "null": total_variation(even[at], odd[at]),
            "iou": overlap(busiest(old[at], top), busiest(new[at], top)),
        }
        for at, kind in enumerate(kinds)
    }


def total_variation(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Half the summed difference of two distributions, given as counts (E,) each."""
    return float(np.abs(one / max(one.sum(), 1) - other / max(other.sum(), 1)).sum() / 2)


def busiest(frequency: NDArray[Any], top: int) -> frozenset[int]:
    """The `top` experts chosen most often."""
    return frozenset(np.argsort(-frequency, kind="stable")[:top].tolist())


def overlap(one: frozenset[int], other: frozenset[int]) -> float:
    """Intersection over union."""
    return len(one & other) / len(one | other)


def chance_iou(experts: int, top: int) -> float:
    """Expected intersection over union of two independent random sets of `top` out of `experts`."""
    shared = np.arange(top + 1)
    return float((hypergeom(experts, top, top).pmf(shared) * shared / (2 * top - shared)).sum())


def entropy(frequency: NDArray[np.float64]) -> float:
    """Normalised entropy -sum p log p / log E of expert frequencies (E,): 1 is even use, 0 a single one of several."""
    if len(frequency) == 1:
        return 1.0
    used = frequency[frequency > 0]
    return float(-(used * np.log(used)).sum() / np.log(len(frequency)))


def mutual_information(counts: Counts) -> float:
    """I(expert; group) in nats from assignment counts (M, E)."""
    joint = counts / counts.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())


def _counts(choice: Counts, labels: Counts, kinds: Counts, experts: int) -> Counts:
    return np.stack([np.bincount(choice[labels == kind].ravel(), minlength=experts + 1)[:experts] for kind in kinds])


def _layers(
    choices: Sequence[Counts], labels: Counts, spec: SubmodelSpec, generator: np.random.Generator
) -> list[dict[str, Any]]:
    return [
        {"layer": layer, **describe(choice, labels, len(kept), generator)}
        for layer, kept, choice in zip(spec.layers, spec.experts, choices, strict=True)
    ]


def _names(labels: Counts) -> list[str]:
    return [GROUPS[label] for label in np.unique(labels)]


def _places(count: int) -> dict[str, int]:
    return {"first": 0, "middle": count // 2, "last": count - 1}


def _ends(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of the first, middle and last layer; the frequencies stay in the file."""
    return {
        place: {key: value for key, value in layers[at].items() if key != "frequency"}
        for place, at in _places(len(layers)).items()
    }
