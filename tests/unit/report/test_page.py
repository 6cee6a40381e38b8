"""The page: one file, nothing loaded from elsewhere, in words what happened, whole when stages are absent."""

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from accordion.errors import DataError
from accordion.report.page import render
from accordion.report.run import RunFigures

FIGURES = {
    "losses",
    "family",
    "routing",
    "routing-members",
    "reinforcement",
    "retrieval",
    "rollout",
    "stages",
    "languages",
    "lengths",
}


class Page(HTMLParser):
    """What the tests ask of a page: ids, addresses, pictures, headers, text, balance of tags."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.anchors: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.sources += [values["src"] or ""] if "src" in values else []
        if tag == "a":
            self.anchors.append(values["href"] or "")
        if tag == "img" or (tag == "svg" and self.open[-2] == "div"):
            self.pictures.append(values)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="session")
def folder(run: RunFigures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    render(run, out=out)
    return out


def without(run: RunFigures, *stages: str) -> RunFigures:
    return dataclasses.replace(run, metrics={k: v for k, v in run.metrics.items() if k not in stages}, folders={})


def test_one_file_that_loads_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert len(text) < 3_000_000
    assert all(source.startswith("data:") for source in page.sources)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_every_picture_has_words_and_every_anchor_a_target(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert len(page.pictures) >= len(FIGURES)
    for picture in page.pictures:
        assert len((picture.get("alt") or picture.get("aria-label") or "").split()) >= 4
    assert len(page.ids) == len(set(page.ids))
    assert {href[1:] for href in page.anchors if href.startswith("#")} <= set(page.ids)


def test_says_what_happened_and_where(folder: Path) -> None:
    text = Page((folder / "report.html").read_text()).text
    assert "The gate passed and version 3 is being served" in text
    assert "http://127.0.0.1:8000/v2/models/encoder/versions/3/infer" in text
    assert "0 of 450 requests failed" in text
    assert "under the unigram baseline by 32% for text, 11% for image, 15% for video and 15% for audio" in text
    assert "ahead of BM25 (0.414, 0.354 and 0.597) in 0 of 3 domains" in text


def test_shows_and_plays_what_the_tokenizers_give_back(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert sum(source.startswith("data:image/png") for source in page.sources) == 3  # images, frames, a spectrogram
    sounds = [base64.b64decode(s.partition(",")[2]) for s in page.sources if s.startswith("data:audio/wav")]
    assert len(sounds) == 12 and len({len(sound) for sound in sounds}) == 1  # 3 languages: original, 1, 2, 4 codes
    assert "“hello <world>” (de)" in page.text


def test_figures_are_kept_as_pictures_too(folder: Path) -> None:
    assert {path.stem for path in (folder / "figures").glob("*.png")} == FIGURES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (folder / "figures").iterdir())


def test_can_be_made_again_from_its_folder(folder: Path, tmp_path: Path) -> None:
    render(RunFigures.load(folder), out=tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads((folder / "summary.json").read_text())
    assert (tmp_path / "report.html").read_text() == (folder / "report.html").read_text()
    with pytest.raises(DataError, match=r"no run\.json"):
        RunFigures.load(tmp_path / "figures")


def test_a_failed_gate_and_no_rollout_are_said_in_words(run: RunFigures, tmp_path: Path) -> None:
    check = {**run.metrics["gate"]["checks"][0], "passed": False, "value": None, "message": "it was not measured"}
    gate = {"passed": False, "checks": [check, *run.metrics["gate"]["checks"][1:]]}
    part = without(run, "register", "rollout")
    render(dataclasses.replace(part, metrics={**part.metrics, "gate": gate}), out=tmp_path)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "The gate failed, nothing was rolled out" in text
    assert "There was no rollout: the gate failed. Whatever was served before still is." in text
    assert "1 of 4 checks failed: text under unigram" in text and "it was not measured" in text


def test_a_run_that_ended_early_still_has_a_page(run: RunFigures, tmp_path: Path) -> None:
    render(RunFigures(metrics={}, timings={}, folders={}), out=tmp_path)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "The run ended before its gate" in text and "No model was pre-trained in this run." in text


def test_text_from_data_is_shown_and_never_run(run: RunFigures, tmp_path: Path) -> None:
    render(dataclasses.replace(run, about={"profile": "<script>alert(1)</script>"}, folders={}), out=tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert "script" not in page.tags and "<script>alert(1)</script>" in page.text


def test_a_broken_curve_file_is_named(run: RunFigures, tmp_path: Path) -> None:
    (tmp_path / "curves.jsonl").write_text('{"step": 1}\n{"step": 2,\n')
    with pytest.raises(DataError, match=r"curves\.jsonl:2: not JSON"):
        render(dataclasses.replace(run, folders={"pretrain": tmp_path}), out=tmp_path)
