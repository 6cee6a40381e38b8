"""Gate: the verdict over the figures of earlier stages; only a pass reaches the rollout."""

import json
from typing import NamedTuple

from flytekit import Resources

from accordion.config.release import GateConfig
from accordion.store import Artifact
from tasks._run import Run, resolve
from tasks._stage import Stage

STAGE = Stage("gate", "accordion.evaluate.gates:gate", GateConfig, kind="verdict", files=("verdict.json",))


class Verdict(NamedTuple):
    """The verdict and, for the branch of the DAG, whether it is a pass."""

    artifact: Artifact
    passed: bool


@STAGE.task(requests=Resources(cpu="1", mem="512Mi"))
def gate(
    run: Run, config: str, pretrain: Artifact, extract: Artifact, rl: Artifact, distil: Artifact, evaluate: Artifact
) -> Verdict:
    """Judge every figure that the profile names; a missing one fails."""
    verdict = STAGE.run(run, config, pretrain=pretrain, extract=extract, rl=rl, distil=distil, evaluate=evaluate)
    document = json.loads((resolve(verdict, run.settings) / "verdict.json").read_text())
    return Verdict(verdict, bool(document["passed"]))
