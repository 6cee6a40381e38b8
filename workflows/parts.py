"""Parts of the DAG on their own, from artifacts of earlier runs (`KIND:SHA256`, as `accordion status` prints them)."""

from flytekit import workflow

from tasks.configure import configure
from tasks.distil import distil
from tasks.evaluate import evaluate
from tasks.existing import existing
from tasks.ingest import ingest
from tasks.pack import pack
from tasks.previous import previous
from tasks.report import report
from tasks.tokenizers import audio_tokenizer, text_tokenizer, vision_tokenizer
from tasks.validate_data import validate_data
from tasks.validate_shards import validate_shards


@workflow
def data_only(profile: str = "smoke", overrides: list[str] = []) -> str:  # noqa: B006 - Flyte wants a value
    """Source data to validated shards."""
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
    return report(run=run, artifacts=[corpus, valid, text, vision, audio, shards, valid_shards])


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
