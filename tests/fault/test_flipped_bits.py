"""One flipped bit in anything that is kept: refused by name before it is used, or made anew where that is safe."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from accordion.config.data import TextTokenizerConfig
from accordion.config.extract import RecoverConfig
from accordion.data.tokenizers.text_training import fit
from accordion.errors import ArtifactError, DataError, ServiceError
from accordion.extract.member import extract_member
from accordion.extract.recover import recover
from accordion.model import Model, SubmodelSpec, save_model
from accordion.retrieval.query import query
from accordion.serve.router import Pins, Router
from accordion.store import Artifact, Store
from accordion.store.journal import Journal
from tests.encoders import TEXTS, artifact_of, make_encoder
from tests.unit.model.synthetic import small_config
from tests.unit.train.synthetic_shards import tiny_config, write_shards


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.chmod(0o644)
    path.write_bytes(content)


def tokenizer(folder: Path) -> None:
    fit(TextTokenizerConfig(vocabulary=400), TEXTS * 4).save(folder)


def checkpoint(folder: Path) -> None:
    save_model(Model(small_config(), seed=1), folder)


def family(folder: Path) -> None:
    full = folder / "full"
    full.mkdir()
    checkpoint(full)
    extract_member(full, SubmodelSpec.nested(small_config(), layers=3), folder / "members" / "small")
    shutil.rmtree(full)


@pytest.mark.parametrize("fill", [write_shards, tokenizer, checkpoint, family], ids=lambda fill: fill.__name__)
def test_every_file_of_an_artifact_is_verified(tmp_path: Path, fill: Callable[[Path], None]) -> None:
    store = Store(tmp_path / "store")
    with store.staging("toy") as out:
        fill(out)
        artifact = store.publish(out, kind="toy", stage="toy", config={}, parents={}, created={})
    refuse_every_flip(store, artifact)


def test_every_file_of_an_encoder_is_verified(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    refuse_every_flip(store, artifact_of(make_encoder(store)))


def refuse_every_flip(store: Store, artifact: Artifact) -> None:
    folder, draw = store.open(artifact), random.Random(0)
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        bit = draw.randrange(8 * path.stat().st_size)
        flip(path, bit)
        with pytest.raises(ArtifactError, match=path.name):
            store.open(artifact)
        flip(path, bit)
    store.open(artifact)
    flip(files[0], 0)
    aside = store.quarantine(artifact)
    assert (aside / files[0].relative_to(folder)).is_file()
    with pytest.raises(ArtifactError, match="run its stage again"):
        store.open(artifact)


def test_a_copied_member_is_verified_before_it_is_trained(tmp_path: Path) -> None:
    policy, member, shards = (tmp_path / name for name in ("policy", "member", "shards"))
    policy.mkdir()
    checkpoint(policy)
    extract_member(policy, SubmodelSpec.nested(small_config(), layers=3), member)
    write_shards(shards)
    flip(member / "model.safetensors", 8 * (member / "model.safetensors").stat().st_size - 5)
    with pytest.raises(ArtifactError, match=r"model\.safetensors was altered"):
        recover(RecoverConfig(steps=1), run=tiny_config(), member=member, shards=shards, out=tmp_path / "x", name="x")


def test_a_kept_index_is_built_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder, documents = make_encoder(Store(tmp_path / "store")), tmp_path / "corpus.jsonl"
    rows = [{"_id": f"d{number}", "title": "", "text": text} for number, text in enumerate(TEXTS)]
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def found() -> list[tuple[str, float]]:
        hits = query(encoder, documents, "a chart", k=3, cache=tmp_path / "cache", threads=1)
        return [(hit.document, hit.score) for hit in hits]

    first = found()
    for name in ("vectors.faiss", "ids.txt", "manifest.json"):
        (kept,) = (tmp_path / "cache").iterdir()
        flip(kept / name, 8 * (kept / name).stat().st_size - 12)
        assert found() == first and "built again" in capsys.readouterr().err
    assert found() == first and "built again" not in capsys.readouterr().err


def test_no_bit_of_a_journal_can_change_unseen(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    written: list[dict[str, object]] = [
        {"event": "begin", "version": 3, "share": 0.5},
        {"event": "promoted", "version": 3, "previous": None},
    ]
    for record in written:
        journal.append(record)
    whole = journal.path.read_bytes()
    for bit in range(8 * len(whole)):
        flip(journal.path, bit)
        with pytest.raises(DataError, match=r"is no whole record .*restore the file from a backup"):
            journal.records()
        journal.path.write_bytes(whole)
    flip(journal.path, 100)
    with pytest.raises(DataError):
        journal.append({"event": "begin", "version": 4})
    journal.path.write_bytes(whole[: len(whole) - 20])  # cut short by a kill
    assert journal.records() == written[:1]
    journal.append(written[1])
    assert journal.records() == written and journal.path.read_bytes() == whole


def test_no_bit_of_the_pins_can_change_unseen(tmp_path: Path) -> None:
    path = tmp_path / "pins.json"
    Router(path).write(Pins(stable=3, previous=2))
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flip(path, bit)
        with pytest.raises(ServiceError, match="remove it and roll a version out again"):
            Router(path).pins()
        path.write_bytes(whole)
    assert Router(path).pins() == Pins(stable=3, previous=2)
