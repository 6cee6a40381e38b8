"""Faults of a release, on the real Triton server: bad requests, bad versions, dead processes, kills, restarts.

What must hold through all of it: the version that served before keeps serving, and running again mends the rest.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from accordion.config.release import RolloutConfig
from accordion.errors import ArtifactError, DataError, RunLocked, ServiceError
from accordion.home import REPOSITORY, home
from accordion.serve import services
from accordion.serve.client import Admin, EncoderClient
from accordion.serve.rollout import PREFLIGHT, SERVER, Release, rollback, rollout
from accordion.serve.server import read_record, stop
from accordion.store import Store
from tests.encoders import DIMENSION, TEXTS, make_encoder

pytestmark = [pytest.mark.triton, pytest.mark.slow]
CONFIG = RolloutConfig(requests_per_step=10, shadow_requests=4, canary_steps=(0.5, 1.0))
RELEASE = Release("encoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A home with Triton running and one encoder version rolled out."""
    path = tmp_path_factory.mktemp("home")
    before = os.environ.get("ACCORDION_HOME")
    os.environ["ACCORDION_HOME"] = str(path)
    try:
        services.up(("triton",))
        bring(seed=0)
        yield path
    finally:
        services.down(("triton",))
        if before is None:
            del os.environ["ACCORDION_HOME"]
        else:
            os.environ["ACCORDION_HOME"] = before


@pytest.fixture
def client(folder):
    """A client of the running server, whose pinned version answers before the test and after it."""
    services.up(("triton",))
    with EncoderClient(read_record(SERVER).grpc, RELEASE.router) as connected:
        assert connected.embed(TEXTS).shape == (len(TEXTS), DIMENSION)
        yield connected


def bring(**encoder):
    out = home() / "out"
    out.mkdir(exist_ok=True)
    return rollout(CONFIG, out=out, encoder=make_encoder(Store(home() / "store"), **encoder), queries=TEXTS)


def stable():
    return RELEASE.router.pins().stable


def test_bad_requests_get_clear_errors_and_the_server_goes_on(client):
    version = stable()
    whole = client.embed(["x" * 100_000])
    assert np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    assert client.embed(["long text " * 1_000_000]).shape == (1, DIMENSION)
    for texts, why in (
        ([""], r"TEXT\[0\] is empty"),
        (["fine", " \n"], r"TEXT\[1\] is empty"),
        (["\ud800"], r"TEXT\[0\] is not UTF-8"),
        ([], "got no texts"),
    ):
        with pytest.raises(DataError, match=why):
            client.embed(texts)
    with pytest.raises(DataError, match="holds 257 texts"):
        client.ask(["a"] * 257, version)
    with pytest.raises(DataError, match="KIND is 'poem'"):
        client.ask(["a"], version, kind="poem")
    with pytest.raises((DataError, ServiceError), match="version 99"):
        client.ask(["a"], 99)
    raw = triton.InferenceServerClient(client.grpc)
    for shape, kind in (([2, 2], "BYTES"), ([1], "FP32")):
        tensor = triton.InferInput("TEXT", shape, kind)
        values = np.full(shape, b"a", dtype=np.object_) if kind == "BYTES" else np.ones(shape, dtype=np.float32)
        tensor.set_data_from_numpy(values)
        with pytest.raises(InferenceServerException, match=r"shape|data-type|datatype"):
            raw.infer("encoder", [tensor], model_version=str(version))
    assert client.embed(TEXTS).shape == (len(TEXTS), DIMENSION)


def test_more_texts_than_fit_a_request_keep_their_order(client):
    many = [f"text number {number}" for number in range(600)]
    assert np.allclose(client.embed(many)[[0, 300, 599]], client.embed([many[0], many[300], many[599]]), atol=1e-6)


def test_loading_and_unloading_need_the_secret(client):
    with pytest.raises(InferenceServerException, match=r"(?i)restricted|expecting header"):
        triton.InferenceServerClient(client.grpc).unload_model("encoder")


@pytest.mark.parametrize("fault", [{"constant": float("nan")}, {"break_golden": True}])
def test_a_bad_version_is_refused_while_the_old_one_serves_without_an_error(client, fault):
    before, errors, answered, done = stable(), [], [], threading.Event()

    def traffic():
        while not done.is_set():
            try:
                answered.append(client.embed(["steady traffic"]))
            except (DataError, ServiceError) as error:
                errors.append(error)

    worker = threading.Thread(target=traffic)
    worker.start()
    try:
        with pytest.raises(ServiceError, match=f"rolled back, version {before} keeps serving"):
            bring(seed=77, **fault)
    finally:
        done.set()
        worker.join()
    assert (stable(), errors) == (before, []) and len(answered) > 20


def test_a_version_altered_after_staging_is_refused(client):
    before = stable()
    bring(seed=5)
    after = stable()
    assert after != before
    path = RELEASE.repository / "encoder" / str(after) / "tokenizer.json"
    original = path.read_bytes()
    path.write_bytes(original[:-1] + b" ")
    try:
        stop(SERVER)
        with pytest.raises(ServiceError, match=f"encoder version {after}, which is pinned, does not answer"):
            services.up(("triton",))
        assert rollback() == before  # the version before is there, and one call serves it
    finally:
        path.write_bytes(original)


def test_a_dead_stub_is_noticed_and_mended(client):
    server = psutil.Process(read_record(SERVER).pid)
    for child in server.children(recursive=True):
        if "stub" in child.name() and any("encoder" in part for part in child.cmdline()):
            child.kill()
    with pytest.raises((ServiceError, DataError)):
        client.embed(["is anybody there"])
    services.up(("triton",))
    with EncoderClient(read_record(SERVER).grpc, RELEASE.router) as again:
        assert again.embed(["is anybody there"]).shape == (1, DIMENSION)


@pytest.mark.parametrize(("event", "seed"), [("staged", 20), ("canary_50%", 21)])
def test_a_killed_rollout_leaves_the_old_version_and_goes_on_when_run_again(client, event, seed):
    before = stable()
    make_encoder(Store(home() / "store"), seed=seed)
    code = f"from tests.fault.test_rollout_faults import bring; bring(seed={seed})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, start_new_session=True)
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        entries = list(RELEASE.journal.read())
        begun = max(index for index, entry in enumerate(entries) if entry["event"] == "begin")
        if RELEASE.journal.unfinished() and any(entry["event"] == event for entry in entries[begun:]):
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed = RELEASE.journal.unfinished()
    assert killed is not None and stable() == before
    assert client.embed(TEXTS, key="any").shape == (len(TEXTS), DIMENSION)
    figures = bring(seed=seed)
    assert figures["served_version"] == killed["version"] == stable()
    assert (figures["errors"], figures["previous_version"]) == (0, before)
    assert "resumed" in [entry["event"] for entry in figures["timeline"]]
    assert RELEASE.journal.unfinished() is None and read_record(PREFLIGHT) is None


def test_a_kill_between_promotion_and_journal_is_finished(client):
    figures = bring(seed=30)
    version = figures["served_version"]
    RELEASE.journal.write("begin", version=version, source=figures["source"], stable=figures["previous_version"])
    again = bring(seed=30)
    assert again["served_version"] == version == stable()
    assert [entry["event"] for entry in again["timeline"]][-1] == "promoted"
    assert again["previous_version"] == figures["previous_version"]


def test_the_same_encoder_again_changes_nothing_and_measures_again(client):
    before = RELEASE.router.pins()
    first = bring(seed=40)
    again = bring(seed=40)
    assert first["served_version"] == again["served_version"] != before.stable
    assert again["requests"] >= CONFIG.requests_per_step and again["golden_cosine"] >= CONFIG.golden_cosine


def test_a_restarted_server_serves_the_pinned_version_and_rolls_back_at_once(client):
    pins, expected = RELEASE.router.pins(), client.embed(TEXTS)
    os.kill(read_record(SERVER).pid, signal.SIGKILL)
    for _ in range(3):  # the more often it fails, the longer gRPC would wait before it tries this address again
        with pytest.raises((ServiceError, DataError), match="accordion up"):
            client.embed(TEXTS)
    services.up(("triton",))
    record = read_record(SERVER)
    with EncoderClient(record.grpc, RELEASE.router) as again, Admin(record) as admin:
        assert np.allclose(again.embed(TEXTS), expected, atol=1e-6)
        assert admin.ready_versions("encoder") == pins.resident
    assert rollback() == pins.previous == stable()
    assert rollback() == pins.stable == stable()


def test_one_writer_at_a_time(client):
    lock = RELEASE.lock()
    try:
        with pytest.raises(RunLocked, match="another rollout"):
            bring(seed=0)
    finally:
        lock.release()


def test_an_artifact_that_is_no_encoder_is_refused(client, tmp_path):
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        rollout(CONFIG, out=tmp_path, encoder=tmp_path, queries=TEXTS)
