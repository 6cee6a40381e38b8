"""Which sections the report has, in which order: first what was decided, then how it came about."""

from collections.abc import Callable

from accordion.report import sections_data as corpus
from accordion.report import sections_model as model
from accordion.report import sections_release as release
from accordion.report import sections_study as study
from accordion.report.run import RunFigures
from accordion.report.section import Section
from accordion.report.summary import Summary

BUILDERS: dict[str, Callable[[RunFigures, Summary], Section | None]] = {
    "gate": release.gate,
    "retrieval": release.retrieval,
    "rollout": release.rollout,
    "pretrain": model.pretraining,
    "family": model.elastic,
    "experiment": study.experiment,
    "routing": model.routing,
    "posttrain": model.reinforcement,
    "data": corpus.data,
    "quality": corpus.quality,
    "tokenizers": model.tokenizers,
    "times": release.times,
}


def sections(run: RunFigures, summary: Summary) -> list[Section]:
    """Every section of the page; what only some workflows do is left out where it was not done."""
    found = (build(run, summary) for build in BUILDERS.values())
    return [section for section in found if section is not None]
