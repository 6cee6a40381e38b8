"""Search: the best members of the elastic family within a budget."""

from flytekit import Resources

from accordion.config.extract import SearchConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage(
    "search",
    "accordion.extract.search:search_family",
    SearchConfig,
    kind="family-search",
    files=("search.json", "pareto.png"),
)


@STAGE.task(requests=Resources(cpu="2", mem="4Gi"))
def search(run: Run, config: str, policy: Artifact, shards: Artifact) -> Artifact:
    """Search for the best members of the elastic family within a budget."""
    return STAGE.run(run, config, policy=policy, shards=shards)
