"""Search for the members of an elastic model worth having: the lowest loss for what they cost.

A member is a depth and, for each layer it keeps, a number of experts and a top-k; which layers and which experts are
kept follows the nested order that training used. NSGA-II (Deb et al. 2002, from Optuna) weighs the loss against one
cost, under limits on all of them. A candidate is judged inside the full model, where it runs as exactly the model that
extraction would write.
"""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from accordion.config.extract import BudgetConfig, Cost, SearchConfig
from accordion.config.pretrain import ModelConfig
from accordion.data.batch import Batch
from accordion.device import settle
from accordion.errors import ConfigError
from accordion.extract.family import write_member
from accordion.extract.plot import pareto
from accordion.extract.slicing import cut
from accordion.model import Model, SubmodelSpec, load_model
from accordion.model.elastic import expert_order, fixed_layers, parameter_counts
from accordion.model.files import weights_size
from accordion.observe import progress, record
from accordion.store.atomic import atomic_write
from accordion.train.validate import validation_losses

ROWS = 8  # sequences in a batch
NARROWEST = 0.5  # share of a layer's experts: the fewest that elastic training draws
NOT_JUDGED = 1e9  # loss of a member above the budget, which any within it beats
EVEN_STEPS = 4  # sizes of each axis that the search begins with


@dataclass(frozen=True)
class Found:
    """A judged member.

    Attributes:
        spec: what it keeps.
        costs: parameters, active_parameters, bytes and, where it is asked for, latency_ms.
        losses: nats by modality on the sequences that steer the search.
        loss: mean over modalities of its loss over the full model's; the full model has 1.
    """

    spec: SubmodelSpec
    costs: dict[Cost, float]
    losses: dict[str, float]
    loss: float

    def to_json(self) -> dict[str, Any]:
        spec = {"layers": self.spec.layers, "experts": self.spec.experts, "top_k": self.spec.top_k}
        return {**spec, "costs": self.costs, "val_loss": self.losses, "relative_loss": self.loss}


def search_family(config: SearchConfig, *, out: Path, policy: Path, shards: Path) -> dict[str, Any]:
    """Search, and write `search.json`, `pareto.png` and `members/NAME/` for members along the Pareto front.

    Args:
        policy: folder of the full elastic model.
        shards: packed data; half of the validation sequences drawn steer the search, the others judge its result,
            so that the losses given for the members found, here and on their cards, are of sequences that did not
            choose them.

    Returns:
        how many members were tried, how many different ones within the budget were judged, how many are on the
        front, and the members written.

    Raises:
        ConfigError: no member fits the budget; the text names the smallest there is.
        ArtifactError: logits of a member or of the full model are no numbers.
    """
    model = load_model(policy)
    steering, judging = _sequences(shards, config.sequences)
    judge = _Judge(config, model, steering)
    least = judge.costs(_smallest(model.config))
    if over := excess(least, config.budget):
        raise ConfigError(
            f"search.budget: no member of this model fits; the smallest has {listed(least)}; raise {', '.join(over)}"
        )
    _search(config, model.config, judge)
    found = list(judge.known.values())
    if not found:
        raise ConfigError(f"search.trials: none of {config.trials} members was within the budget; try more")
    front = pareto_front(found, config.cost)
    chosen = spread(front, config.members)
    full = validation_losses(model, judging)
    members = [
        _write(policy, model, member, out / "members" / f"found-{number}", judging, full)
        for number, member in enumerate(chosen, 1)
    ]
    document = {
        "cost": config.cost,
        "budget": config.budget.model_dump(),
        "device": str(model.norm.weight.device) + (f", {torch.get_num_threads()} threads" if judge.timed else ""),
        "full": judge.full_losses,
        "held_out_full": full,
        "trials": [member.to_json() for member in found],
        "front": [found.index(member) for member in front],
        "members": members,
    }
    atomic_write(out / "search.json", json.dumps(document, indent=1) + "\n")
    pareto(document).savefig(out / "pareto.png", dpi=120)
    return {"tried": config.trials, "judged": len(found), "front": len(front), "members": members}


def excess(costs: dict[Cost, float], budget: BudgetConfig) -> dict[str, float]:
    """How far each cost is above its limit, as a share of the limit; limits that hold are left out."""
    limits = {name: limit for name, limit in budget.model_dump().items() if limit is not None}
    over = {name: costs[name] / limit - 1 for name, limit in limits.items()}  # type: ignore[index]  # names of costs
    return {name: share for name, share in over.items() if share > 0}


def pareto_front(found: Sequence[Found], cost: Cost) -> list[Found]:
    """The members that no other one beats in loss without costing more, from the cheapest on."""
    front: list[Found] = []
    for member in sorted(found, key=lambda member: (member.costs[cost], member.loss)):
        if not front or member.loss < front[-1].loss:
            front.append(member)
    return front


def spread(front: Sequence[Found], count: int) -> list[Found]:
    """At most `count` members of a front, evenly from its best to its cheapest, the best first."""
    best_first = list(reversed(front))
    if count == 1 or len(front) <= count:
        return best_first[:count]
    return [best_first[round(step * (len(front) - 1) / (count - 1))] for step in range(count)]


def relative(losses: dict[str, float], full: dict[str, float]) -> float:
    """Mean over modalities of loss over the full model's loss: nats of different things made comparable."""
    return sum(losses[name] / full[name] for name in full) / len(full)


def _write(
    policy: Path, model: Model, member: Found, folder: Path, judging: Sequence[Batch], full: dict[str, float]
) -> dict[str, Any]:
    """Cut a member out, and what search.json says of it."""
    timed: dict[str, float] = {name: value for name, value in member.costs.items() if name == "latency_ms"}
    figures = write_member(policy, model, member.spec, folder, judging, full, known=timed)
    losses = figures["val_loss"]
    judged = {"held_out_val_loss": losses, "held_out_relative_loss": relative(losses, full)}
    written = {key: figures[key] for key in ("max_abs_logit_diff", "huggingface")}
    return {"name": folder.name, **member.to_json(), **judged, **written}


class _Judge:
    """Measures candidates, each once."""

    def __init__(self, config: SearchConfig, model: Model, data: Sequence[Batch]) -> None:
        self.config, self.model, self.data = config, model, data
        self.full_losses = validation_losses(model, data)
        self.known: dict[SubmodelSpec, Found] = {}
        self._costs: dict[SubmodelSpec, dict[Cost, float]] = {}
        self.timed = config.cost == "latency_ms" or config.budget.latency_ms is not None

    def __call__(self, spec: SubmodelSpec) -> Found | None:
        """The figures of a member, or None where it is above the budget, which costs nothing to find out."""
        if spec not in self.known:
            costs = self.costs(spec)
            if excess(costs, self.config.budget):
                return None
            losses = validation_losses(self.model, self.data, spec)
            self.known[spec] = Found(spec, costs, losses, relative(losses, self.full_losses))
        return self.known[spec]

    def costs(self, spec: SubmodelSpec) -> dict[Cost, float]:
        """What a member costs; its latency is measured, once, only if the search asks for it."""
        if spec not in self._costs:
            config = spec.config(self.model.config)
            total, active = parameter_counts(config)
            costs: dict[Cost, float] = {"parameters": total, "active_parameters": active, "bytes": weights_size(config)}
            if self.timed:
                sequence = self.data[0].select([0])
                costs["latency_ms"] = latency_ms(cut(self.model, spec), sequence, self.config.latency_repeats)
            self._costs[spec] = costs
        return self._costs[spec]


@torch.no_grad()
def latency_ms(model: Model, batch: Batch, repeats: int) -> float:
    """Median milliseconds of a forward pass of `batch`, after one that warms up."""
    device = model.norm.weight.device
    batch, times = batch.to(device), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model.outputs(batch)
        settle(device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def _search(config: SearchConfig, shape: ModelConfig, judge: _Judge) -> None:
    """Let the judge see members until `trials` were tried."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.NSGAIISampler(population_size=config.population, seed=config.seed)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for genes in _even_members(shape)[: config.trials]:
        study.enqueue_trial(genes)
    for number in progress(range(config.trials), "search", unit="members"):
        trial = study.ask()
        spec = _spec(shape, trial)
        member = judge(spec)
        costs = judge.costs(spec)
        loss = NOT_JUDGED if member is None else member.loss
        for name, share in excess(costs, config.budget).items():
            trial.set_constraint(name, share)
        study.tell(trial, [loss, costs[config.cost]])
        if member is not None:
            record(number, {"search/relative_loss": loss, f"search/{config.cost}": costs[config.cost]})


def _spec(shape: ModelConfig, trial: Any) -> SubmodelSpec:
    """The member that a trial's genes name; genes of layers that it leaves out have no effect."""
    least = len(fixed_layers(shape))
    depth = trial.suggest_int("layers", least, shape.layers)
    kept = SubmodelSpec.nested(shape, layers=depth).layers
    experts, top_k = [], []
    for layer in range(shape.layers):
        most = shape.experts[layer]
        width = most if shape.isolated else trial.suggest_int(f"experts_{layer}", _narrowest(shape, layer), most)
        used = trial.suggest_int(f"top_k_{layer}", 1, shape.top_k[layer])
        if layer in kept:
            experts.append(tuple(sorted(expert_order(shape, layer)[:width])))
            top_k.append(used)
    spec = SubmodelSpec(kept, tuple(experts), tuple(top_k))
    spec.check(shape)
    return spec


def _smallest(shape: ModelConfig) -> SubmodelSpec:
    """The member that costs least of those the search tries."""
    kept = fixed_layers(shape)
    widths = [shape.experts[layer] if shape.isolated else _narrowest(shape, layer) for layer in kept]
    experts = [tuple(sorted(expert_order(shape, at)[:width])) for at, width in zip(kept, widths, strict=True)]
    return SubmodelSpec(kept, tuple(experts), (1,) * len(kept))


def _even_members(shape: ModelConfig) -> list[dict[str, int]]:
    """Genes of members alike in all layers, the full one first, then the smallest: what the search begins with."""
    least, most_k = len(fixed_layers(shape)), max(shape.top_k)
    depths = _steps(least, shape.layers)
    widths = [1 - step * (1 - NARROWEST) / (EVEN_STEPS - 1) for step in range(EVEN_STEPS)]
    uses = _steps(max(1, most_k // 2), most_k)
    full, smallest = _even(shape, shape.layers, 1.0, most_k), _even(shape, least, 0.0, 1)
    found = [full, smallest]  # the smallest fits every budget that can be met
    for step in range(EVEN_STEPS):  # the diagonal first: every axis shrinks together
        depth_here, width_here, use_here = depths[step % len(depths)], widths[step], uses[step % len(uses)]
        for depth, width, used in (
            (depth_here, width_here, use_here),
            (depth_here, 1.0, most_k),
            (shape.layers, width_here, most_k),
            (shape.layers, 1.0, use_here),
        ):
            found.append(_even(shape, depth, width, used))
    return list({json.dumps(genes): genes for genes in found}.values())


def _even(shape: ModelConfig, depth: int, width: float, used: int) -> dict[str, int]:
    """Genes of a member with so many layers, this share of the experts of each, and so many experts a token."""
    genes = {"layers": depth}
    for layer in range(shape.layers):
        genes[f"experts_{layer}"] = max(_narrowest(shape, layer), round(width * shape.experts[layer]))
        genes[f"top_k_{layer}"] = min(used, shape.top_k[layer])
    return genes


def _narrowest(shape: ModelConfig, layer: int) -> int:
    """Fewest experts of a layer that the search tries."""
    return max(shape.top_k[layer], round(NARROWEST * shape.experts[layer]))


def _steps(low: int, high: int) -> list[int]:
    """At most EVEN_STEPS whole numbers from `high` down to `low`."""
    values = [round(high - step * (high - low) / (EVEN_STEPS - 1)) for step in range(EVEN_STEPS)]
    return list(dict.fromkeys(values))


def _sequences(shards: Path, count: int) -> tuple[list[Batch], list[Batch]]:
    """Validation sequences, `count` to steer and as many to judge (half of the split each, if it is smaller)."""
    from accordion.data.loader import sample  # reading shards needs more libraries than a model does

    drawn = sample(shards, "val", 2 * count)
    if len(drawn) < 2:
        raise ConfigError(f"{shards}: {len(drawn)} validation sequences; the search wants at least 2")
    halves = (drawn.select(list(range(start, len(drawn), 2))) for start in (0, 1))
    first, second = ([half.select(slice(at, at + ROWS)) for at in range(0, len(half), ROWS)] for half in halves)
    return first, second


def listed(costs: Mapping[Cost, float]) -> str:
    """Costs in words."""
    words = {name: f"{name.replace('_', ' ')} {value:,.0f}" for name, value in costs.items() if name != "latency_ms"}
    timed = [f"{costs['latency_ms']:.4g} ms a sequence"] if "latency_ms" in costs else []
    return ", ".join([*words.values(), *timed])
