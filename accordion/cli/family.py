"""Commands on the family: cut a member out, search for good ones, train one further."""

from pathlib import Path
from typing import Annotated

import typer

from accordion.cli.app import app
from accordion.config.extract import Cost

Policy = Annotated[str, typer.Option(help="The full model: KIND, KIND:DIGEST or a folder.")]
Shards = Annotated[str | None, typer.Option(help="Packed data; when not given, what the model learnt from.")]


@app.command()
def extract(
    out: Annotated[Path, typer.Argument(help="New folder for the sub-model.")],
    layers: Annotated[int | None, typer.Option(min=1, help="Layers to keep; all when not given.")] = None,
    experts: Annotated[int | None, typer.Option(min=1, help="Experts to keep in each layer; all if not given.")] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Experts active for each token; as in the full model.")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help="JSON file in place of these: layers; experts and top_k of each layer.")
    ] = None,
    policy: Policy = "policy",
    huggingface: Annotated[bool, typer.Option(help="Also write its text path for transformers.")] = False,
    context: Annotated[int, typer.Option(min=1, help="Longest sequence, as transformers are told.")] = 2048,
) -> None:
    """Cut a sub-model out of the full model: an ordinary model of its own, with the same weights.

    Examples: `accordion extract small --layers 6 --experts 8 --top-k 2`, `accordion extract mine --spec mine.json`
    """
    from accordion.errors import ConfigError
    from accordion.extract.huggingface import obstacle
    from accordion.extract.member import extract_member, weights_digest
    from accordion.extract.spec import read_spec
    from accordion.lookup import open_verified
    from accordion.model import SubmodelSpec, parameter_counts
    from accordion.model.files import read_config

    sizes = {"--layers": layers, "--experts": experts, "--top-k": top_k}
    given = [name for name, value in sizes.items() if value is not None]
    if (spec is None) == (not given):
        raise ConfigError(
            f"accordion extract: got {' and '.join([*given, '--spec'] if given else ['nothing to keep'])}; "
            "wants any of --layers, --experts and --top-k, or --spec FILE alone"
        )
    folder = open_verified(policy)
    full = read_config(folder)
    if spec is not None:
        kept = read_spec(spec, full, weights_digest(folder))
    else:
        kept = SubmodelSpec.nested(full, layers=layers, experts=experts, top_k=top_k)
    config = kept.config(full)
    if huggingface and (why := obstacle(config)) is not None:
        raise ConfigError(f"--huggingface: no such layout for this member: {why}")
    extract_member(folder, kept, out, context=context if huggingface else None)
    count, _ = parameter_counts(config)
    widths, uses = (", ".join(map(str, dict.fromkeys(each))) for each in (config.experts, config.top_k))
    typer.echo(f"{out}: {config.layers} layers, {widths} experts, top-{uses}, {count:,} parameters")


@app.command("search-family")
def search_family(
    out: Annotated[Path, typer.Argument(help="New folder for what is found.")],
    policy: Policy = "policy",
    shards: Shards = None,
    cost: Annotated[Cost, typer.Option(help="What the front weighs against the loss.")] = "active_parameters",
    max_parameters: Annotated[int | None, typer.Option(min=1, help="Limit.")] = None,
    max_active: Annotated[int | None, typer.Option(min=1, help="Limit on parameters used for a token.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Limit on bytes of the file of weights.")] = None,
    max_latency: Annotated[float | None, typer.Option(help="Limit on measured milliseconds a sequence.")] = None,
    trials: Annotated[int, typer.Option(help="Members to judge.")] = 64,
    sequences: Annotated[int, typer.Option(help="Validation sequences that steer; as many others judge.")] = 16,
    members: Annotated[int, typer.Option(help="Members of the front to write.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
) -> None:
    """Search for the best members within a budget, and write those along the Pareto front.

    Examples: `accordion search-family found --max-active 300000`,
    `accordion search-family fast --cost latency_ms --max-latency 20`
    """
    from accordion.config.extract import BudgetConfig, SearchConfig
    from accordion.errors import DataError
    from accordion.extract.search import listed
    from accordion.extract.search import search_family as search
    from accordion.lookup import open_verified
    from accordion.store.atomic import atomic_folder

    if out.exists():
        raise DataError(f"{out}: exists; name a new folder")
    budget = {"parameters": max_parameters, "active_parameters": max_active, "bytes": max_bytes}
    config = SearchConfig.parse(
        {
            "budget": BudgetConfig.parse({**budget, "latency_ms": max_latency}, where="--max").model_dump(),
            "cost": cost, "trials": trials, "sequences": sequences, "members": members, "seed": seed,
        },
        where="search-family",
    )  # fmt: skip
    folder = open_verified(policy)
    with atomic_folder(out) as into:
        found = search(config, out=into, policy=folder, shards=_shards(shards, folder))
    typer.echo(f"{found['tried']} tried, {found['judged']} within the budget judged, {found['front']} on the front")
    for row in found["members"]:
        costs = listed(row["costs"])
        typer.echo(f"  {row['name']}: {row['held_out_relative_loss']:.4f} times the full model's loss; {costs}")
    typer.echo(f"{out}: search.json, pareto.png, members/")


@app.command()
def recover(
    member: Annotated[Path, typer.Argument(help="Folder of an extracted member.")],
    out: Annotated[Path, typer.Argument(help="New folder for the recovered member.")],
    policy: Policy = "policy",
    shards: Shards = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 30,
    batch: Annotated[int | None, typer.Option(help="Sequences a step; when not given, as in pre-training.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the data.")] = 0,
) -> None:
    """Train an extracted member a little further on its own data, and say what that brought and cost.

    Example: `accordion recover small small-recovered --steps 30`
    """
    from accordion.config.extract import RecoverConfig
    from accordion.config.pretrain import PretrainConfig
    from accordion.extract.recover import recover as train
    from accordion.lookup import ancestor, open_verified
    from accordion.store import Manifest

    folder = open_verified(policy)
    run = PretrainConfig.parse(Manifest.read(ancestor(folder, "checkpoint")).config, where="checkpoint")
    config = RecoverConfig.parse({"steps": steps, "batch": batch, "seed": seed}, where="recover")
    packed = _shards(shards, folder)
    found = train(config, run=run, member=member, shards=packed, out=out, name=out.name, full=folder)
    for name, loss in found["val_loss"].items():
        typer.echo(f"  {name:<6} {found['val_loss_before'][name]:.4f} -> {loss:.4f} nats")
    typer.echo(f"{out}: {found['steps']} steps, {found['tokens']:,} positions, {found['flops']:.3g} operations")


def _shards(text: str | None, policy: Path) -> Path:
    from accordion.lookup import ancestor, open_verified

    return open_verified(text) if text else ancestor(policy, "shards")
