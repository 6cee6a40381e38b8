"""Parts of the DAG on their own, from artifacts of earlier runs: `KIND:SHA256`, as `accordion status` prints them.

Where their store is, `KIND` for the newest or the beginning of the SHA-256 will do.
"""

from flytekit import workflow

from tasks.configure import configure
from tasks.distil import distil
from tasks.evaluate import evaluate
from tasks.existing import existing
from tasks.extract import extract
from tasks.register_family import register_family
from tasks.report import report
from tasks.search import search
from workflows.data import prepared


@workflow
def data_only(profile: str = "smoke", overrides: list[str] = []) -> str:  # noqa: B006 - Flyte wants a value
    """Source data to validated shards."""
    plan = configure(profile=profile, overrides=overrides)
    run = plan.run
    data = prepared(plan)
    return report(run=run, artifacts=[*data])


@workflow
def retrieval_only(
    family: str,
    corpus: str,
    text: str,
    profile: str = "smoke",
    overrides: list[str] = [],  # noqa: B006 - Flyte wants a value
) -> str:
    """A new encoder from a family that is already there, examined beside BM25; nothing is registered."""
    plan = configure(profile=profile, overrides=overrides)
    run = plan.run
    members = existing(run=run, reference=family, kind="family")
    collection = existing(run=run, reference=corpus, kind="corpus")
    tokenizer = existing(run=run, reference=text, kind="tokenizer-text")
    encoder = distil(run=run, config=plan.distil, family=members, corpus=collection, text=tokenizer)
    evaluation = evaluate(run=run, config=plan.evaluate, encoder=encoder, corpus=collection)
    return report(run=run, artifacts=[encoder, evaluation])


@workflow
def family_only(
    policy: str,
    shards: str,
    profile: str = "smoke",
    overrides: list[str] = [],  # noqa: B006 - Flyte wants a value
) -> str:
    """A family from an elastic model that is already there: its named members and those a search finds, registered."""
    plan = configure(profile=profile, overrides=overrides)
    run = plan.run
    whole = existing(run=run, reference=policy, kind="policy")
    packed = existing(run=run, reference=shards, kind="shards")
    family = extract(run=run, config=plan.extract, policy=whole, shards=packed)
    found = search(run=run, config=plan.search, policy=whole, shards=packed)
    sizes = register_family(run=run, config=plan.register_family, policy=whole, family=family, search=found)
    return report(run=run, artifacts=[family, found, sizes])
