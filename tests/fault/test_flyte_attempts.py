"""The pre-training task as Flyte's agent runs it: SIGTERM ends an attempt recoverable, the next one goes on with it.

`pyflyte-execute` is what a task's container runs; what it writes, `outputs.pb` or `error.pb` with its kind, is all that
Flyte decides by whether to try again.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flyteidl.core.errors_pb2 import ContainerError, ErrorDocument
from flyteidl.core.literals_pb2 import LiteralMap as Literals
from flytekit import FlyteContextManager
from flytekit.core.type_engine import TypeEngine
from flytekit.models.literals import LiteralMap

from accordion.config.pretrain import ParallelConfig, PretrainConfig
from accordion.config.runtime import RuntimeConfig, ServicesConfig
from accordion.home import REPOSITORY
from accordion.store import Artifact, Store
from accordion.store.manifest import identity
from accordion.train.launch import launch
from tasks._run import Run
from tasks._tracking import start_parent
from tests.unit.train.synthetic_shards import tiny_config, write_shards

pytestmark = pytest.mark.slow
STEPS = 24
GRACE = 30  # seconds between Kubernetes' SIGTERM and its SIGKILL, unless a pod asks for more


class Attempts:
    """Attempts of one task with the same inputs, in a home of their own."""

    def __init__(self, home: Path, config: PretrainConfig) -> None:
        self.home = home
        tracking = f"sqlite:///{home}/mlflow.db"
        runtime = RuntimeConfig(threads=1, services=ServicesConfig(mlflow_uri=tracking)).model_dump_json()
        run = Run("r1", "tiny", runtime, tracking, start_parent(tracking, "tiny", "r1", {}), "abc", "f1")
        store = Store(home / "store")
        with store.staging("pack") as out:
            write_shards(out)
            self.shards = store.publish(out, kind="shards", stage="pack", config={}, parents={}, created={})
        context = FlyteContextManager.current_context()
        given = {"run": run, "config": config.model_dump_json(), "shards": self.shards}
        types = {"run": Run, "config": str, "shards": Artifact}
        literals = TypeEngine.dict_to_literal_map(context, given, types)
        (home / "inputs.pb").write_bytes(literals.to_flyte_idl().SerializeToString())

    def start(self, name: str) -> subprocess.Popen[str]:
        resolver = "flytekit.core.python_auto_container.default_task_resolver"
        where = ["--output-prefix", self.home / name, "--raw-output-data-prefix", self.home / "raw"]
        command = [Path(sys.executable).with_name("pyflyte-execute"), "--inputs", self.home / "inputs.pb", *where]
        task = ["--resolver", resolver, "--", "task-module", "tasks.pretrain", "task-name", "pretrain"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "ACCORDION_HOME": str(self.home)}
        return subprocess.Popen(
            [*command, *task], cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def checkpoints(self) -> list[Path]:
        return sorted(self.home.glob("resume/*/step-*"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_preempted_attempt_is_recoverable_and_the_next_one_gives_the_unbroken_run(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("ACCORDION_HOME", str(home))
    config = tiny_config(steps=STEPS, checkpoint_every=2, parallel=ParallelConfig(processes=processes))
    attempts = Attempts(home, config)
    first = attempts.start("first")
    while len(attempts.checkpoints()) < 2:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    said = first.communicate(timeout=300)[0]
    assert time.monotonic() - asked < GRACE
    error = ErrorDocument.FromString((attempts.home / "first" / "error.pb").read_bytes()).error
    assert error.kind == ContainerError.RECOVERABLE and "stopped by SIGTERM after step" in error.message, said
    saved = attempts.checkpoints()
    assert f"after step {int(saved[-1].name[5:])} of {STEPS}, which is saved" in error.message

    (saved[-1] / "manifest.json").unlink()  # as if it had been copied in part
    half = saved[-1].with_name(f".{saved[-1].name}.0.tmp")
    half.mkdir()
    second = attempts.start("second")
    said = second.communicate(timeout=300)[0]
    assert f"resumed after step {int(saved[-2].name[5:])} of {STEPS}" in said and "set aside" in said
    assert not half.exists()
    outputs = Literals.FromString((attempts.home / "second" / "outputs.pb").read_bytes())
    literal = LiteralMap.from_flyte_idl(outputs).literals["o0"]
    made = TypeEngine.to_python_value(FlyteContextManager.current_context(), literal, Artifact)
    folder = Store(attempts.home / "store").open(made)
    assert identity(folder) == str(made) and not attempts.checkpoints()

    out = tmp_path / "whole"
    out.mkdir()
    shards = Store(attempts.home / "store").open(attempts.shards)
    launch(config, shards=shards, out=out, resume=tmp_path / "resume")
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert path.read_bytes() == (folder / path.relative_to(out)).read_bytes(), path.name
