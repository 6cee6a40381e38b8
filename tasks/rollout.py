"""Rollout: the registered version to Triton, and its champion alias; or the record of why there was none."""

import json
from pathlib import Path
from typing import Any

from flytekit import Resources

from accordion.config.release import RolloutConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

STAGE = Stage(
    "rollout",
    "model_registry.release:release",
    RolloutConfig,
    kind="rollout",
    gives=("tracker",),
    reads=("accordion/serve/models",),
    files=("journal.jsonl",),
)
WITHHELD = Stage("withhold", "tasks.rollout:withheld", RolloutConfig, kind="withheld")


@STAGE.task(requests=Resources(cpu="2", mem="2Gi"))
def rollout(run: Run, config: str, registration: Artifact, encoder: Artifact, corpus: Artifact) -> Artifact:
    """Preflight, shadow, canary, promote; the version before keeps serving if any of it fails."""
    return STAGE.run(run, config, registration=registration, encoder=encoder, corpus=corpus)


@WITHHELD.task(requests=Resources(cpu="1", mem="512Mi"))
def withhold(run: Run, config: str, registration: Artifact, verdict: Artifact) -> Artifact:
    """Touch no server: the gate did not pass. What is recorded is which checks failed."""
    return WITHHELD.run(run, config, registration=registration, verdict=verdict)


def withheld(config: RolloutConfig, *, out: Path, registration: Path, verdict: Path) -> dict[str, Any]:
    """Name the version that is not rolled out and the checks it failed."""
    checks = json.loads((verdict / "verdict.json").read_text())["checks"]
    version = json.loads((registration / "registration.json").read_text())["version"]
    failed = [check["message"] for check in checks if not check["passed"]]
    (out / "withheld.json").write_text(json.dumps({"version": version, "failed": failed}, indent=1) + "\n")
    return {"version": version, "failed_checks": len(failed)}
