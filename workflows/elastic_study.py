"""The family experiment: real mixed data, packed, then one elastic run against a run for every size, over seeds."""

from flytekit import workflow

from tasks.configure import configure
from tasks.report import report
from tasks.study import study
from workflows.data import prepared


@workflow
def elastic_study(profile: str = "study-cpu", overrides: list[str] = []) -> str:  # noqa: B006 - Flyte wants a value
    """Source data to `elastic_study.json` and its plots; finished runs of a killed study are kept."""
    plan = configure(profile=profile, overrides=overrides)
    run = plan.run
    data = prepared(plan)
    family = study(run=run, config=plan.study, shards=data.shards)
    return report(
        run=run,
        artifacts=[*data, family],
    )
