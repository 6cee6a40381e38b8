"""Expectations: a good corpus and good shards pass; each kind of damage is named with its rows."""

import io
import json
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from accordion.config.data import ValidateShardsConfig
from accordion.data.batch import AUDIO, COLUMNS, IMAGE, TABLES, TEXT
from accordion.data.expectations.raw import validate_data
from accordion.data.expectations.shards import validate_shards
from accordion.data.expectations.suite import Suite, expect, validate
from accordion.errors import AccordionError, DataError, ValidationFailed
from tests.shard_files import write_datasets
from tests.small_corpus import CONFIG, clip, png, tables, write_corpus


def check(tmp_path: Path, corpus: Path) -> tuple[dict, Path]:
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return validate_data(CONFIG, out=out, corpus=corpus), out


def test_a_good_corpus_passes_offline_with_a_self_contained_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("validation opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    metrics, out = check(tmp_path, write_corpus(tmp_path / "corpus", tables()))
    assert metrics["failed"] == 0 and metrics["expectations"] > 80
    assert metrics["suites"]["audio"]["rows"] == 8
    result = json.loads((out / "result.json").read_text())
    assert result["success"] and len(result["expectations"]) == metrics["expectations"]
    page = (out / "report.html").read_text()
    assert "Every expectation is met" in page and "manual judgements" in page
    assert not re.search(r"<script|(src|href)=.?(https?:)?//|@import|<link", page)
    assert not (out / "failed_rows.jsonl").exists()
    check(tmp_path, tmp_path / "corpus")
    assert (out / "report.html").read_text() == page  # the same data, the same artifact


def damage_text(t: dict[str, pd.DataFrame]) -> None:
    t["text"].loc[0, "language"] = "xx"
    t["text"].loc[1, "text"] = "   "
    t["text"].loc[4, "text"] = t["text"].loc[2, "text"]
    t["text"].loc[7, "split"] = "train"


def damage_images(t: dict[str, pd.DataFrame]) -> None:
    t["images"].at[1, "png"] = png(1)[:60]
    t["images"].loc[2, "caption"] = None
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 9, 9)).save(buffer, "PNG")
    t["images"].at[3, "png"] = buffer.getvalue()


def damage_audio(t: dict[str, pd.DataFrame]) -> None:
    t["audio"].at[3, "pcm"] = bytes(1600)  # 0.1 s of silence
    t["audio"].at[4, "pcm"] = b"\x01\x02"
    t["audio"].loc[5, "rate"] = 16000
    t["audio"].at[6, "pcm"] = b"\x00\x20" * 500 + bytes(7000)  # an eighth of it is heard
    t["audio"].at[7, "pcm"] = np.full(4000, 32767, "<i2").tobytes()


def damage_video(t: dict[str, pd.DataFrame]) -> None:
    t["video"].at[2, "frames"] = b"\x05" * 100
    t["video"].at[1, "frames"] = clip(3, 1) + bytes(3 * 32 * 32 * 3)
    t["video"].at[3, "frames"] = clip(5, 1) * 4


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_text, [
            r"text: expect_column_values_to_be_in_set\(language.*1 of 8 rows; first: page0/en",
            r"text: expect_column_values_to_match_regex\(text.*first: page0/de",
            r"text: expect_column_values_to_be_unique\(digest.*2 of 8 rows; first: page1/en, page2/en",
            r"text: expect_column_values_to_be_in_set\(splits_of_group.*first: page3/en, page3/de",
        ]),
        (damage_images, [
            r"images: expect_column_values_to_be_in_set\(decodes.*1 of 4 rows; first: image1",
            r"images: expect_column_values_to_not_be_null\(caption\): 1 of 4 rows; first: image2",
            r"images: expect_column_values_to_be_between\(contrast.*first: image3",
            r"images: expect_column_values_to_be_between\(flat.*first: image3",
        ]),
        (damage_audio, [
            r"audio: expect_column_values_to_be_between\(level.*first: key1/es",
            r"audio: expect_column_values_to_be_between\(silent.*first: key1/es, key3/en",
            r"audio: expect_column_values_to_be_between\(clipped.*first: key3/es",
            r"audio: expect_column_values_to_be_between\(seconds.*first: key2/en",
            r"audio: expect_column_values_to_be_in_set\(rate.*first: key2/es",
        ]),
        (damage_video, [
            r"video: expect_column_values_to_be_between\(missing_bytes.*first: clip2",
            r"video: expect_column_values_to_be_between\(blank.*first: clip1",
            r"video: expect_column_values_to_be_between\(frozen.*first: clip3",
        ]),
    ],
    ids=["text", "images", "audio", "video"],
)  # fmt: skip
def test_damage_is_named_with_its_rows(tmp_path: Path, damage, named: list[str]) -> None:
    content = tables()
    damage(content)
    corpus = write_corpus(tmp_path / "corpus", content)
    with pytest.raises(ValidationFailed) as caught:
        check(tmp_path, corpus)
    for pattern in named:
        assert re.search(pattern, str(caught.value)), f"{pattern}\n{caught.value}"
    rows = [json.loads(line) for line in (tmp_path / "out/failed_rows.jsonl").read_text().splitlines()]
    assert len(rows) >= len(named) and all("expectation" in row for row in rows)
    assert "failures" in (tmp_path / "out/report.html").read_text()
    assert not json.loads((tmp_path / "out/result.json").read_text())["success"]


def test_a_judgement_of_an_unknown_document_is_named(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", tables())
    with (corpus / "retrieval/manual/qrels/test.tsv").open("a") as file:
        file.write("q1\td9\t1\nq7\td1\t1\n")
    with pytest.raises(ValidationFailed) as caught:
        check(tmp_path, corpus)
    assert re.search(r"manual judgements: .*document_exists.*first: test:q1:d9", str(caught.value))
    assert re.search(r"manual judgements: .*query_exists.*first: test:q7:d1", str(caught.value))


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\tgood\n", r"not_be_null\(grade\).*first: test:q1:d1"),
        ("qrels/test.tsv", "query\tdocument\nq1\td1\n", r"test.tsv: its first line lacks corpus-id, query-id, score"),
        ("qrels/test.tsv", None, r"qrels: no judgements"),
        ("queries.jsonl", '{"_id": "q1", "text": "a"}\n{"_id": "q2", "text": "a"}\n',
         r"(?s)(?=.*\(judgements[^\n]*first: q2)(?=.*be_unique\(text[^\n]*first: q1, q2)"),
        ("corpus.jsonl", '{"_id": "d1", "title": "", "text": " "}\n', r"match_regex\(text.*first: d1"),
        ("corpus.jsonl", '{"_id": "d1"\n', r"corpus.jsonl:1: not JSON"),
    ],
)  # fmt: skip
def test_broken_collections_are_named(tmp_path: Path, name: str, content: str | None, named: str) -> None:
    corpus = write_corpus(tmp_path / "corpus", tables())
    path = corpus / "retrieval/manual" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError) as caught:
        check(tmp_path, corpus)
    assert re.search(named, str(caught.value)), caught.value


def test_a_language_that_is_missing_or_takes_over_is_named(tmp_path: Path) -> None:
    content = tables()
    content["text"]["language"] = "en"
    with pytest.raises(ValidationFailed, match=r"text languages: .*share.*2 of 2 rows; first: de, en"):
        check(tmp_path, write_corpus(tmp_path / "corpus", content))


def test_a_language_that_is_declared_and_not_spoken_is_named(tmp_path: Path) -> None:
    content = tables()
    content["text"]["identified"] = content["text"]["language"].replace("de", "en")
    with pytest.raises(ValidationFailed, match=r"text languages: .*agreement.*1 of 2 rows; first: de"):
        check(tmp_path, write_corpus(tmp_path / "corpus", content))


def test_what_ingest_took_out_is_bounded(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", tables())
    rows = {"text": {"train": 6, "val": 2}, "images": {"train": 3, "val": 1}}
    figures = {"rows": rows, "duplicates": {"exact": {"text": 1, "images": 0}, "near": {"text": 92}}}
    (corpus / "metrics.json").write_text(json.dumps(figures))
    (corpus / "quarantine.jsonl").write_text("{}\n" * 3)
    with pytest.raises(ValidationFailed) as caught:
        check(tmp_path, corpus)
    named = r"taken out by ingest: .*2 of 4 rows; first: unreadable records, near copies, text"
    assert re.search(named, str(caught.value)), caught.value
    (corpus / "metrics.json").write_text("[]")
    with pytest.raises(DataError, match=r"metrics.json: not ingest's figures"):
        check(tmp_path, corpus)


def test_too_few_rows_are_named(tmp_path: Path) -> None:
    content = tables()
    content["video"] = content["video"].iloc[1:]
    with pytest.raises(ValidationFailed) as caught:
        check(tmp_path, write_corpus(tmp_path / "corpus", content))
    assert "video: expect_table_row_count_to_be_between(table, min_value=4): observed 3" in str(caught.value)


def test_another_schema_or_a_missing_table_is_named_before_anything_else(tmp_path: Path) -> None:
    content = tables()
    content["audio"] = content["audio"].drop(columns="pcm").assign(rate="8000")
    corpus = write_corpus(tmp_path / "corpus", content)
    with pytest.raises(ValidationFailed, match=r"schema: .*2 of \d+ rows; first: audio.pcm, audio.rate"):
        check(tmp_path, corpus)
    (corpus / "video.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"video.parquet: not readable"):
        check(tmp_path, corpus)
    (corpus / "video.parquet").unlink()
    with pytest.raises(DataError, match=r"video.parquet: missing"):
        check(tmp_path, corpus)


def test_a_bound_that_cannot_be_computed_fails_instead_of_passing(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": ["a"], "x": [1]})
    suite = Suite("numbers", table, [expect("column_values_to_be_between", column="y", min_value=0)])
    with pytest.raises(ValidationFailed, match=r'numbers: expect_column_values_to_be_between\(y.*"y"'):
        validate([suite], tmp_path, "numbers")


# Shards: one text document and one image document in each of three sequences of 12 positions.
META = {"sequence": 12, "text_vocabulary": 50, "bits": 3, "scales": [1, 2], "frames": 1, "audio_levels": 2,
        "audio_codebook": 8}  # fmt: skip
LIMITS = ValidateShardsConfig(
    minimum_tokens={"text": 5, "image": 5, "audio": 2, "video": 0}, padding_share=0.2, modality_share=(0, 1),
    base_share=1, text_entropy=0, code_entropy=0, bit_balance=0,
)  # fmt: skip


def sequence() -> dict[str, np.ndarray]:
    """Four text positions, one image of 1 + 4 positions, two audio frames, one position of padding."""
    width = {"position": (3,), "codes": (2,), "target_codes": (2,)}
    width |= dict.fromkeys(("vision_input", "latent", "target_bits", "patch_latent"), (3,)) | {
        "patch_pixels": (48,),
        "voice_vector": (67,),
    }
    empty = {"document": -1, "patch": -1, "voice": -1, "group": -1, "codes": -1, "scale": -1, "frame": -1,
             "target_token": -1, "target_bits": -1, "target_codes": -1}  # fmt: skip
    columns = {name: np.full((12, *width.get(name, ())), empty.get(name, 0), kind)
               for name, (_, kind) in COLUMNS.items()}  # fmt: skip
    columns["voice_vector"] = columns["voice_vector"][:2]  # as many as twelve positions can have
    columns["modality"][:11] = [TEXT] * 4 + [IMAGE] * 5 + [AUDIO] * 2
    columns["document"][:11] = [0] * 9 + [1] * 2
    columns["group"][:11] = [0, 1, 2, 3, 4, 5, 5, 5, 5, 6, 7]
    columns["token"][:4] = [1, 20, 21, 3]
    columns["target_token"][:3] = [20, 21, 3]
    columns["scale"][4:9] = [0, 1, 1, 1, 1]
    columns["frame"][4:9] = 0
    columns["target_bits"][4:9] = [0, 1, 1]
    columns["codes"][9:11] = [[1, 2], [3, 4]]
    columns["target_codes"][9:11] = [[3, 4], [8, 8]]
    return columns


def write_shards(folder: Path, change=lambda columns: None) -> Path:
    splits, positions = {}, {}
    for split, count in (("train", 3), ("val", 1)):
        columns = {name: np.stack([column] * count) for name, column in sequence().items()}
        if split == "train":
            change(columns)
        positions[split] = {"text": 4 * count, "image": 5 * count, "video": 0, "audio": 2 * count}
        splits[split] = {"all": columns}
    # the held-out split must hold every modality; without video the shards are not complete
    return write_datasets(folder, META, splits, positions=positions)


def check_shards(tmp_path: Path, change=lambda columns: None) -> str:
    """The error's text, or '' when only the missing video is complained of."""
    out = tmp_path / "out"
    out.mkdir()
    shards = write_shards(tmp_path / "shards", change)
    with pytest.raises(ValidationFailed) as caught:
        validate_shards(LIMITS, out=out, shards=shards)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    assert lines.pop().startswith("val positions: expect_column_values_to_be_between(above_minimum")
    return "\n".join(lines)


def test_good_shards_fail_only_for_the_modality_they_lack(tmp_path: Path) -> None:
    assert check_shards(tmp_path) == ""


def put(name: str, where: tuple, value: object):
    return lambda columns: columns[name].__setitem__(where, value)


@pytest.mark.parametrize(
    ("change", "column", "row"),
    [
        (put("token", (1, 2), 50), "token_outside", "train/all/1"),
        (put("target_token", (1, 1), 7), "target_token_wrong", "train/all/1"),
        (put("target_token", (0, 3), 5), "target_token_wrong", "train/all/0"),
        (put("group", (2, 5), 3), "group_falls", "train/all/2"),
        (put("document", (2, 11), 1), "document_in_padding", "train/all/2"),
        (put("group", (2, slice(5, 11)), 9), "group_skips", "train/all/2"),
        (put("document", (2, slice(9, 11)), 2), "document_skips", "train/all/2"),
        (put("target_codes", (2, slice(9, 11)), -1), "document_without_target", "train/all/2"),
        (put("position", (1, 2), 5), "position_falls", "train/all/1"),
        (put("position", (1, 2, 1), 5), "position_unequal", "train/all/1"),
        (put("target_token", (1, 1), -1), "target_token_missing", "train/all/1"),
        (put("codes", (0, 9, 1), 8), "codes_outside", "train/all/0"),
        (put("target_codes", (1, 9, 0), 5), "target_codes_wrong", "train/all/1"),
        (put("target_codes", (1, 10, 0), 9), "target_codes_outside", "train/all/1"),
        (put("target_bits", (2, 6, 1), 2), "bits_outside", "train/all/2"),
        (put("target_bits", (2, 6, 1), -1), "bits_outside", "train/all/2"),
        (put("target_bits", (2, 1, 1), 1), "bits_outside", "train/all/2"),
        (put("scale", (0, 6), 2), "vision_index_outside", "train/all/0"),
        (put("vision_input", (0, 6, 0), np.nan), "vision_input_not_finite", "train/all/0"),
        (put("latent", (0, 6, 0), np.inf), "latent_not_finite", "train/all/0"),
        (put("patch_latent", (1, 6, 0), np.nan), "latent_not_finite", "train/all/1"),
        (put("patch", (0, 2), 0), "patch_outside", "train/all/0"),
        (put("voice", (0, 2), 0), "voice_outside", "train/all/0"),
        (put("voice", (1, 1), -2), "voice_outside", "train/all/1"),
        (put("voice_vector", (1, 0, 5), np.inf), "voice_not_finite", "train/all/1"),
        (put("patch", (2, 4), 12), "patch_outside", "train/all/2"),
        (put("position", (0, 6, 0), np.inf), "position_not_finite", "train/all/0"),
        (put("modality", (1, 0), 9), "modality_unknown", "train/all/1"),
    ],
)  # fmt: skip
def test_each_damaged_column_is_named_with_its_sequence(tmp_path: Path, change, column: str, row: str) -> None:
    message = check_shards(tmp_path, change)
    assert re.search(rf"train sequences: .*\({column}, min_value=0.*1 of 3 rows; first: {row}", message), message


def test_too_few_positions_and_too_much_padding_are_named(tmp_path: Path) -> None:
    def empty_out(columns: dict[str, np.ndarray]) -> None:
        for name, column in columns.items():
            column[:2] = 0 if name in ("modality", "position", "token", "vision_input", "latent", *TABLES) else -1

    message = check_shards(tmp_path, empty_out)
    assert re.search(r"train positions: .*above_minimum.*first: text", message)
    assert re.search(r"train positions: .*not_as_in_meta.*first: text, image, audio", message)
    assert re.search(r"padding_share.*max_value=0.2\): observed 0.6", message)
    assert "0.694" in (tmp_path / "out/report.html").read_text()


def test_codes_that_say_nothing_are_named(tmp_path: Path) -> None:
    def dull(columns: dict[str, np.ndarray]) -> None:
        columns["codes"][:, 9:11] = columns["target_codes"][:, 9] = 3
        columns["target_bits"][:, 4:9, 0] = 1

    out = tmp_path / "out"
    out.mkdir()
    bounds = {"code_entropy": 0.1, "bit_balance": 0.02, "text_entropy": 3.0, "base_share": 0.5}
    strict = LIMITS.model_copy(update={**bounds, "modality_share": (0.01, 0.5)})
    with pytest.raises(ValidationFailed) as caught:
        validate_shards(strict, out=out, shards=write_shards(tmp_path / "shards", dull))
    for pattern in (
        r"train audio codes: .*entropy.*2 of 2 rows; first: level 1, level 2",
        r"train vision bits: .*ones.*first: image bit 0",
        r"train text tokens: .*entropy, min_value=3.0.*first: text",
        r"train text tokens: .*base_share.*first: text",
        r"train positions: .*share.*first: video",
    ):
        assert re.search(pattern, str(caught.value)), f"{pattern}\n{caught.value}"


def test_missing_parts_of_shards_are_named(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    (shards / "train/all/00000.array_record").unlink()
    with pytest.raises(AccordionError, match=r"train/all/00000.array_record: missing"):
        validate_shards(LIMITS, out=tmp_path, shards=shards)
    (shards / "meta.json").unlink()
    with pytest.raises(AccordionError, match=r"meta.json: missing"):
        validate_shards(LIMITS, out=tmp_path, shards=shards)
