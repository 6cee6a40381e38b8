"""Stage: roll a registered version out to Triton, then make it champion; and the same for the command line."""

import json
from pathlib import Path
from typing import Any

from accordion.config.release import RolloutConfig
from accordion.errors import ServiceError
from accordion.home import home
from accordion.retrieval.export import read_golden
from accordion.serve.rollout import Release
from accordion.serve.rollout import rollback as serve_previous
from accordion.serve.rollout import rollout as bring
from accordion.store import Artifact, Store
from model_registry.promote import promote

MOST_QUERIES = 500


def release(
    config: RolloutConfig, *, out: Path, registration: Path, encoder: Path, corpus: Path, tracker: Any
) -> dict[str, Any]:
    """Serve the registered version step by step; only when the rollout ended well does it become champion.

    Triton's version number is the registry's. Killed between the two, the next run finds the version serving,
    measures it again and sets the alias.
    """
    document = json.loads((registration / "registration.json").read_text())
    figures = bring(config, out=out, encoder=encoder, queries=_queries(corpus), version=document["version"])
    if figures["served_version"] != document["version"]:
        raise ServiceError(
            f"rollout: version {figures['served_version']} serves, not {document['version']}; see journal.jsonl"
        )
    promote(tracker.client, document["model"], document["version"], reason="rollout passed")
    return figures


def server(config: RolloutConfig, store: Store) -> Any:
    """A `Serve` for promote and rollback: Triton answers with the given registered version; twice is once."""

    def serve(found: Any) -> None:
        version, pins = int(found.version), Release(config.model).router.pins()
        if pins.stable == version:
            return
        if pins.previous == version:
            serve_previous(config.model)
            return
        encoder = store.open(Artifact.parse(found.tags["artifact"]))
        out = home() / "registry" / f"rollout-{version}"
        out.mkdir(parents=True, exist_ok=True)
        queries, _ = read_golden(encoder)
        bring(config, out=out, encoder=encoder, queries=queries, version=version)

    return serve


def _queries(corpus: Path) -> list[str]:
    """Real queries of every domain, in turn."""
    domains = []
    for path in sorted((corpus / "retrieval").glob("*/queries.jsonl")):
        domains.append([json.loads(line)["text"] for line in path.read_text().splitlines()][:MOST_QUERIES])
    return [query for together in zip(*domains, strict=False) for query in together]
