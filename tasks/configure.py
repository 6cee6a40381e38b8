"""Configure: read the profile, take the home folder, open the run. Never cached."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from flytekit import Resources, task

from accordion.config import Settings, load_profile
from accordion.config.data import IngestConfig
from accordion.data.sources.base import expand
from accordion.data.tier import source_folder
from accordion.home import git_commit, hold_run_lock
from accordion.observe import say
from tasks._run import Run, new_run_id, sweep_staging
from tasks._stage import execution_id
from tasks._tracking import source_tags, start_parent, tracking_uri


class Plan(NamedTuple):
    """The run, the digest of the source data, and one section of settings (JSON) for each stage."""

    run: Run
    source: str
    ingest: str
    validate_data: str
    text_tokenizer: str
    vision_tokenizer: str
    audio_tokenizer: str
    pack: str
    validate_shards: str
    pretrain: str
    analyse: str
    sft: str
    rl: str
    extract: str
    search: str
    register_family: str
    distil: str
    evaluate: str
    gate: str
    register: str
    rollout: str
    study: str


@task(requests=Resources(cpu="1", mem="512Mi"))
def configure(profile: str, overrides: list[str]) -> Plan:
    """Check every setting before any work begins, and open the parent run in MLflow."""
    settings = load_profile(profile, tuple(overrides))
    hold_run_lock()
    sweep_staging()
    os.environ["OMP_NUM_THREADS"] = str(settings.runtime.threads)
    uri, run_id, commit = tracking_uri(settings.runtime), new_run_id(), git_commit()
    name = Path(profile).stem
    tags = {"accordion.run": run_id, "accordion.profile": name, "git_commit": commit, "overrides": " ".join(overrides)}
    tags |= {"flyte_execution": execution_id(), **source_tags("workflows", commit)}
    parent = start_parent(uri, name, run_id, tags)
    say(f"run {run_id}, profile {name}, tracked at {uri}")
    runtime = settings.runtime.model_dump_json()
    return Plan(
        run=Run(run_id, name, runtime, uri, parent, commit, execution_id(), overrides),
        source=source_digest(settings.ingest),
        ingest=section(settings.ingest),
        validate_data=section(settings.validate_data),
        text_tokenizer=section(settings.tokenizers.text),
        vision_tokenizer=section(settings.tokenizers.vision),
        audio_tokenizer=section(settings.tokenizers.audio),
        pack=section(settings.pack),
        validate_shards=section(settings.validate_shards),
        pretrain=section(settings.pretrain),
        analyse=section(settings.analyse),
        sft=section(settings.sft),
        rl=section(settings.rl),
        extract=section(settings.extract),
        search=section(settings.search),
        register_family=section(settings.register_family),
        distil=section(settings.distil),
        evaluate=section(settings.evaluate),
        gate=section(settings.gate),
        register=section(settings.register_model),
        rollout=section(settings.rollout),
        study=section(settings.study),
    )


def section(settings: Settings) -> str:
    """A section as the JSON text that is an input of its task and part of its cache key."""
    return settings.model_dump_json()


def source_digest(config: IngestConfig) -> str:
    """SHA-256 over the names and bytes of the source data, the tier's and your own, so that new data re-runs ingest."""
    folder = source_folder(config)
    digest = hashlib.sha256()
    for root in [folder, *(path for source in config.sources for path in expand(source))]:
        for path in sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]:
            with open(path, "rb") as file:
                inside = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(root.parent).as_posix()}\0{inside}\n".encode())
    return digest.hexdigest()
