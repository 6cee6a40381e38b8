"""The whole DAG, from source data to a served encoder and a report."""

from flytekit import conditional, workflow

from accordion.store import Artifact
from tasks.analyse import analyse
from tasks.configure import configure
from tasks.distil import distil
from tasks.evaluate import evaluate
from tasks.extract import extract
from tasks.gate import gate
from tasks.ingest import ingest
from tasks.pack import pack
from tasks.pretrain import pretrain
from tasks.previous import previous
from tasks.register import register
from tasks.report import report
from tasks.rl import rl
from tasks.rollout import rollout, withhold
from tasks.sft import sft
from tasks.tokenizers import audio_tokenizer, text_tokenizer, vision_tokenizer
from tasks.validate_data import validate_data
from tasks.validate_shards import validate_shards


@workflow
def end_to_end(profile: str = "smoke", overrides: list[str] = []) -> str:  # noqa: B006 - Flyte wants a value
    """From the source data to a served encoder and a report; returns the report's folder.

    Args:
        profile: name of a profile in configs/, or the path of a YAML file.
        overrides: settings of this run alone, each written `section.key=value`.
    """
    plan = configure(profile=profile, overrides=overrides)
    run = plan.run

    corpus = ingest(run=run, config=plan.ingest, source=plan.source)
    before = previous(run=run, config=plan.validate_data, kind="validation", data=corpus)
    valid = validate_data(run=run, config=plan.validate_data, corpus=corpus, previous=before)
    text = text_tokenizer(run=run, config=plan.text_tokenizer, corpus=corpus)
    vision = vision_tokenizer(run=run, config=plan.vision_tokenizer, corpus=corpus)
    audio = audio_tokenizer(run=run, config=plan.audio_tokenizer, corpus=corpus)
    for tokenizer in (text, vision, audio):
        valid >> tokenizer  # type: ignore[operator]  # a promise of Flyte
    shards = pack(run=run, config=plan.pack, corpus=corpus, text=text, vision=vision, audio=audio)
    before_shards = previous(run=run, config=plan.validate_shards, kind="validation-shards", data=shards)
    valid_shards = validate_shards(run=run, config=plan.validate_shards, shards=shards, previous=before_shards)

    checkpoint = pretrain(run=run, config=plan.pretrain, shards=shards)
    valid_shards >> checkpoint  # type: ignore[operator]  # a promise of Flyte
    analysis = analyse(run=run, config=plan.analyse, checkpoint=checkpoint, shards=shards)
    tuned = sft(run=run, config=plan.sft, checkpoint=checkpoint, text=text, shards=shards)
    policy = rl(run=run, config=plan.rl, policy=tuned, text=text)
    family = extract(run=run, config=plan.extract, policy=policy, shards=shards)

    encoder = distil(run=run, config=plan.distil, family=family, corpus=corpus, text=text)
    evaluation = evaluate(run=run, config=plan.evaluate, encoder=encoder, corpus=corpus)
    verdict = gate(
        run=run, config=plan.gate, pretrain=checkpoint, extract=family, rl=policy, distil=encoder, evaluate=evaluation
    )
    registration = register(
        run=run, config=plan.register, encoder=encoder, verdict=verdict.artifact, evaluate=evaluation
    )
    release: Artifact = (
        conditional("gate_passed")
        .if_(verdict.passed.is_true())  # type: ignore[attr-defined]  # a promise of Flyte
        .then(rollout(run=run, config=plan.rollout, registration=registration, encoder=encoder, corpus=corpus))
        .else_()
        .then(withhold(run=run, config=plan.rollout, registration=registration, verdict=verdict.artifact))
    )
    made = [corpus, valid, text, vision, audio, shards, valid_shards, checkpoint, analysis, tuned, policy, family]
    return report(run=run, artifacts=[*made, encoder, evaluation, verdict.artifact, registration, release])
