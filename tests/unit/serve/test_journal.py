"""The journal keeps every whole event, also when a kill cut one short."""

from accordion.serve.journal import Journal


def test_events_are_read_back_and_a_cut_line_loses_only_itself(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.write("begin", version=1, source="encoder:a")
    with open(journal.path, "ab") as file:
        file.write(b'{"event": "sta')  # killed while writing
    journal.write("promoted", version=1)
    assert [entry["event"] for entry in journal.read()] == ["begin", "promoted"]


def test_unfinished_is_the_rollout_that_was_killed(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    assert journal.unfinished() is None
    journal.write("begin", version=1, source="encoder:a")
    journal.write("promoted", version=1)
    assert journal.unfinished() is None
    journal.write("begin", version=2, source="encoder:b")
    journal.write("staged", version=2)
    assert journal.unfinished()["version"] == 2
    journal.write("rolled_back", version=2)
    assert journal.unfinished() is None
