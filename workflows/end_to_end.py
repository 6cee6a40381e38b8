"""The whole DAG, from source data to a served encoder and a report."""

from flytekit import conditional, workflow

from accordion.store import Artifact
from tasks.analyse import analyse
from tasks.configure import configure
from tasks.distil import distil
from tasks.evaluate import evaluate
from tasks.extract import extract
from tasks.gate import gate
from tasks.pretrain import pretrain
from tasks.register import register
from tasks.register_family import register_family
from tasks.report import report
from tasks.rl import rl
from tasks.rollout import rollout, withhold
from tasks.sft import sft
from workflows.data import prepared


@workflow
def end_to_end(profile: str = "smoke", overrides: list[str] = []) -> str:  # noqa: B006 - Flyte wants a value
    """From the source data to a served encoder and a report; returns the report's folder.

    Args:
        profile: name of a profile in configs/, or the path of a YAML file.
        overrides: settings of this run alone, each written `section.key=value`.
    """
    plan = configure(profile=profile, overrides=overrides)
    run = plan.run

    data = prepared(plan)

    checkpoint = pretrain(run=run, config=plan.pretrain, shards=data.shards)
    tuned = sft(run=run, config=plan.sft, checkpoint=checkpoint, text=data.text, shards=data.shards)
    policy = rl(run=run, config=plan.rl, policy=tuned, text=data.text)
    analysis = analyse(run=run, config=plan.analyse, checkpoint=checkpoint, policy=policy, shards=data.shards)
    family = extract(run=run, config=plan.extract, policy=policy, shards=data.shards)
    sizes = register_family(run=run, config=plan.register_family, policy=policy, family=family)

    encoder = distil(run=run, config=plan.distil, family=family, corpus=data.corpus, text=data.text)
    evaluation = evaluate(run=run, config=plan.evaluate, encoder=encoder, corpus=data.corpus)
    verdict = gate(
        run=run, config=plan.gate, pretrain=checkpoint, extract=family, rl=policy, distil=encoder, evaluate=evaluation
    )
    registration = register(
        run=run, config=plan.register, encoder=encoder, verdict=verdict.artifact, evaluate=evaluation
    )
    release: Artifact = (
        conditional("gate_passed")
        .if_(verdict.passed.is_true())  # type: ignore[attr-defined]  # a promise of Flyte
        .then(rollout(run=run, config=plan.rollout, registration=registration, encoder=encoder, corpus=data.corpus))
        .else_()
        .then(withhold(run=run, config=plan.rollout, registration=registration, verdict=verdict.artifact))
    )
    made = [*data, checkpoint, analysis, tuned, policy, family, sizes]
    return report(run=run, artifacts=[*made, encoder, evaluation, verdict.artifact, registration, release])
