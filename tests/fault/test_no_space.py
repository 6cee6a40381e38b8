"""The disk is full in the middle of a write: one clear error, what was there before whole, nothing stray left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from accordion.home import REPOSITORY
from accordion.train.checkpoint import newest_checkpoint
from tests.unit.train.synthetic_shards import tiny_config, write_shards

WORK = """
import json, os, resource, sys
from pathlib import Path
import torch
from accordion.config.pretrain import PretrainConfig
from accordion.errors import StorageError
from accordion.observe import listening
from accordion.store import Artifact, Store, atomic_write
from accordion.train.pretrain import pretrain

torch.set_num_threads(1)
how, disk, shards, config = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), PretrainConfig.from_json(sys.argv[4])
store, note, errors = Store(disk / "store"), disk / "note", {}


def fill():
    if how == "limit":
        return resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    with open(disk / "filler", "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def publish(size):
    with store.staging("toy") as out:
        (out / "data").write_bytes(os.urandom(size))
        return store.publish(out, kind="toy", stage="toy", config={}, parents={}, created={})


def attempt(name, work):
    try:
        work()
    except StorageError as error:
        errors[name] = str(error)


atomic_write(note, "old")
first = publish(100)
(disk / "out").mkdir()
with listening(lambda step, figures: fill() if step == 5 else None):
    attempt("pretrain", lambda: pretrain(config, shards=shards, out=disk / "out", resume=disk / "resume"))
attempt("note", lambda: atomic_write(note, "x" * 100_000))
attempt("publish", lambda: publish(100_000))
(disk / "filler").unlink(missing_ok=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
store.open(first)
found = {path.relative_to(disk).as_posix(): path.read_text() if path == note else "" for path in disk.rglob("*")}
os.system(f"cp -r {disk}/resume {shards.parent}/saved")
print(json.dumps({"errors": errors, "found": found}))
"""


@pytest.mark.parametrize("how", ["disk", "limit"])
def test_a_full_disk_is_a_clear_error_and_leaves_what_was_there(tmp_path: Path, how: str) -> None:
    """`disk` is a real file system of 3 MB; `limit` the largest file that the system lets the process write."""
    shards, config = write_shards(tmp_path / "shards"), tiny_config(steps=12, checkpoint_every=4)
    disk = tmp_path / "disk"
    disk.mkdir()
    script = [sys.executable, "-c", WORK, how, str(disk), str(shards), config.model_dump_json()]
    if how == "disk":
        alone = ["unshare", "--user", "--map-root-user", "--mount"]
        mount = f"mount -t tmpfs -o size=3m none {disk}"
        if subprocess.run([*alone, "sh", "-c", mount], capture_output=True).returncode:
            pytest.skip("this machine lets no user mount a file system of his own")
        script = [*alone, "sh", "-c", f'{mount} && exec "$@"', "sh", *script]
    done = subprocess.run(
        script, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["errors"]) == {"pretrain", "note", "publish"}
    for name, place in (("pretrain", "step-00000008"), ("note", "/note"), ("publish", ".staging/toy-")):
        assert place in result["errors"][name] and "Free space on that disk" in result["errors"][name]
    assert result["found"]["note"] == "old"
    assert not [name for name in result["found"] if name.endswith(".tmp") or ".staging/" in name]
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["step-00000004"]
    (identity,) = (json.loads(path.read_text())["config"] for path in (tmp_path / "saved").glob("*/manifest.json"))
    whole = newest_checkpoint(tmp_path / "saved", identity)
    assert whole is not None and whole.facts["step"] == 4
