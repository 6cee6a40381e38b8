"""Ingest: the shipped data, and bad records of every kind beside good neighbours."""

import gzip
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from accordion.config.data import IngestConfig
from accordion.data.ingest import ingest
from accordion.data.media import read_audio
from accordion.data.sources.base import Split
from accordion.data.sources.video import Window, cut, held_out
from accordion.errors import DataError
from accordion.home import REPOSITORY

SAMPLE = REPOSITORY / "data/sample"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The beginning of the shipped data, which a test may damage."""
    folder = Path(shutil.copytree(SAMPLE, tmp_path / "source"))
    for path in (folder / "text").iterdir():
        path.write_bytes(gzip.compress(b"".join(gzip.decompress(path.read_bytes()).splitlines(keepends=True)[:50])))
    for listing in (folder / "images/captions.jsonl", folder / "audio/transcripts.jsonl"):
        listing.write_text("".join(listing.read_text().splitlines(keepends=True)[:60]))
    for domain in ("kjv-naves", "python-doc"):
        shutil.rmtree(folder / "retrieval" / domain)
    return folder


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path, list[dict]]:
    """Ingest of the shipped data, once for all tests that only look at it."""
    return run(SAMPLE, tmp_path_factory.mktemp("shipped"))


def run(source: Path, tmp_path: Path) -> tuple[dict, Path, list[dict]]:
    out = tmp_path / "corpus"
    out.mkdir()
    metrics = ingest(IngestConfig(source=str(source)), out=out)
    refused = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    return metrics, out, refused


def rewrite_zip(path: Path, changes: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**members, **changes}.items():
            archive.writestr(name, data)


def test_the_shipped_data_is_small_whole_and_of_all_modalities(shipped: tuple[dict, Path, list[dict]]) -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 5_000_000
    metrics, out, refused = shipped
    assert refused == [] and metrics["quarantined"] == 0
    for modality, least in {"text": 1500, "images": 400, "audio": 250, "video": 300}.items():
        rows = pd.read_parquet(out / f"{modality}.parquet")
        counts = rows["split"].value_counts()
        assert counts["train"] >= least and counts["val"] >= 20
        assert metrics["rows"][modality] == counts.to_dict()
        assert rows["id"].is_unique and rows["licence"].str.len().min() > 0
    assert set(metrics["languages"]["text"]) == {"en", "de", "fr", "es", "it", "ru", "ja", "zh"}
    assert len(set(metrics["languages"]["audio"].values())) == 1  # every prompt in every voice
    assert metrics["audio_seconds"] > 600
    assert set(metrics["retrieval"]) == {"libreoffice-help", "kjv-naves", "python-doc"}


def test_two_runs_write_the_same_bytes(shipped: tuple[dict, Path, list[dict]], tmp_path: Path) -> None:
    _, first, _ = shipped
    _, second, _ = run(SAMPLE, tmp_path)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) > 15
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_groups_stay_in_one_split(shipped: tuple[dict, Path, list[dict]]) -> None:
    _, out, _ = shipped
    audio = pd.read_parquet(out / "audio.parquet")
    assert audio.groupby("key")["split"].nunique().max() == 1
    text = pd.read_parquet(out / "text.parquet")
    assert text.groupby(text["id"].str.rsplit("/", n=1).str[0])["split"].nunique().max() == 1


def test_training_text_holds_no_held_out_or_evaluation_passage(shipped: tuple[dict, Path, list[dict]]) -> None:
    metrics, out, _ = shipped
    text = pd.read_parquet(out / "text.parquet")
    held = {line for row in text[text["split"] == "val"]["text"] for line in row.splitlines() if len(line) >= 60}
    trained = {line for row in text[text["split"] == "train"]["text"] for line in row.splitlines()}
    assert held and not held & trained
    assert metrics["decontamination"]["removed"]["passages"] > 0  # help pages share notes: some had to go
    verses = gzip.decompress((SAMPLE / "retrieval/kjv-naves/corpus.jsonl.gz").read_bytes()).splitlines()
    assert not {json.loads(verse)["text"] for verse in verses} & trained


def test_test_and_train_queries_are_disjoint(shipped: tuple[dict, Path, list[dict]]) -> None:
    _, out, _ = shipped
    folder = out / "retrieval/libreoffice-help/qrels"
    train, test = (pd.read_csv(folder / f"{name}.tsv", sep="\t") for name in ("train", "test"))
    assert len(test) > 300
    assert not set(train["query-id"]) & set(test["query-id"])
    assert not set(train["corpus-id"]) & set(test["corpus-id"])


def test_bad_records_go_to_quarantine_and_neighbours_go_through(source: Path, tmp_path: Path) -> None:
    images = [json.loads(line) for line in (source / "images/captions.jsonl").read_text().splitlines()]
    with zipfile.ZipFile(source / "images/emoji.zip") as archive:
        good = archive.read(images[0]["file"])
    rewrite_zip(source / "images/emoji.zip", {images[0]["file"]: good[:100], images[1]["file"]: b"no picture"})
    images[2]["captions"]["en"] = "  "
    (source / "images/captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in images) + "{broken\n")
    spoken = [json.loads(line)["file"] for line in (source / "audio/transcripts.jsonl").read_text().splitlines()]
    with zipfile.ZipFile(source / "audio/prompts.zip") as archive:
        gsm = bytearray(archive.read(spoken[1]))
        whole = archive.read(spoken[0])
    gsm[33 * 5] = 0x00
    rewrite_zip(source / "audio/prompts.zip", {spoken[0]: whole[:-10], spoken[1]: bytes(gsm), spoken[2]: b""})
    path = source / "text/de.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    lines[3] = lines[3].replace("ü".encode(), b"\xff")
    path.write_bytes(gzip.compress(b"".join(lines)))

    metrics, out, refused = run(source, tmp_path)
    reasons = {(row["file"], row["record"]): row["error"] for row in refused}
    assert "damaged PNG" in reasons["images/emoji.zip", images[0]["file"]]
    assert (
        reasons["images/emoji.zip", images[1]["file"]]
        == f"{images[1]['file']}: a text file; wants a PNG, JPEG, WebP or GIF image"
    )
    assert "empty caption" in reasons["images/captions.jsonl", "line 3"]
    assert "not JSON" in reasons["images/captions.jsonl", f"line {len(images) + 1}"]
    assert "truncated GSM" in reasons["audio/prompts.zip", spoken[0]]
    assert "frame 5" in reasons["audio/prompts.zip", spoken[1]]
    assert "empty" in reasons["audio/prompts.zip", spoken[2]]
    assert "not UTF-8" in reasons["text/de.jsonl.gz", "line 4"]
    assert metrics["quarantined"] == len(refused) == 8
    assert len(pd.read_parquet(out / "images.parquet")) == len(images) - 3
    assert len(pd.read_parquet(out / "audio.parquet")) == len(spoken) - 3


def test_a_member_missing_from_the_archive_is_refused(source: Path, tmp_path: Path) -> None:
    with (source / "audio/transcripts.jsonl").open("a") as file:
        row = {"file": "en/nothing.gsm", "key": "k", "language": "en", "transcript": "t", "source": "s", "licence": "l"}
        file.write(json.dumps(row) + "\n")
    _, _, refused = run(source, tmp_path)
    assert refused == [{"file": "audio/prompts.zip", "record": "en/nothing.gsm", "error": "not in the archive"}]


def test_a_cut_off_gzip_file_keeps_its_first_lines(source: Path, tmp_path: Path) -> None:
    path = source / "text/fr.jsonl.gz"
    path.write_bytes(path.read_bytes()[:15_000])
    metrics, _, refused = run(source, tmp_path)
    assert [row["error"].split(":")[0] for row in refused] == ["damaged gzip file"]
    assert 10 < metrics["languages"]["text"]["fr"] < 50


def test_a_damaged_video_leaves_nothing_and_says_so(source: Path, tmp_path: Path) -> None:
    (source / "video/bigbuckbunny.mp4").write_bytes(b"\x00" * 1000)
    with pytest.raises(DataError, match=r"video: no usable record is left .*bigbuckbunny.mp4: damaged MP4 file"):
        run(source, tmp_path)


@pytest.mark.parametrize("part", ["text", "images", "audio", "video", "faq", "dictionaries", "retrieval"])
def test_an_empty_part_is_an_error_that_names_it(source: Path, tmp_path: Path, part: str) -> None:
    shutil.rmtree(source / part)
    with pytest.raises(DataError, match=rf"source/{part}: missing .*ingest.source"):
        run(source, tmp_path)


def test_an_empty_corpus_and_a_missing_folder_are_errors(source: Path, tmp_path: Path) -> None:
    for path in (source / "text").iterdir():
        path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="source/text: no usable record is left"):
        run(source, tmp_path)
    with pytest.raises(DataError, match="nowhere: missing"):
        ingest(IngestConfig(source=str(tmp_path / "nowhere")), out=tmp_path)


def test_copies_are_dropped_and_one_in_both_splits_stays_held_out(source: Path, tmp_path: Path) -> None:
    path = source / "text/en.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    split = Split(0, 0.1)
    held = next(row for row in rows if split.of(f"text/{row['group']}") == "val")
    rows.insert(0, {**held, "id": "copy/en", "group": next(
        f"copy{n}" for n in range(100) if split.of(f"text/copy{n}") == "train")})  # fmt: skip
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    metrics, out, _ = run(source, tmp_path)
    copy = {"kind": "exact", "modality": "text", "dropped": "copy/en", "kept": held["id"]}
    assert copy in metrics["duplicates"]["examples"]
    assert "copy/en" not in set(pd.read_parquet(out / "text.parquet")["id"])


def test_the_split_depends_on_seed_and_group_only() -> None:
    groups = [f"g{n}" for n in range(4000)]
    first = [Split(0, 0.1).of(group) for group in groups]
    assert first == [Split(0, 0.1).of(group) for group in groups]
    assert first != [Split(1, 0.1).of(group) for group in groups]
    assert 0.08 < first.count("val") / len(groups) < 0.12


def test_shipped_gsm_is_decoded_to_160_samples_a_frame() -> None:
    with zipfile.ZipFile(SAMPLE / "audio/prompts.zip") as archive:
        data = archive.read(archive.namelist()[0])
    samples, rate = read_audio(data)
    assert (len(samples), rate) == (len(data) // 33 * 160, 8000)
    assert 0.02 < np.abs(samples).max() <= 1


def test_video_clips_never_share_a_frame_between_the_splits() -> None:
    film = [np.full((64, 114, 3), number, np.uint8) for number in range(132)]
    clips = list(cut(iter(film), 10, Window()))
    seen = {split: {int(v) for _, s, c in clips if s == split for v in c[:, 0, 0, 0]} for split in ("train", "val")}
    assert seen["val"] and seen["train"] and not seen["val"] & seen["train"]
    assert {clip.shape for _, _, clip in clips} == {(4, 32, 32, 3)}
    longer = list(cut(iter(film), 10, Window(side=48, frames=8)))
    assert {clip.shape for _, _, clip in longer} == {(8, 48, 48, 3)}
    assert {split for _, split, _ in longer} == {"train", "val"}
    assert 0.05 < np.mean([held_out(frame, 10, Window().block) for frame in range(132)]) < 0.2
