"""The sections on tokenizers, pre-training, the elastic family, routing and post-training."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from accordion.extract.plot import pareto
from accordion.report import plots, samples
from accordion.report.budgets import vision_tables
from accordion.report.readers import problem_rows, routing_layers, routing_members
from accordion.report.run import RunFigures, read_curves
from accordion.report.section import Drawing, Section, Table, absent
from accordion.report.summary import MODALITIES, Modality, Pretrain, Summary
from accordion.report.words import count, flat, listing, number, power


def tokenizers(run: RunFigures, summary: Summary) -> Section:
    rows = [
        (stage.removesuffix("_tokenizer"), name.replace("_", " "), number(value))
        for stage in ("text_tokenizer", "vision_tokenizer", "audio_tokenizer")
        for name, value in flat(run.metrics.get(stage, {}))
    ]
    if not rows:
        return absent("tokenizers", "Tokenizers", "No tokenizer was trained in this run.")
    media = samples.reconstructions(run)
    return Section(
        anchor="tokenizers",
        title="Tokenizers",
        finding="Pictures and sounds from the validation split, and what is left of them after encoding and decoding."
        if media
        else "What each tokenizer measured on the validation split.",
        media=media,
        tables=[
            Table(
                caption="Figures of the three tokenizers",
                header=("tokenizer", "figure", "value"),
                rows=rows,
                words=("tokenizer", "figure"),
            ),
            *vision_tables(run.metrics.get("vision_tokenizer", {})),
        ],
    )


def pretraining(run: RunFigures, summary: Summary) -> Section:
    if summary.pretrain is None:
        return absent("pretrain", "Pre-training", "No model was pre-trained in this run.")
    gains = unigram_gains(summary.pretrain)
    curves_file = run.file("pretrain", "curves.jsonl")
    drawings = []
    if curves_file is not None:
        drawings.append(
            Drawing(
                name="losses",
                figure=plots.losses(read_curves(curves_file), summary.pretrain),
                caption="Training loss (thin: each step; thick: running mean), the full model’s validation loss (dot), "
                "and what a model that knows only frequencies would reach (dashed).",
                alt="Training loss by step for "
                + "; ".join(
                    f"{m}, ending at {summary.pretrain.val_loss_full[m]:.3f} nats against a unigram "
                    f"{summary.pretrain.val_loss_unigram[m]:.3f}"
                    for m in MODALITIES
                ),
            )
        )
    rows = [
        (
            modality,
            f"{summary.pretrain.val_loss_full[modality]:.4f}",
            f"{summary.pretrain.val_loss_unigram[modality]:.4f}",
            f"{-gains[modality]:+.1%}",
            plots.UNITS[modality].removeprefix("a "),
        )
        for modality in MODALITIES
    ]
    media, said = samples.generated(run)
    finding = "On validation data the full model is under the unigram baseline by " + (
        listing([f"{gains[m]:.0%} for {m}" for m in MODALITIES]) + "."
    )
    return Section(
        anchor="pretrain",
        title="Pre-training",
        finding=finding,
        drawings=drawings,
        media=media,
        tables=[
            Table(
                caption="Validation loss in nats",
                header=("modality", "full model", "unigram", "difference", "for each"),
                rows=rows,
                words=("modality", "for each"),
            ),
            *([_said(said)] if said else []),
        ],
    )


def _said(rows: Sequence[tuple[str, str, str]]) -> Table:
    header = ("asked", "in truth", "the model")
    caption = "What the pre-trained model says of validation records, one answer each, nothing picked"
    return Table(caption=caption, header=header, rows=rows, words=header)


def elastic(run: RunFigures, summary: Summary) -> Section:
    searched, registered = _search(run), _registered(run)
    if summary.pretrain is None or not summary.pretrain.submodels:
        if searched is None:
            return absent("family", "Elastic family", "No sub-models were measured in this run.")
        found = len(searched["members"])
        return Section(
            anchor="family",
            title="Elastic family",
            finding=f"A search judged {len(searched['trials'])} sub-models and wrote {found} of its Pareto front.",
            drawings=[_pareto(searched)],
            tables=registered,
        )
    members = summary.pretrain.submodels
    rows = [
        (
            m.name,
            *(_size(axis) for axis in (m.layers, m.experts, m.top_k)),
            count(m.parameters),
            count(m.active_parameters),
            *(f"{m.val_loss[modality]:.4f}" for modality in MODALITIES),
        )
        for m in members
    ]
    finding = f"One pre-training run gave {len(members)} models that share their weights."
    if summary.extract is not None:
        finding += (
            f" {len(summary.extract.members) or 'The'} of them were cut out as files of their own; their logits differ "
            f"from the masked full model’s by at most {power(summary.extract.max_abs_logit_diff)}."
        )
    return Section(
        anchor="family",
        title="Elastic family",
        finding=finding,
        drawings=[
            Drawing(
                name="family",
                figure=plots.family(summary.pretrain),
                caption="Validation loss of each member against the parameters active for one token; lower left is "
                "better. The filled mark is the full model.",
                alt="Validation text loss of the family: "
                + ", ".join(f"{m.name} {m.val_loss['text']:.3f} at {m.active_parameters:,} active" for m in members),
            ),
            *([_pareto(searched)] if searched is not None else []),
        ],
        tables=[
            Table(
                caption="Members of the family; losses in nats",
                header=("member", "layers", "experts", "top-k", "parameters", "active", *MODALITIES),
                rows=rows,
                words=("member",),
            ),
            *registered,
        ],
    )


def _search(run: RunFigures) -> Mapping[str, Any] | None:
    path = run.file("search", "search.json")
    return None if path is None else json.loads(path.read_text())


def _pareto(searched: Mapping[str, Any]) -> Drawing:
    front = [searched["trials"][index] for index in searched["front"]]
    return Drawing(
        name="pareto",
        figure=pareto(searched),
        caption="A search over depth, experts and top-k of each layer. Loss: mean over modalities of the loss over the "
        "full model’s, on the sequences that steered the search. Squares were written as models.",
        alt=f"Pareto front of {len(front)} members, from {front[0]['relative_loss']:.3f} of the full model’s loss at "
        f"the lowest cost to {front[-1]['relative_loss']:.3f} at the highest",
    )


def _registered(run: RunFigures) -> list[Table]:
    path = run.file("register_family", "family.json")
    if path is None:
        return []
    return [
        Table(
            caption="Where the full model and its members stand in the MLflow registry",
            header=("registered model", "version"),
            rows=list(json.loads(path.read_text()).items()),
            words=("registered model",),
        )
    ]


def routing(run: RunFigures, summary: Summary) -> Section:
    path = run.file("analyse", "routing.json")
    if path is None:
        return absent("routing", "Routing", "The routing of this run was not analysed, or its analysis is gone.")
    layers, pairs, chance = routing_layers(path)
    members, drift = routing_members(path)
    last = [pair for pair in pairs if pair[0] == layers[-1].name]
    ends = sorted(last, key=lambda pair: pair[2])
    finding = (
        f"One router serves all modalities. In the last layer {ends[-1][1]} share most of their busiest "
        f"experts (IoU {ends[-1][2]:.2f}) and {ends[0][1]} fewest ({ends[0][2]:.2f}); by chance it would be "
        f"{chance:.2f}."
        if ends
        else "One router serves all modalities."
    )
    return Section(
        anchor="routing",
        title="Routing",
        finding=finding,
        drawings=[
            Drawing(
                name="routing",
                figure=plots.routing(layers),
                caption="Where the choices of a group’s tokens go; pictures read come before their words, pictures "
                "made after them. IoU: overlap of the most active quarter of the experts between two groups, mean over "
                "the pairs.",
                alt="Heat maps of expert choice by group for " + listing([layer.name for layer in layers]),
            ),
            Drawing(
                name="routing-members",
                figure=plots.routing_members(members),
                caption="The same for every member of the family: its first (circle), middle (square) and last layer "
                "(filled), and in red what chance gives.",
                alt="Routing of " + listing([member.name for member in members]),
            ),
        ],
        tables=[
            Table(
                caption=f"Overlap of the busiest experts between groups (chance {chance:.3f})",
                header=("layer", "groups", "IoU"),
                rows=[(layer, names, f"{value:.3f}") for layer, names, value in pairs],
                words=("layer", "groups"),
            ),
            Table(
                caption="What reinforcement learning changed: total variation between expert frequencies before and "
                "after (0 to 1), the same between two halves of the positions before, and overlap of the busiest "
                "experts before and after",
                header=("layer", "group", "change", "null", "IoU"),
                rows=[(layer, group, *(f"{value:.3f}" for value in values)) for layer, group, *values in drift],
                words=("layer", "group"),
            ),
        ],
    )


def reinforcement(run: RunFigures, summary: Summary) -> Section:
    if summary.posttrain is None:
        return absent("posttrain", "Post-training", "No reinforcement learning in this run.")
    post = summary.posttrain
    low, high = post.pass_after_interval
    path = run.file("rl", "curves.jsonl")
    curves = read_curves(path) if path is not None else {}
    examples = problem_rows(run.file("rl", "problems.jsonl"))
    return Section(
        anchor="posttrain",
        title="Post-training",
        finding=f"After reinforcement learning {post.pass_after:.1%} of {post.count:,} held-out problems are solved, "
        f"before it {post.pass_before:.1%} (95% interval after: {low:.1%} to {high:.1%}).",
        drawings=[
            Drawing(
                name="reinforcement",
                figure=plots.reinforcement(curves, post),
                caption="Left: reward of the rollouts by step. Right: pass rate with its Wilson 95% interval.",
                alt=f"Pass rate rises from {post.pass_before:.1%} to {post.pass_after:.1%}"
                if post.pass_after > post.pass_before
                else f"Pass rate {post.pass_before:.1%} before and {post.pass_after:.1%} after",
            )
        ],
        tables=[
            Table(
                caption="Some held-out problems",
                header=examples.header,
                rows=examples.rows,
                words=examples.header,
            )
        ]
        if examples.rows
        else [],
    )


def unigram_gains(pretrain: Pretrain) -> dict[Modality, float]:
    """How far under the unigram baseline the full model is, as a share of it, by modality."""
    return {m: 1 - pretrain.val_loss_full[m] / pretrain.val_loss_unigram[m] for m in MODALITIES}


def _size(axis: object) -> object:
    return len(axis) if isinstance(axis, list | tuple) else axis
