"""Samples of the pre-trained model in the report: every direction is there, beside the real record, and named."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from accordion.model import save_model
from accordion.report import samples
from accordion.report.run import RunFigures
from tests.unit.generate import conftest as tiny

tools, model = tiny.tools, tiny.model


@pytest.fixture
def run(tmp_path, model, tools) -> RunFigures:
    """A run with a tiny checkpoint, its tokenizers and a corpus of a few validation records."""
    rng = np.random.default_rng(0)
    folders = {"pretrain": tmp_path / "checkpoint", "ingest": tmp_path / "corpus"}
    folders |= {f"{part}_tokenizer": tmp_path / part for part in ("text", "vision", "audio")}
    for folder in folders.values():
        folder.mkdir()
    save_model(model, folders["pretrain"])
    for part in ("text", "vision", "audio"):
        getattr(tools, part).save(folders[f"{part}_tokenizer"])

    def table(name: str, **columns) -> None:
        count = len(next(iter(columns.values())))
        frame = pd.DataFrame({"id": [f"{name}{row}" for row in range(count)], **columns, "split": "val"})
        frame.to_parquet(folders["ingest"] / f"{name}.parquet")

    def png() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    table("text", text=["the cat and the dog and the car " * 5] * 4)
    table("images", png=[png(), png()], caption=["the cat", "a <b>dog"])
    clip = rng.integers(0, 255, (3, 16, 16, 3), dtype=np.uint8).tobytes()
    table("video", frames=[clip], n=[3], height=[16], width=[16], caption=["the car"])
    pcm = (np.sin(np.arange(8000) / 9) * 9000).astype("<i2").tobytes()
    table("audio", pcm=[pcm], rate=[8000], transcript=["the dog"], language=["en"], speaker=[""])
    return RunFigures(metrics={}, timings={}, folders=folders)


def test_every_direction_is_shown_beside_the_real_record(run):
    media, said = samples.generated(run)
    assert [asked.split()[0] for asked, _, _ in said] == ["go"] * 3 + ["describe"] * 3 + ["transcribe"]
    assert [truth for asked, truth, _ in said if asked == "describe image"] == ["the cat", "a <b>dog"]
    page = "".join(media)
    assert page.count('src="data:image/png') == 3 and page.count('src="data:audio/wav') == 4
    for words in ("nothing picked", "first frame", "spoken by the model", "spoken in that voice", "a &lt;b&gt;dog"):
        assert words in page
    again, same = samples.generated(run)
    assert "".join(again) == page and same == said


def test_without_the_checkpoint_nothing_is_made_up(run):
    there = {stage: folder for stage, folder in run.folders.items() if stage != "pretrain"}
    assert samples.generated(RunFigures(metrics={}, timings={}, folders=there)) == ([], [])
