"""The family experiment: real mixed data, packed, then one elastic run against a run for every size, over seeds."""

from flytekit import workflow

from tasks.configure import configure
from tasks.ingest import ingest
from tasks.pack import pack
from tasks.previous import previous
from tasks.report import report
from tasks.study import study
from tasks.tokenizers import audio_tokenizer, text_tokenizer, vision_tokenizer
from tasks.validate_data import validate_data
from tasks.validate_shards import validate_shards


@workflow
def elastic_study(profile: str = "study-cpu", overrides: list[str] = []) -> str:  # noqa: B006 - Flyte wants a value
    """Source data to `elastic_study.json` and its plots; finished runs of a killed study are kept."""
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
    family = study(run=run, config=plan.study, shards=shards)
    valid_shards >> family  # type: ignore[operator]  # a promise of Flyte
    return report(run=run, artifacts=[corpus, valid, text, vision, audio, shards, valid_shards, family])
