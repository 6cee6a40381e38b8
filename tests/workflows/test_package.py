"""Every workflow and launch plan serializes offline, with its cache keys, resources and schedules."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from flyteidl.admin.launch_plan_pb2 import LaunchPlan
from flyteidl.admin.task_pb2 import TaskSpec
from flyteidl.admin.workflow_pb2 import WorkflowSpec

from accordion.home import REPOSITORY

UNCACHED = {"configure", "report", "existing", "previous"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    pyflyte = Path(sys.executable).with_name("pyflyte")
    command = [pyflyte, "-c", "flyte.config", "--pkgs", "workflows", "package", "-f", "-o", folder / "flyte.tgz"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(folder / "flyte.tgz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_holds_every_workflow_and_launch_plan(package: Path) -> None:
    workflows = {WorkflowSpec.FromString(p.read_bytes()).template.id.name for p in package.glob("*_2.pb")}
    assert workflows == {
        "workflows.data.prepare",
        "workflows.elastic_study.elastic_study",
        "workflows.end_to_end.end_to_end",
        "workflows.parts.data_only",
        "workflows.parts.family_only",
        "workflows.parts.retrieval_only",
    }
    plans = {}
    for path in package.glob("*_3.pb"):
        plan = LaunchPlan.FromString(path.read_bytes())
        plans[plan.id.name] = plan.spec.entity_metadata.schedule.cron_schedule.schedule
    assert plans["nightly"] == "0 2 * * *" and plans["data_check"] == "30 * * * *"


def test_tasks_are_cached_by_code_and_not_by_run(package: Path) -> None:
    tasks = [TaskSpec.FromString(path.read_bytes()).template for path in package.glob("*_1.pb")]
    by_name = {task.id.name.rpartition(".")[2]: task for task in tasks}
    assert len(by_name) == 25
    for name, task in by_name.items():
        assert task.metadata.discoverable == (name not in UNCACHED), name
        assert task.container.resources.requests, name
        if name not in UNCACHED:
            assert task.metadata.discovery_version and list(task.metadata.cache_ignore_input_vars) == ["run"], name
            assert task.metadata.retries.retries >= 1, name
