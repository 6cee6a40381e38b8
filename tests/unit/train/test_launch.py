"""The stage that starts its own processes: what one process gives, live figures, and errors of their own kind."""

import json
import os
import signal

import psutil
import pytest
import torch

from accordion.config.pretrain import ParallelConfig
from accordion.errors import ConfigError, Interrupted, RankLost
from accordion.observe import listening
from accordion.train.launch import launch
from accordion.train.pretrain import pretrain
from tests.unit.train.synthetic_shards import tiny_config, write_shards

STEPS = 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


def config(**parallel):
    values = {"steps": STEPS, "checkpoint_every": 2, "validation_sequences": 4, "batch": 4}
    return tiny_config(**values, parallel=ParallelConfig(**{"processes": 2, **parallel}))


def folders(tmp_path, name="run"):
    out = tmp_path / name
    out.mkdir()
    return {"out": out, "resume": tmp_path / f"{name}-resume"}


def test_two_processes_give_what_one_gives_and_their_figures_are_heard(shards, tmp_path):
    heard = []
    with listening(lambda step, figures: heard.append((step, figures))):
        together = launch(config(), shards=shards, **folders(tmp_path))
    alone = pretrain(config(), shards=shards, **folders(tmp_path, "alone"))
    speed = together.pop("speed")
    assert speed["processes"] == 2 and speed["peak_rss_bytes_of_processes"] > 2**20
    del alone["speed"]
    assert together["steps"] == STEPS and together.keys() == alone.keys()
    assert together["val_loss_full"] == pytest.approx(alone["val_loss_full"], rel=1e-4)
    assert [step for step, _ in heard] == list(range(1, STEPS + 1))
    assert all("loss/text" in figures and "tokens_per_second" in figures for _, figures in heard)
    assert json.loads((tmp_path / "run/config.json").read_text()) == json.loads(
        (tmp_path / "alone/config.json").read_text()
    )


def test_a_launcher_that_started_this_process_is_left_to_it(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "processes" not in launch(config(), shards=shards, **folders(tmp_path))["speed"]


def test_settings_that_do_not_fit_are_refused_once_and_with_their_own_error(shards, tmp_path, capfd):
    with pytest.raises(ConfigError, match=r"pretrain\.batch: got 4; wants a multiple of the 3 processes"):
        launch(config(processes=3), shards=shards, **folders(tmp_path))
    assert "start again" not in capfd.readouterr().err


def test_none_named_is_one_where_there_is_no_gpu(shards, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("one for each GPU")
    assert "processes" not in launch(config(processes=0), shards=shards, **folders(tmp_path))["speed"]


def test_a_process_that_dies_is_named_when_no_start_is_left(shards, tmp_path):
    stopped = Stopper(signal.SIGKILL)
    with (
        listening(stopped),
        pytest.raises(RankLost, match=r"another process of it died|terminated with signal SIGKILL"),
    ):
        launch(config(restarts=0), shards=shards, **folders(tmp_path))
    assert stopped.ids


def test_all_start_again_after_a_death_and_the_run_is_the_same(shards, tmp_path, capfd):
    given = folders(tmp_path)
    with listening(Stopper(signal.SIGKILL)):
        found = launch(config(restarts=1), shards=shards, **given)
    said = capfd.readouterr().err
    assert "all 2 processes start again, 1 times at most" in said and "resumed after step" in said
    alone = pretrain(config(), shards=shards, **folders(tmp_path, "alone"))
    assert found["val_loss_full"] == pytest.approx(alone["val_loss_full"], rel=1e-4)


def test_a_signal_to_the_stage_stops_all_of_them_after_a_step_that_is_saved(shards, tmp_path):
    given = folders(tmp_path)
    with (
        listening(lambda step, _: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None),
        pytest.raises(Interrupted, match="stopped by SIGTERM after step"),
    ):
        launch(config(), shards=shards, **given)
    assert not children() and any(given["resume"].glob("step-*"))
    assert launch(config(), shards=shards, **given)["steps"] == STEPS


class Stopper:
    """Listens, and sends the last process a signal when the first checkpoint can be there."""

    def __init__(self, number):
        self.number, self.ids = number, []

    def __call__(self, step, figures):
        if step >= 3 and not self.ids:
            self.ids = [child.pid for child in children()]
            os.kill(self.ids[-1], self.number)


def children():
    """The training processes of this one."""
    found = psutil.Process().children()
    return [child for child in found if "spawn_main" in " ".join(child.cmdline())]
