"""The data part of the DAG, with which every workflow that trains begins: source data to validated shards."""

from typing import NamedTuple

from flytekit import workflow

from accordion.store import Artifact
from tasks._run import Run
from tasks.configure import Plan
from tasks.ingest import ingest
from tasks.pack import pack
from tasks.previous import previous
from tasks.tokenizers import audio_tokenizer, text_tokenizer, vision_tokenizer
from tasks.validate_data import validate_data
from tasks.validate_shards import validate_shards


class Prepared(NamedTuple):
    """What training reads, and what was found out about it. The shards are there only if every suite passed."""

    corpus: Artifact
    valid: Artifact
    text: Artifact
    vision: Artifact
    audio: Artifact
    shards: Artifact
    valid_shards: Artifact


@workflow
def prepare(
    run: Run,
    source: str,
    ingest_config: str,
    validate_config: str,
    text_config: str,
    vision_config: str,
    audio_config: str,
    pack_config: str,
    shards_config: str,
) -> Prepared:
    """Ingest, validate, train the tokenizers, pack, validate again; each setting is a section of the plan."""
    corpus = ingest(run=run, config=ingest_config, source=source)
    before = previous(run=run, config=validate_config, kind="validation", data=corpus)
    valid = validate_data(run=run, config=validate_config, corpus=corpus, previous=before)
    text = text_tokenizer(run=run, config=text_config, corpus=corpus)
    vision = vision_tokenizer(run=run, config=vision_config, corpus=corpus)
    audio = audio_tokenizer(run=run, config=audio_config, corpus=corpus)
    for tokenizer in (text, vision, audio):
        valid >> tokenizer  # type: ignore[operator]  # a promise of Flyte
    shards = pack(run=run, config=pack_config, corpus=corpus, text=text, vision=vision, audio=audio)
    before_shards = previous(run=run, config=shards_config, kind="validation-shards", data=shards)
    valid_shards = validate_shards(run=run, config=shards_config, shards=shards, previous=before_shards)
    return Prepared(corpus, valid, text, vision, audio, shards, valid_shards)


def prepared(plan: Plan) -> Prepared:
    """`prepare` with the sections of a plan, for use inside a workflow."""
    data: Prepared = prepare(
        run=plan.run,
        source=plan.source,
        ingest_config=plan.ingest,
        validate_config=plan.validate_data,
        text_config=plan.text_tokenizer,
        vision_config=plan.vision_tokenizer,
        audio_config=plan.audio_tokenizer,
        pack_config=plan.pack,
        shards_config=plan.validate_shards,
    )
    return data
