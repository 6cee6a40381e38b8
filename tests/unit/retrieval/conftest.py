"""A tiny family, tokenizer and corpus of two domains, all real in kind: trained, saved and read like the large ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from accordion.config.data import TextTokenizerConfig
from accordion.config.pretrain import ModelConfig
from accordion.config.retrieval import DistilConfig
from accordion.data.tokenizers.text_training import fit
from accordion.model import Model, save_model

THINGS = (
    "apple", "bridge", "candle", "desert", "engine", "forest", "garden", "harbour", "island", "jacket", "kettle",
    "ladder", "mirror", "needle",
)  # fmt: skip
ACTIONS = ("open", "close", "paint", "repair", "sell")


def write_domain(folder: Path, *, splits: dict[str, range]) -> None:
    """Documents on every (thing, action), one query for each; split -> which queries are judged in it."""
    (folder / "qrels").mkdir(parents=True)
    topics = [(thing, action) for thing in THINGS for action in ACTIONS]
    documents = [
        {"_id": f"d{n}", "title": f"How to {action}", "text": f"To {action} the {thing}, first take the {thing} away."}
        for n, (thing, action) in enumerate(topics)
    ]
    queries = [{"_id": f"q{n}", "text": f"{action} {thing}"} for n, (thing, action) in enumerate(topics)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    for split, chosen in splits.items():
        rows = "".join(f"q{n}\td{n}\t1\n" for n in chosen)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_domain(root / "retrieval/source", splits={"train": range(0, 50), "test": range(50, 70)})
    write_domain(root / "retrieval/other", splits={"test": range(0, 30)})
    return root


@pytest.fixture(scope="session")
def text(tmp_path_factory, corpus) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = (corpus / "retrieval/source/corpus.jsonl").read_text().splitlines()
    fit(TextTokenizerConfig(vocabulary=400), [json.loads(line)["text"] for line in lines]).save(folder)
    return folder


@pytest.fixture(scope="session")
def family(tmp_path_factory, text) -> Path:
    config = ModelConfig(
        hidden=32, heads=2, experts=(4, 4), top_k=(2, 2), expert_hidden=16, shared_hidden=16, rope_base=1e4,
        text_vocabulary=400, bits=4, scales=(1, 2), frames=2, audio_levels=2, audio_codebook=8,
    )  # fmt: skip
    root = tmp_path_factory.mktemp("family")
    (root / "members/small").mkdir(parents=True)
    save_model(Model(config, seed=1), root / "members/small")
    return root


@pytest.fixture(scope="session")
def settings() -> DistilConfig:
    return DistilConfig(
        member="small", source_domain="source", dimension=16, max_tokens=24, steps=60, batch=12, learning_rate=3e-3
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory, family, corpus, text, settings) -> tuple[Path, dict]:
    """The encoder artifact of a short training, and its metrics."""
    from accordion.retrieval.distil import distil

    out = tmp_path_factory.mktemp("encoder")
    return out, distil(settings, out=out, family=family, corpus=corpus, text=text)


@pytest.fixture
def unit_vectors():
    def make(count: int, dimension: int, seed: int = 0):
        vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return make
