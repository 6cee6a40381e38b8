"""Packing: layout of each kind of document, targets, positions, best fit, shares, determinism, bad input."""

import io
import json
import random
import tracemalloc
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from accordion.config.data import AudioTokenizerConfig, PackConfig, TextTokenizerConfig, VisionTokenizerConfig
from accordion.data.batch import AUDIO, COLUMNS, IMAGE, TEXT, VIDEO, VOICE_SIZE, empty_columns
from accordion.data.documents import Assembler, Document, Pool, Spoken
from accordion.data.encode import repeated_speech, rows, speech
from accordion.data.loader import ShardLoader
from accordion.data.pack import Packer, Tally, _write_split, blend_weights, interleave, lay_out, pack
from accordion.data.shards import chunks, open_split, read_meta
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.text import BOA, BOI, BOS, BOV, EOA, EOI, EOS, EOV, VOICE, TextTokenizer
from accordion.data.tokenizers.text_training import fit
from accordion.data.tokenizers.vision import VisionTokenizer, accumulate
from accordion.errors import ArtifactError, ConfigError, DataError

VISION = VisionTokenizerConfig(channels=8, bits=5, image_size=16, scales=(1, 2, 4), frames=3)
AUDIO_CONFIG = AudioTokenizerConfig(channels=8, levels=3, codebook=8)
CONFIG = PackConfig(sequence=128, positions=6000, shard_sequences=20)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained but real tokenizers, saved."""
    torch.manual_seed(0)
    folders = {name: tmp_path_factory.mktemp(name) for name in ("text", "vision", "audio")}
    fit(TextTokenizerConfig(vocabulary=450), ["the cat and the dog and the car"] * 20).save(folders["text"])
    VisionTokenizer(VISION).save(folders["vision"])
    audio = AudioTokenizer(AUDIO_CONFIG)
    torch.nn.init.normal_(audio.quantizer.codebooks, std=0.3)
    audio.save(folders["audio"])
    return folders


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)

    def png() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    def table(name: str, count: int, **columns) -> None:
        rows = [{"id": f"{name}{i}", "split": "val" if i % 5 == 0 else "train", "weight": 1.0} for i in range(count)]
        frame = pd.DataFrame(rows).assign(**{key: [make(i) for i in range(count)] for key, make in columns.items()})
        frame.to_parquet(folder / f"{name}.parquet")

    table("text", 30, text=lambda i: "the cat and the dog " * (1 + 7 * i))
    table("images", 10, png=lambda i: png(), caption=lambda i: f"the cat {i}")
    table("audio", 10, rate=lambda i: 8000, transcript=lambda i: f"the dog {i}", speaker=lambda i: "ab"[i % 2],
          pcm=lambda i: rng.integers(-9000, 9000, 640 * (5 + i), dtype=np.int16).tobytes())  # fmt: skip
    table("video", 10, n=lambda i: 3, height=lambda i: 16, width=lambda i: 16, caption=lambda i: "",
          frames=lambda i: rng.integers(0, 255, 3 * 16 * 16 * 3, dtype=np.uint8).tobytes())  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def shards(tools, corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    metrics = pack(CONFIG, out=out, corpus=corpus, **tools)
    (out / "metrics.json").write_text(json.dumps(metrics))
    return out


@pytest.fixture(scope="module")
def assembler(tools) -> Assembler:
    return Assembler(
        TextTokenizer.load(tools["text"]), VisionTokenizer.load(tools["vision"]), AudioTokenizer.load(tools["audio"]),
        sequence=128,
    )  # fmt: skip


def some_bits(frames: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 2, (1, frames, h, h, 5), generator=generator, dtype=torch.uint8) for h in (1, 2, 4)]


def test_an_image_document(assembler: Assembler) -> None:
    bits = some_bits(1)
    columns = assembler.image("the cat", bits, image_first=False).columns
    words = assembler.text.encode("the cat")
    text = columns["modality"] == TEXT
    assert columns["token"][text].tolist() == [BOS, *words, BOI, EOI, EOS]
    assert (columns["modality"] == IMAGE).sum() == 1 + 4 + 16
    assert columns["target_token"][text].tolist() == [*words, BOI, -1, EOS, -1]
    block = columns["modality"] == IMAGE
    assert columns["scale"][block].tolist() == [0] + [1] * 4 + [2] * 16
    flat = np.concatenate([grid[0, 0].reshape(-1, 5).numpy() for grid in bits])
    assert (columns["target_bits"][block] == flat).all()
    expected = np.concatenate([grid[0, 0].reshape(-1, 5).numpy() for grid in accumulate(bits)[0]])
    np.testing.assert_allclose(columns["vision_input"][block], expected, atol=2e-3)
    groups = columns["group"]
    assert (np.diff(groups) >= 0).all()
    assert len(np.unique(groups[block])) == 3


def test_rotary_positions_are_centred_and_text_continues_after_the_block(assembler: Assembler) -> None:
    columns = assembler.video("", some_bits(3)).columns
    block = columns["modality"] == VIDEO
    position = columns["position"]
    assert position[0].tolist() == [0, 0, 0]
    assert position[1].tolist() == [1, 1, 1]  # BOV
    first = position[block][:21]
    assert first[0].tolist() == [2, 3.5, 3.5]  # the centre of a 4x4 frame
    assert first[1].tolist() == [2, 2.5, 2.5]
    assert first[5].tolist() == [2, 2, 2]
    assert first[-1].tolist() == [2, 5, 5]
    assert position[block][21:42, 0].tolist() == [3] * 21
    assert position[-2].tolist() == [6, 6, 6]  # 2 + max(3 frames, side 4)
    assert columns["token"][[0, 1, -2, -1]].tolist() == [BOS, BOV, EOV, EOS]
    _, latent = accumulate(some_bits(3))
    later = columns["vision_input"][block][21]
    np.testing.assert_allclose(later, latent[0, 0].mean((0, 1)).numpy(), atol=2e-3)
    assert columns["frame"][block].tolist() == [0] * 21 + [1] * 21 + [2] * 21


def test_an_image_to_understand_is_laid_out_in_blocks_of_neighbours(assembler: Assembler) -> None:
    """Every patch of 4 x 4 pixels holds its own number, so that the order of the rows can be read."""
    number = torch.arange(16).view(1, 4, 4)
    pixels = number.repeat_interleave(4, 1).repeat_interleave(4, 2).expand(1, 3, 16, 16).to(torch.uint8)
    latent = number.view(1, 1, 4, 4, 1).expand(1, 1, 4, 4, 5).float()
    document = assembler.image_seen("the cat", pixels, latent)
    columns = document.columns
    wanted = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert columns["patch_pixels"].tolist() == [[n] * 48 for n in wanted]
    assert columns["patch_latent"][:, 0].tolist() == wanted
    assert columns["modality"].tolist() == [TEXT] * 2 + [IMAGE] * 4 + [TEXT] * (document.length - 6)
    assert columns["patch"][2:6].tolist() == [0, 4, 8, 12] and document.patches == 16
    assert columns["position"][2:6].tolist() == [[2, 2.5, 2.5], [2, 2.5, 4.5], [2, 4.5, 2.5], [2, 4.5, 4.5]]
    assert len(set(columns["group"][2:6])) == 1 and (columns["target_bits"] == -1).all()
    assert columns["token"][[0, 1, 6, -1]].tolist() == [BOS, BOI, EOI, EOS]
    assert columns["target_token"][6] == assembler.text.encode("the cat")[0]


def test_a_clip_to_understand_is_filled_up_to_four_frames(assembler: Assembler) -> None:
    pixels = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    columns = assembler.video_seen("", pixels, torch.zeros(1, 3, 4, 4, 5)).columns
    assert columns["patch_pixels"][::16, 0].tolist() == [0, 1, 2, 2]
    assert columns["patch"][columns["modality"] == VIDEO].tolist() == [0, 4, 8, 12]


def test_a_clip_whose_patches_do_not_fit_is_refused(tools: dict[str, Path]) -> None:
    small = VisionTokenizer(VISION.model_copy(update={"frames": 1}))
    parts = TextTokenizer.load(tools["text"]), small, AudioTokenizer.load(tools["audio"])
    tight = Assembler(*parts, sequence=30)
    with pytest.raises(DataError, match=r"pack\.sequence: 30 positions, but the 64 patches"):
        tight.video_seen("", torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 1, 4, 4, 5))


def test_sequences_hold_no_more_patches_than_positions_and_point_to_their_own(assembler: Assembler) -> None:
    document = assembler.image_seen("the cat", torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.ones(1, 1, 4, 4, 5))
    packer = Packer(capacity=64, window=4)
    pool = Pool("image")
    closed = [each for _ in range(20) for each in packer.add(document, pool)] + list(packer.rest())
    assert sum(len(each.documents) for each in closed) == 20
    assert max(sum(each.patches for each in sequence.documents) for sequence in closed) == 64
    columns = lay_out(closed[0].documents, 64, 5, 3)
    used = columns["patch"][columns["patch"] >= 0]
    assert used.tolist() == list(range(0, 64, 4)) and columns["patch_latent"].all()


def test_a_speech_document_predicts_the_next_frame_and_its_end(assembler: Assembler) -> None:
    codes = torch.arange(12).reshape(4, 3) % 8
    columns = assembler.spoken("the dog", codes).columns
    block = np.flatnonzero(columns["modality"] == AUDIO)
    assert columns["codes"][block].tolist() == codes.tolist()
    assert columns["token"][block[0] - 1] == BOA
    assert columns["target_codes"][block[0] - 1].tolist() == codes[0].tolist()
    assert columns["target_codes"][block].tolist() == [*codes[1:].tolist(), [8, 8, 8]]
    assert columns["token"][block[-1] + 1 :].tolist() == [EOA, EOS]
    backward = assembler.heard("the dog", codes).columns
    assert backward["token"][:2].tolist() == [BOS, BOA]
    assert backward["token"][-1] == EOS
    assert backward["target_codes"][1].tolist() == codes[0].tolist()


def test_a_voice_stands_before_the_sound_told_or_not(assembler: Assembler) -> None:
    codes, words = torch.zeros(4, 3, dtype=torch.int64), assembler.text.encode("the dog")
    vector = torch.linspace(-1, 1, VOICE_SIZE)
    told, untold = (assembler.spoken("the dog", codes, Spoken(True, voice)) for voice in (vector, None))
    at = len(words) + 1
    for document in (told, untold):
        columns = document.columns
        assert columns["token"][: at + 2].tolist() == [BOS, *words, VOICE, BOA]
        assert columns["target_token"][: at + 2].tolist() == [*words, VOICE, BOA, -1]
        assert (columns["modality"] == AUDIO).sum() == 4 and columns["target_codes"][at + 1].tolist() == [0, 0, 0]
    assert told.voices == 1 and untold.voices == 0
    assert told.columns["voice"].tolist() == [-1] * at + [0] + [-1] * (told.length - at - 1)
    assert (untold.columns["voice"] == -1).all()
    np.testing.assert_allclose(told.columns["voice_vector"][0], vector.numpy(), atol=1e-3)
    plain = assembler.spoken("the dog", codes)
    assert plain.length == told.length - 1 and VOICE not in plain.columns["token"]


def test_a_full_sequence_of_the_shortest_spoken_documents_holds_all_their_voices(assembler: Assembler) -> None:
    one = torch.zeros(1, 3, dtype=torch.int64)
    documents = [assembler.spoken("", one, Spoken(True, torch.full((VOICE_SIZE,), float(n)))) for n in range(10)]
    assert {document.length for document in documents} == {6}
    between = assembler.builder("text").tokens([20, 21, 22]).document()
    columns = lay_out([documents[0], between, *documents[1:]], 63, 5, 3)
    assert columns["voice"][columns["token"] == VOICE].tolist() == list(range(10))
    assert columns["voice_vector"][:, 0].tolist() == list(range(10))


def test_packed_speech_has_its_speakers_voices_and_none_where_they_are_off(tools, corpus, shards, tmp_path) -> None:
    def spoken(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, dict]:
        """Rows of the table at every VOICE, the vectors they point to, and how many BOA follow a transcript."""
        parts = [part for _, _, part in chunks(folder, split, 100)]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
        asked = columns["token"] == VOICE
        rows = columns["voice"][asked]
        sequence = np.nonzero(asked)[0][rows >= 0]
        return rows, columns["voice_vector"][sequence, rows[rows >= 0]], columns

    rows, vectors, columns = spoken(shards, "train")
    assert (rows < 0).any() and len(vectors) >= 5
    np.testing.assert_allclose(np.square(vectors.astype(np.float32)).mean(1), 1, atol=0.01)
    assert read_meta(shards)["voice_size"] == VOICE_SIZE
    rows, vectors, _ = spoken(shards, "val")
    assert sorted(rows.tolist()) == [-1, 0]  # all are told; a half of the shorter one is too short to tell a voice
    pack(CONFIG.model_copy(update={"voices": False}), out=tmp_path, corpus=corpus, **tools)
    rows, vectors, columns = spoken(tmp_path, "train")
    assert not len(rows) and (columns["voice"] == -1).all() and read_meta(tmp_path)["voice_size"] == 0


def test_a_corpus_without_speakers_is_refused(tools, corpus, tmp_path: Path) -> None:
    for name in ("text", "images", "audio", "video"):
        table = pd.read_parquet(corpus / f"{name}.parquet")
        table.drop(columns="speaker", errors="ignore").to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"audio\.parquet: no column speaker; run the ingest stage again"):
        pack(CONFIG, out=tmp_path / "out", corpus=tmp_path, **tools)


def test_long_parts_are_cut_to_the_sequence(assembler: Assembler) -> None:
    ids = assembler.text.encode("the cat and the dog " * 100)
    pieces = assembler.texts("the cat and the dog " * 100)
    assert all(piece.length <= 128 and piece.columns["token"][0] == BOS for piece in pieces)
    rejoined = [t for piece in pieces for t in piece.columns["token"].tolist() if t not in (BOS, EOS)]
    assert rejoined == ids
    assert [EOS in piece.columns["token"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    cut = assembler.spoken("the dog", torch.zeros(500, 3, dtype=torch.int64))
    assert cut.length == 128
    assert (cut.columns["target_codes"] != 8).all()  # a cut clip does not end here
    caption = assembler.image("the cat " * 300, some_bits(1), image_first=True)
    assert caption.length <= 128
    assert EOI in caption.columns["token"]


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_text_of_about_one_sequence_loses_nothing(assembler: Assembler, extra: int) -> None:
    ids = assembler.text.encode("7" * (127 + extra))
    assert len(ids) == 127 + extra
    pieces = assembler.texts("7" * (127 + extra))
    assert sum(int((piece.columns["token"] > 15).sum()) for piece in pieces) == len(ids)
    assert all(piece.length <= 128 for piece in pieces)


def plain(length: int, kind: str = "text", mark: int = 0) -> Document:
    """A document of `length` positions whose tokens are all `mark`."""
    columns = empty_columns((length,), bits=2, levels=1)
    columns["modality"][:] = TEXT
    columns["document"][:] = 0
    columns["group"][:] = np.arange(length)
    columns["token"][:] = mark
    return Document(kind, columns)


def plain_cut(document: Document, length: int) -> tuple[Document, Document]:
    return plain(length, mark=1), plain(document.length - length + 1, mark=1)


def packed(documents: list[Document], capacity: int, window: int, cut=None) -> list[tuple[Pool, list[Document]]]:
    packer = Packer(capacity, window, cut)
    found = [closed for document in documents for closed in packer.add(document, document.pool)]
    return [*found, *packer.rest()]


LENGTHS = st.lists(st.tuples(st.integers(1, 99), st.sampled_from(["text", "image", "video"])), max_size=80)


@given(LENGTHS, st.integers(1, 12))
def test_every_document_is_packed_once_with_its_kind(lengths, window: int) -> None:
    documents = [plain(length, kind) for length, kind in lengths]
    sequences = packed(documents, 99, window)
    held = [id(document) for _, members in sequences for document in members]
    assert sorted(held) == sorted(map(id, documents))
    for dataset, members in sequences:
        assert 0 < sum(document.length for document in members) <= 99
        assert {document.pool for document in members} == {dataset}


@given(LENGTHS, st.integers(1, 12))
def test_text_fills_what_media_leave_and_loses_nothing(lengths, window: int) -> None:
    documents = [plain(length, kind) for length, kind in lengths]
    sequences = packed(documents, 99, window, plain_cut)
    held = [document for _, members in sequences for document in members]
    media = [document for document in documents if document.kind != "text"]
    assert sorted(id(document) for document in held if document.kind != "text") == sorted(map(id, media))
    positions = [sum(each.length for each in found if each.kind == "text") for found in (documents, held)]
    cuts = sum(int(each.columns["token"][0]) for each in held if each.kind == "text")
    assert positions[0] <= positions[1] <= positions[0] + cuts  # a rest begins with a token of its own
    for dataset, members in sequences:
        assert 0 < sum(document.length for document in members) <= 99
        assert members[0].pool == dataset
        assert {document.kind for document in members} <= {dataset.kind, "text"}


def test_the_fullest_sequence_is_filled_and_few_are_open() -> None:
    documents = [plain(30), plain(45), plain(20), plain(5), plain(20)]
    assert [[document.length for document in members] for _, members in packed(documents, 50, 8)] == [
        [30, 20], [45, 5], [20],
    ]  # fmt: skip
    packer = Packer(100, 4)
    waiting = 0
    for length in [60] * 50:
        waiting += 1 - len(list(packer.add(plain(length), Pool("text"))))
        assert waiting <= 4
    lengths = np.random.default_rng(0).integers(10, 120, 2000)
    sequences = packed([plain(int(length)) for length in lengths], 512, 128)
    assert 1 - lengths.sum() / (512 * len(sequences)) < 0.02


def test_media_with_gaps_are_filled_with_cut_text() -> None:
    documents = [document for _ in range(400) for document in (plain(340, "video"), plain(400))]
    sequences = packed(documents, 512, 16, plain_cut)
    room = 512 * len(sequences)
    assert 1 - sum(document.length for _, members in sequences for document in members) / room < 0.03


def test_a_cut_text_predicts_nothing_across_the_cut(assembler: Assembler) -> None:
    text = assembler.texts("one two three four")[0]
    ids = text.columns["token"].tolist()
    head, rest = (part.columns for part in assembler.cut(text, 5))
    assert [*head["token"].tolist(), *rest["token"].tolist()[1:]] == ids
    assert rest["token"][0] == BOS and rest["position"][0, 0] == 0 and rest["group"][0] == 0
    assert head["target_token"].tolist() == [*ids[1:5], -1]
    assert rest["target_token"].tolist() == [*rest["token"].tolist()[1:], -1]


def test_walls_groups_and_padding_of_a_sequence() -> None:
    columns = lay_out([plain(3, mark=7), plain(2, mark=8)], 8, bits=2, levels=1)
    assert columns["document"].tolist() == [0, 0, 0, 1, 1, -1, -1, -1]
    assert columns["group"].tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert columns["token"].tolist() == [7, 7, 7, 8, 8, 0, 0, 0]
    assert (columns["target_token"] == -1).all()


def test_kinds_come_by_their_shares_and_end_with_their_streams_or_shares() -> None:
    def stream(kind: str, count: int):
        return (plain(10, kind) for _ in range(count))

    given_ = list(interleave({"text": stream("text", 1000), "image": stream("image", 9)}, {"text": 0.75, "image": 0.25},
                             400, where="here"))  # fmt: skip
    kinds = [document.kind for document in given_]
    assert kinds.count("text") == 30 and kinds.count("image") == 9
    assert kinds[:24].count("image") == 6
    with pytest.raises(DataError, match="here: no documents of modality image"):
        list(interleave({"image": iter(())}, {"image": 1.0}, None, where="here"))


def tally(sequences: int, **kinds: int) -> Tally:
    return Tally(pools=Counter({Pool(kind): held for kind, held in kinds.items()}), shards=[sequences])


def test_weights_give_each_kind_its_share_of_the_positions() -> None:
    text, video, audio = Pool("text"), Pool("video"), Pool("audio")
    tallies = {text: tally(10, text=1000), video: tally(5, video=300, text=150), audio: tally(2, audio=160)}
    shares = {"text": 0.5, "video": 0.3, "audio": 0.2}
    weights = blend_weights(shares, tallies)
    assert sum(weights.values()) == pytest.approx(1)
    read = Counter()
    for name, held in tallies.items():
        for pool, positions in held.pools.items():
            read[pool.kind] += weights[name] * positions / sum(held.shards)
    total = sum(read.values())
    assert {kind: positions / total for kind, positions in read.items()} == pytest.approx(shares)
    with pytest.raises(DataError, match=r"pack.shares.text: 0.05, but the text that fills.*raise it"):
        blend_weights({"text": 0.05, "video": 0.95}, {pool: tallies[pool] for pool in (text, video)})


@pytest.mark.parametrize(("heavy", "fills"), [(3.0, 150), (3.0, 0), (0.001, 300)])
def test_a_source_is_read_by_its_weight_within_its_kind(heavy: float, fills: int) -> None:
    """Of 2,000 positions of text and 400 of pictures a half is of a source of another weight."""
    light, heavier, images = Pool("text"), Pool("text", heavy), Pool("image")
    more = Pool("image", heavy)
    tallies = {
        light: Tally(pools=Counter({light: 1000 - fills}), shards=[10]),
        heavier: Tally(pools=Counter({heavier: 1000 - fills}), shards=[10]),
        images: Tally(pools=Counter({images: 200, light: fills, heavier: fills}), shards=[5]),
        more: Tally(pools=Counter({more: 200}), shards=[5]),
    }
    weights = blend_weights({"text": 0.75, "image": 0.25}, tallies)
    read: Counter[Pool] = Counter()
    for name, held in tallies.items():
        read.update({pool: weights[name] * positions / sum(held.shards) for pool, positions in held.pools.items()})
    total = sum(read.values())
    assert (read[light] + read[heavier]) / total == pytest.approx(0.75)
    assert read[more] / read[images] == pytest.approx(heavy)
    if heavy > 1:
        assert read[heavier] / read[light] == pytest.approx(heavy)
    else:  # its fillers alone are more than its weight: no sequence of its own is read
        assert weights[heavier] == 0


def test_text_that_only_fills_leaves_no_dataset_without_weight() -> None:
    text, filler, image = Pool("text"), Pool("text", 9.0), Pool("image")
    tallies = {
        text: Tally(pools=Counter({text: 10}), shards=[1]),
        image: Tally(pools=Counter({image: 300, filler: 90, text: 60}), shards=[3]),
    }
    weights = blend_weights({"text": 0.5, "image": 0.5}, tallies)
    assert weights[text] > 0 and sum(weights.values()) == pytest.approx(1)


def test_weights_of_sources_reach_the_batches(tools, corpus, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    heavy = {"text": 4.0, "images": 3.0, "audio": 1.0, "video": 5.0}
    for name, weight in heavy.items():
        table = pd.read_parquet(corpus / f"{name}.parquet")
        table["weight"] = [weight if number % 2 else 1.0 for number in range(len(table))]
        table.to_parquet(folder / f"{name}.parquet")
    metrics = pack(CONFIG, out=tmp_path / "shards", corpus=folder, **tools)
    assert set(metrics["train"]["datasets"]) == {"text", "text-x4", "image", "image-x3", "audio", "video", "video-x5"}
    assert set(metrics["val"]["datasets"]) == {"text", "image", "audio", "video"}
    # four of eight training clips are heavy, and each is one sequence's medium
    with closing(ShardLoader(tmp_path / "shards", "train", batch=400, seed=0)) as loader:
        names = Counter(name for name, _ in loader.places(0))
    video = metrics["train"]["datasets"]
    ratio = names["video-x5"] / names["video"]
    clips = video["video"]["documents"]["video"] / video["video"]["sequences"]
    heavy_clips = video["video-x5"]["documents"]["video"] / video["video-x5"]["sequences"]
    assert ratio * heavy_clips / clips == pytest.approx(5, rel=0.2)


def test_shards_hold_the_contracts_columns(shards: Path) -> None:
    meta = read_meta(shards)
    assert (meta["sequence"], meta["bits"], meta["scales"], meta["frames"]) == (128, 5, [1, 2, 4], 3)
    assert (meta["audio_levels"], meta["audio_codebook"]) == (3, 8)
    for split in ("train", "val"):
        parts = [part for _, _, part in chunks(shards, split, 16)]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
        assert {name: values.dtype.type for name, values in columns.items()} == {
            n: kind for n, (_, kind) in COLUMNS.items()
        }
        assert len(columns["token"]) == meta["splits"][split]["sequences"]
        padding = columns["modality"] == 0
        assert padding.mean() < 0.2
        assert (columns["document"][padding] == -1).all()
        assert (columns["group"][padding] == -1).all()
        for row in range(len(padding)):
            filled = ~padding[row]
            assert (np.diff(columns["group"][row][filled]) >= 0).all()
            assert (np.diff(columns["document"][row][filled]) >= 0).all()
            starts = columns["token"][row] == BOS
            assert starts.sum() == columns["document"][row].max() + 1
            assert (columns["position"][row][starts] == 0).all()
        looking = columns["patch"] >= 0
        assert looking.any() and np.isin(columns["modality"][looking], (IMAGE, VIDEO)).all()
        vision = np.isin(columns["modality"], (IMAGE, VIDEO)) & ~looking
        assert (columns["target_bits"][vision] >= 0).all()
        assert (columns["target_bits"][~vision] == -1).all()
        assert (columns["target_token"][columns["modality"] != TEXT] == -1).all()


def test_memory_does_not_grow_with_the_corpus(assembler: Assembler, tmp_path: Path) -> None:
    config = PackConfig(sequence=128, window=16, shard_sequences=50)

    def peak(count: int) -> int:
        lengths = random.Random(0)
        documents = (plain_of(assembler, lengths.randrange(8, 100)) for _ in range(count))
        tracemalloc.start()
        try:
            _write_split(config, tmp_path / str(count) / "train", documents, assembler)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(50)  # what is imported and cached on the way
    once, four_times = peak(400), peak(1600)
    assert four_times < 1.1 * once


def plain_of(assembler: Assembler, length: int) -> Document:
    return assembler.texts("7" * (length - 2))[0]


def test_training_reads_the_shares_though_media_are_stored_once(shards: Path) -> None:
    metrics = json.loads((shards / "metrics.json").read_text())
    train = metrics["train"]
    assert train["documents"]["image"] == 16 and metrics["val"]["documents"]["image"] == 4  # two directions of each
    assert sum(train["positions"].values()) < CONFIG.positions * 1.02
    assert set(train["datasets"]) == set(metrics["val"]["datasets"]) == {"text", "image", "video", "audio"}
    with closing(ShardLoader(shards, "train", batch=400, seed=0)) as loader:
        held = np.bincount(next(loader).modality.flatten().numpy(), minlength=5)
    assert held[VIDEO] / held[1:].sum() == pytest.approx(0.2 * 63 / 67, abs=0.02)
    assert held[IMAGE] / held[1:].sum() == pytest.approx(0.15 * (21 + 4) / (28 + 11), abs=0.02)  # drawn and read
    assert max(open_split(shards, "train")["text"].counts) <= CONFIG.shard_sequences


def test_a_repeated_clip_is_cut_anew_and_the_seed_decides_how(assembler: Assembler, corpus: Path) -> None:
    def first(seed: int) -> list[np.ndarray]:
        rounds = repeated_speech(corpus, "val", assembler, None, CONFIG, random.Random(seed))  # two clips
        return [next(rounds).columns["codes"] for _ in range(8)]

    once, again, other = first(0), first(0), first(1)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(once, other, strict=True))
    assert len({codes.tobytes() for codes in once}) > 2


def test_a_clip_at_another_speed_is_another_speakers_and_lasts_as_long_as_it_sounds(
    assembler: Assembler, corpus: Path
) -> None:
    class Heard:
        """Stands for the voices: remembers what they were asked for."""

        def __init__(self) -> None:
            self.asked: list[tuple[str, str, int]] = []

        def given(self, clip: str, speaker: str, pcm: torch.Tensor) -> Spoken:
            self.asked.append((clip, speaker, len(pcm)))
            return Spoken(marked=True)

    heard = Heard()
    config = CONFIG.model_copy(update={"audio_speeds": (0.8, 1.0)})
    rounds = repeated_speech(corpus, "val", assembler, heard, config, random.Random(0))
    for _ in range(16):
        next(rounds)
    stored = {str(row.id): row for row in rows(corpus, "audio", ["id", "pcm", "speaker"], "val")}
    speeds = set()
    for clip, speaker, length in heard.asked:
        name, _, speed = clip.rpartition(" x ")
        assert speaker == (f"{stored[name].speaker} x {speed}" if stored[name].speaker else "")
        assert length == -(-len(stored[name].pcm) // 2 // float(speed))
        speeds.add(speed)
    assert speeds == {"0.8", "1"}


def test_speech_is_encoded_in_one_thread_and_in_the_order_it_came(assembler: Assembler, corpus: Path) -> None:
    seen = []
    encode = assembler.audio.encode_batch
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                assembler.audio, "encode_batch", lambda clips: seen.append(torch.get_num_threads()) or encode(clips)
            )
            found = list(speech(corpus, "train", assembler, None))
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    stored = list(rows(corpus, "audio", ["id", "pcm", "transcript"], "train"))
    for row, document in zip(stored, found[::2], strict=True):
        ids = document.columns["token"][document.columns["modality"] == TEXT].tolist()
        assert assembler.text.decode(ids) == row.transcript
        heard = document.columns["modality"] == AUDIO
        assert heard.sum() == len(row.pcm) // 2 // 640


def test_rows_are_shuffled_over_row_groups_and_none_is_lost(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": range(200), "split": ["train", "val"] * 100})
    table.to_parquet(tmp_path / "text.parquet", row_group_size=10)
    stored = [row.id for row in rows(tmp_path, "text", ["id"], "train")]
    assert stored == list(range(0, 200, 2))
    shuffled = [row.id for row in rows(tmp_path, "text", ["id"], "train", random.Random(0))]
    assert sorted(shuffled) == stored
    assert np.corrcoef(range(100), shuffled)[0, 1] < 0.5
    assert shuffled == [row.id for row in rows(tmp_path, "text", ["id"], "train", random.Random(0))]


def test_packing_is_deterministic(tools, corpus, shards, tmp_path) -> None:
    pack(CONFIG, out=tmp_path, corpus=corpus, **tools)
    files = sorted(shards.rglob("*.array_record"))
    assert len(files) > 5
    for file in files:
        assert file.read_bytes() == (tmp_path / file.relative_to(shards)).read_bytes()


def test_bad_input_is_named(tools, corpus, tmp_path) -> None:
    with pytest.raises(DataError, match=r"pack.sequence: 64"):
        pack(PackConfig(sequence=64), out=tmp_path, corpus=corpus, **tools)
    with pytest.raises(ConfigError, match="adding up to 1"):
        PackConfig.parse({"shares": {"text": 0.5}})
    with pytest.raises(DataError, match=r"text.parquet: missing"):
        pack(CONFIG, out=tmp_path, corpus=tmp_path, **tools)
    with pytest.raises(ArtifactError, match=r"meta.json: missing"):
        open_split(tmp_path / "none", "train")
