"""Pins: stable hashing, shares that grow without moving keys, promotion and rollback that survive a restart."""

import json

import pytest

from accordion.errors import ServiceError
from accordion.serve.router import Pins, Router, position

POSITION = 0.6041924073669338  # of user-1, as another process computed it
KEYS = [f"user-{number}" for number in range(4000)]


def test_position_is_the_same_in_every_process_and_even():
    assert position("user-1") == POSITION
    assert sum(position(key) < 0.1 for key in KEYS) == pytest.approx(400, abs=80)


def test_a_growing_share_keeps_the_keys_it_had():
    small, large = (Pins(stable=1, canary=2, share=share) for share in (0.1, 0.5))
    moved = {key for key in KEYS if small.choose(key) == 2}
    assert moved and moved < {key for key in KEYS if large.choose(key) == 2}
    assert all(Pins(stable=1, canary=2, share=1.0).choose(key) == 2 for key in KEYS)


def test_pins_survive_a_restart_and_a_reader_sees_changes(tmp_path):
    writer, reader = Router(tmp_path / "pins.json"), Router(tmp_path / "pins.json")
    assert reader.pins() == Pins()
    writer.promote(1)
    writer.try_canary(2, 0.5)
    assert reader.pins() == Pins(stable=1, canary=2, share=0.5)
    writer.promote(2)
    writer.promote(2)  # repeated after a kill
    assert reader.pins() == Router(tmp_path / "pins.json").pins() == Pins(stable=2, previous=1)
    assert reader.roll_back() == Pins(stable=1, previous=2)


def test_errors_name_the_remedy(tmp_path):
    router = Router(tmp_path / "pins.json")
    with pytest.raises(ServiceError, match="make run"):
        router.pins().choose("a")
    with pytest.raises(ServiceError, match="no predecessor"):
        router.roll_back()
    (tmp_path / "pins.json").write_text(json.dumps({"stabel": 1}))
    with pytest.raises(ServiceError, match=r"pins\.json: not readable"):
        router.pins()
