"""Your own data: each documented format, records that are bad in every way, memory flat in their number."""

import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from accordion.config.data import IngestConfig
from accordion.data.ingest import ingest
from accordion.data.sources.audio import audio_rows
from accordion.data.sources.base import Quarantine
from accordion.data.sources.images import image_rows
from accordion.data.sources.retrieval import copy_collection, domains
from accordion.data.sources.text import text_rows
from accordion.data.sources.video import video_rows
from accordion.errors import ConfigError, DataError
from accordion.home import REPOSITORY
from tests import media

KNOWN = {"name": "mine", "licence": "CC0-1.0", "language": "en"}
READERS = {"images": image_rows, "audio": audio_rows, "video": video_rows}


def read(kind: str, path: Path | str, **entry: Any) -> tuple[list[dict], list[dict]]:
    """Rows and refusals of one source."""
    config = IngestConfig.parse({"sources": [{"kind": kind, "path": str(path), **KNOWN, **entry}]})
    quarantine = Quarantine(Path(path).parent)
    found = (
        text_rows(config.sources[0], quarantine)
        if kind == "text"
        else READERS[kind](config.sources[0], quarantine, config)
    )
    return [row for _, _, row in found], quarantine.refused


def shard(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt", "folder"])
def test_each_text_format_is_read(form: str, tmp_path: Path) -> None:
    rows = [{"text": f"Text number {n}\nwith é and 字"} for n in range(5)]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path = tmp_path / f"some.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif form == "txt":
        path.write_bytes(rows[0]["text"].encode())
    elif form == "folder":
        path.mkdir()
        for number, row in enumerate(rows):
            (path / f"{number}.md").write_text(row["text"])
    else:
        pack = {
            "jsonl": bytes,
            "jsonl.gz": gzip.compress,
            "jsonl.zst": lambda raw: pa.compress(raw, "zstd", asbytes=True),
        }
        path.write_bytes(pack[form](data))
    found, refused = read("text", path)
    assert [row["text"] for row in found] == [row["text"] for row in rows][: 1 if form == "txt" else 5]
    assert refused == [] and len({row["id"] for row in found}) == len(found)
    assert {(row["source"], row["licence"], row["language"], row["weight"]) for row in found} == {
        ("mine", "CC0-1.0", "en", 1.0)
    }


def test_half_characters_and_fields_of_another_type_are_no_accident_later(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = ['{"text": "half \\ud83d of it"}', '{"text": "whole \\ud83d\\ude00", "language": 5, "source": ["x"]}']
    path.write_text("\n".join(rows))
    found, refused = read("text", path)
    assert [(row["text"], row["language"], row["source"]) for row in found] == [("whole \U0001f600", "en", "mine")]
    assert refused[0]["record"] == "line 1" and "half of a character" in refused[0]["error"]
    broken = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary()).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "b.parquet")
    found, refused = read("text", tmp_path / "b.parquet")
    assert [row["text"] for row in found] == ["good", "fine"] and refused[0]["record"] == "row 2"


def test_what_a_text_states_itself_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    own = {"text": "t", "id": "i", "group": "g", "language": "fr", "source": "s", "license": "MIT"}
    path.write_text(json.dumps(own) + "\n" + json.dumps({"text": "u"}))
    found, _ = read("text", path, weight=2.5)
    wanted = {"id": "i", "group": "g", "language": "fr", "source": "s", "licence": "MIT", "text": "t", "weight": 2.5}
    assert found[0] == wanted
    assert found[1]["id"] == found[1]["group"] == "mine/a/2"


def test_bad_texts_are_refused_with_file_and_line(tmp_path: Path) -> None:
    good = json.dumps({"text": "good"}).encode()
    bad = [
        b'{"text": "caf\xe9"}',
        b"{broken",
        b"[1]",
        b'{"text": " "}',
        b'{"text": 5}',
        b'{"no": "text"}',
        b"[" * 100_000,
    ]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join([good, *bad, good]))
    found, refused = read("text", path)
    assert len(found) == 2
    assert [row["record"] for row in refused] == [f"line {n}" for n in range(2, 9)]
    reasons = ["not UTF-8: byte 13", "not JSON", "a JSON list", *["no text in text"] * 3, "not JSON"]
    for row, reason in zip(refused, reasons, strict=True):
        assert reason in row["error"] and row["file"] == "bad.jsonl"
    for name, data in (("cut.jsonl.gz", gzip.compress(good * 5000)[:60]), ("cut.jsonl.zst", b"\x28\xb5\x2f\xfd\0\1"),
                       ("cut.parquet", b"PAR1junk"), ("x.txt", b"caf\xe9")):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        found, refused = read("text", tmp_path / name)
        assert len(refused) == 1 and refused[0]["file"] == name
    found, refused = read("text", path, licence=None)
    assert found == [] and "no source or licence" in refused[0]["error"]


FILES = {"images": ("png", media.image), "audio": ("wav", media.audio), "video": ("mp4", media.video)}


@pytest.mark.parametrize("layout", ["metadata.jsonl", "metadata.csv", "sidecars", "tar", "tar.gz"])
@pytest.mark.parametrize("kind", FILES)
def test_media_are_read_from_folders_and_shards(kind: str, layout: str, tmp_path: Path) -> None:
    suffix, make = FILES[kind]
    data = make()
    captions = {"a": "The first, with a comma", "b": "Zweite Überschrift"}
    folder = tmp_path / "own"
    folder.mkdir()
    if layout.startswith("tar"):
        files = {}
        for key, caption in captions.items():
            files |= {f"{key}.{suffix}": data, f"{key}.txt": caption.encode()}
        path = shard(tmp_path / f"own-000.{layout}", files, "w:gz" if layout == "tar.gz" else "w")
    else:
        path = folder
        for key, caption in captions.items():
            (folder / f"{key}.{suffix}").write_bytes(data)
            if layout == "sidecars":
                (folder / f"{key}.txt").write_text(caption)
        rows = [{"file": f"{key}.{suffix}", "caption": caption} for key, caption in captions.items()]
        if layout == "metadata.jsonl":
            (folder / layout).write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif layout == "metadata.csv":
            pd.DataFrame(rows).to_csv(folder / layout, index=False)
    found, refused = read(kind, path)
    assert refused == []
    key = {"images": "caption", "audio": "transcript", "video": "caption"}[kind]
    assert list(dict.fromkeys(row[key] for row in found)) == list(captions.values())
    if kind != "video":
        assert [row["id"].split("/", 1)[1] for row in found] == ["mine/a", "mine/b"]


def test_images_become_rgb_png_of_a_bounded_side_and_speech_one_rate(tmp_path: Path) -> None:
    files = {
        "a.jpg": media.image("JPEG", media.pixels(300, 600)),
        "a.txt": b"wide",
        "b.flac": media.audio("FLAC", 44_100),
        "b.json": b'{"transcript": "a tone", "key": "k", "language": "it", "speaker": " Ann "}',
    }
    path = shard(tmp_path / "s.tar", files)
    images, refused = read("images", path)
    assert images[0]["png"].startswith(b"\x89PNG") and images[0]["png"][16:24] == bytes([0, 0, 1, 0, 0, 0, 0, 128])
    assert images[0]["captions"] == '{"en": "wide"}' and [row["record"] for row in refused] == ["b"]
    clips, _ = read("audio", path)
    assert (clips[0]["rate"], clips[0]["key"], clips[0]["language"]) == (8000, "k", "it")
    assert clips[0]["speaker"] == "Ann" and abs(len(clips[0]["pcm"]) / 2 - 4000) < 100


def test_bad_media_are_refused_and_their_neighbours_go_through(tmp_path: Path) -> None:
    good = {"images": media.image(), "audio": media.audio(), "video": media.video()}
    for kind, (suffix, _) in FILES.items():
        data = good[kind]
        files = {
            f"a.{suffix}": data[: len(data) // 2], "a.txt": b"cut off",
            f"b.{suffix}": b"no media at all \xff\xff", "b.txt": b"garbage",
            f"c.{suffix}": b"", "c.txt": b"empty",
            f"d.{suffix}": data, "d.json": b"{broken",
            f"e.{suffix}": data, "e.txt": b"\xff\xfe\xfd",
            f"f.{suffix}": data, "f.json": b"[1]",
            "g.txt": b"no file",
            f"h.{suffix}": data, "h.txt": b"good",
        }  # fmt: skip
        if kind != "video":
            files[f"i.{suffix}"] = data  # no caption
        found, refused = read(kind, shard(tmp_path / f"{kind}.tar", files))
        assert {row["id"].split("/")[2] for row in found} == {"h"}
        assert [row["record"][0] for row in refused] == [*"abcdefg", *("i" if kind != "video" else "")]
        assert all(row["file"] == f"{kind}.tar" and row["error"] for row in refused)


def test_corrupt_gsm_in_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    gsm = bytearray(media.audio("GSM"))
    for name in ("a", "b"):
        (tmp_path / f"{name}.gsm").write_bytes(gsm)
        (tmp_path / f"{name}.txt").write_text("words")
        gsm[66] = 0
    found, refused = read("audio", tmp_path)
    assert [row["id"] for row in found] == ["audio/mine/a"]
    assert "frame 2" in refused[0]["error"] and refused[0]["file"].endswith("b.gsm")


def test_a_tar_file_cut_in_the_middle_keeps_its_first_samples(tmp_path: Path) -> None:
    files = {}
    for number in range(10):
        files |= {f"{number}.png": media.image(picture=media.pixels(seed=number)), f"{number}.txt": b"caption"}
    path = shard(tmp_path / "s.tar", files)
    data = path.read_bytes()
    for length in (7168, 7300, 7500, 7680, 8000):  # between files, in a header, in a picture
        path.write_bytes(data[:length])
        found, refused = read("images", path)
        assert 0 < len(found) < 10 and len(refused) == 1
        assert "damaged tar file" in refused[0]["error"] and refused[0]["record"] == f"from {len(found)}"
    path.write_bytes(b"no tar")
    assert read("images", path)[1][0]["record"] == "from its beginning"


def test_files_outside_of_the_folder_and_missing_ones_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(media.image())
    rows = [{"file": "../secret.png", "caption": "x"}, {"file": str(tmp_path / "secret.png"), "caption": "x"},
            {"file": "none.png", "caption": "x"}, {"caption": "x"}]  # fmt: skip
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, refused = read("images", folder)
    assert found == []
    assert ["outside" in row["error"] for row in refused] == [True, True, False, False]
    assert [row["record"] for row in refused] == [f"line {n}" for n in range(1, 5)]


@pytest.mark.parametrize("kind", ["text", "images", "audio", "video", "retrieval"])
def test_missing_paths_and_empty_folders_are_one_clear_error(kind: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()

    def attempt(path: Path) -> None:
        if kind == "retrieval":
            domains(IngestConfig.parse({"sources": [{"kind": kind, "path": str(path)}]}).sources[0], ())
        else:
            read(kind, path)

    with pytest.raises(DataError, match=r"nowhere.*: missing .*ingest\.sources"):
        attempt(tmp_path / "nowhere" / "*.tar")
    with pytest.raises(DataError, match=r"empty: no "):
        attempt(empty)


def test_unknown_keys_and_wrong_values_of_a_source_are_refused_with_their_path() -> None:
    for entry, message in [
        ({"kind": "text", "path": "x", "licens": "MIT"}, r"sources\.0\.licens: unknown key; did you mean 'licence'"),
        ({"kind": "texts", "path": "x"}, r"sources\.0\.kind: got 'texts'"),
        ({"kind": "text"}, r"sources\.0\.path: missing"),
        ({"kind": "text", "path": "x", "weight": 0}, r"sources\.0\.weight"),
        ({"kind": "text", "path": "x", "role": "test"}, r"sources\.0\.role"),
        ({"kind": "retrieval", "path": "x", "weight": 2}, r"sources\.0: .*weight: got 2, but a collection is not read"),
        ({"kind": "text", "path": "x", "role": "evaluation", "weight": 2}, r"what is held out is not read in training"),
    ]:
        with pytest.raises(ConfigError, match=message):
            IngestConfig.parse({"sources": [entry]})
    with pytest.raises(ConfigError, match="replace names audio"):
        IngestConfig.parse({"replace": ["audio"]})


def beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "T", "text": f"document {n}"} for n in range(4)]
    queries = [{"_id": f"q{n}", "text": f"query {n}"} for n in range(4)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*documents, documents[0]]))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries) + '{"_id": "q9"}\n')
    judged = ["query-id\tcorpus-id\tscore", "q0\td0\t1", "q1\td1\t2", "q2\td2\t0", "q0\td9\t1", "q0\td1\tbad"]
    (folder / "qrels/test.tsv").write_text("\n".join(judged) + "\n")
    return folder


def test_a_beir_folder_is_checked_and_copied(tmp_path: Path) -> None:
    source = IngestConfig.parse({"sources": [{"kind": "retrieval", "path": str(beir(tmp_path / "cars"))}]}).sources[0]
    quarantine = Quarantine(tmp_path)
    (domain,) = domains(source, ("cars",))
    assert domain.trained and not domains(source, ())[0].trained
    counts = copy_collection(domain, tmp_path / "out", quarantine)
    assert counts == {"documents": 4, "queries": 2, "judgements": {"test": 2}}
    reasons = [(row["record"], row["error"]) for row in quarantine.refused]
    assert ("line 5", "duplicate id d0") in reasons and ("line 5", "no text in text") in reasons
    assert ("line 5", "document d9 is not in the collection") in reasons
    assert any("whole number" in error for _, error in reasons) and len(reasons) == 4
    with pytest.raises(DataError, match="another collection 'cars'"):
        copy_collection(domain, tmp_path / "out", quarantine)


def blocks(kind: str) -> list[str]:
    """The code blocks of a kind in the section "Your own data"."""
    page = (REPOSITORY / "docs/data.md").read_text(encoding="utf-8")
    section = page.partition("## Your own data")[2].partition("\n## ")[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def test_the_examples_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for script in blocks("python"):
        subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=60)
    settings = yaml.safe_load("\n".join(blocks("yaml")))["ingest"]
    out = tmp_path / "corpus"
    out.mkdir()
    metrics = ingest(IngestConfig.parse(settings), out=out)
    assert metrics["quarantined"] == 1 and metrics["quarantined_by_file"] == {"mydata/text/notes.jsonl": 1}
    assert set(metrics["rows"]) == {"text", "images", "audio", "video"}
    text = pd.read_parquet(out / "text.parquet")
    assert {"notes", "exam"} == set(text["source"])
    assert set(text[text["source"] == "exam"]["split"]) == {"val"}
    assert metrics["duplicates"]["exact"]["text"] == 1 and metrics["duplicates"]["near"]["text"] == 1
    assert metrics["decontamination"]["removed"]["passages"] == 1
    assert metrics["retrieval"]["cooking"]["documents"] == 3
    images = pd.read_parquet(out / "images.parquet")
    assert (images["source"] == "pictures").sum() > 20
    assert metrics["languages"]["text"].keys() == {"en", "de"}


def test_duplicate_ids_mismatched_languages_and_copies_made_by_cuts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"id": f"t{n}", "text": " ".join(f"w{i}" for i in rng.integers(0, 999, 30))} for n in range(80)]
    rows += [{"id": "t0", "text": "another"}]
    english = "The quick brown fox jumps over the lazy dog while the farmer watches from the old wooden gate. "
    rows += [{"id": "wrong", "text": english * 3, "language": "de"}]
    leaked = [" ".join(f"q{i}" for i in rng.integers(0, 999, 30)) for _ in range(4)]
    rows += [{"id": f"cut{n}", "text": f"{passage}\nOne line that is left."} for n, passage in enumerate(leaked)]
    exam = tmp_path / "exam.jsonl"
    exam.write_text("".join(json.dumps({"id": f"e{n}", "text": passage}) + "\n" for n, passage in enumerate(leaked)))
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"kind": "text", "path": str(path), **KNOWN}]
    sources += [{"kind": "text", "path": str(exam), **KNOWN, "name": "exam", "role": "evaluation"}]
    corpus = {"sources": sources, "replace": ["text"]}
    out = tmp_path / "corpus"
    out.mkdir()
    metrics = ingest(IngestConfig.parse({**corpus, "languages": {"mismatch": "quarantine"}}), out=out)
    refused = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [row["error"].split(",")[0] for row in refused] == ["duplicate id t0", "declared de"]
    assert [row["record"] for row in refused] == ["line 81", "line 82"]
    assert metrics["language_check"]["text"]["de"]["mismatch_share"] == 1.0
    assert not list(out.glob(".spool*"))
    left = pd.read_parquet(out / "text.parquet").query("id.str.startswith('cut') and split == 'train'")["text"]
    assert left.tolist() == ["One line that is left."]  # texts that cuts made equal are copies too
    assert metrics["duplicates"]["exact"]["text"] >= 1


def test_memory_does_not_grow_with_the_length_of_a_shard(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    png = media.image("PNG", noise)  # 12 KB

    def peak(samples: int) -> int:
        path = tmp_path / f"{samples}.tar"
        with tarfile.open(path, "w") as archive:
            for number in range(samples):
                for suffix, data in (("png", png), ("txt", b"noise")):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        config = IngestConfig.parse({"sources": [{"kind": "images", "path": str(path), **KNOWN}]})
        tracemalloc.start()
        count = sum(1 for _ in image_rows(config.sources[0], Quarantine(tmp_path), config))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == samples
        return highest

    peak(5)
    few, many = peak(50), peak(600)
    assert many < few + 2_000_000 < 600 * len(png)
