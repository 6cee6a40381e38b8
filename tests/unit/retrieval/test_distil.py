"""The distil stage end to end on a tiny domain, its batches, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from accordion.data.tokenizers.text import TextTokenizer
from accordion.errors import ArtifactError, ConfigError
from accordion.retrieval.beir import read_collection
from accordion.retrieval.distil import Texts, TrainingData, batches, distil, prepare, train
from accordion.retrieval.encoder import contract_for, load_encoder, new_encoder
from accordion.retrieval.export import read_golden
from accordion.retrieval.onnx_encoder import OnnxEncoder


def test_the_artifact_is_complete_and_consistent(trained):
    folder, metrics = trained
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "model.safetensors", "config.json", "contract.json", "tokenizer.json", "encoder.onnx", "golden.npz",
        "untrained/model.safetensors",
    }  # fmt: skip
    before, after = load_file(folder / "untrained/model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert not np.array_equal(before["projection.weight"], after["projection.weight"])
    assert json.dumps(metrics)
    assert metrics["loss"]["contrastive"] < 1.0  # ln 12 = 2.5 is chance
    assert metrics["export"]["cosine"] >= 0.9999


def test_torch_onnx_and_golden_agree_on_mixed_lengths(trained):
    folder, _ = trained
    texts, golden = read_golden(folder)
    encoder, tokenizer = load_encoder(folder)
    assert {"", "a\0b"} <= set(texts)
    again = encoder.encode(tokenizer, texts, "document")
    np.testing.assert_allclose(again, golden, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(golden, axis=1), 1, atol=1e-5)
    served = OnnxEncoder(folder)
    np.testing.assert_allclose(served.encode(texts[::-1], "document")[::-1], golden, atol=1e-4)
    one = encoder.encode(tokenizer, ["apple"], "query")
    np.testing.assert_allclose(served.encode(["apple"], "query"), one, atol=1e-4)


def test_padding_does_not_change_an_embedding(trained):
    encoder, tokenizer = load_encoder(trained[0])
    alone = encoder.encode(tokenizer, ["sell the kettle"], "query")[0]
    beside = encoder.encode(tokenizer, ["sell the kettle", "repair " * 30], "query")[0]
    np.testing.assert_allclose(alone, beside, atol=1e-5)


def test_same_seed_same_encoder(family, corpus, text, settings):
    collection, tokenizer = read_collection(corpus / "retrieval/source", "train"), TextTokenizer.load(text)
    contract = contract_for(pooling="mean", bidirectional=True, max_tokens=24, dimension=16)
    states = []
    for seed in (0, 0, 1):
        config = settings.model_copy(update={"seed": seed, "steps": 5})
        encoder = new_encoder(family / "members/small", contract, seed)
        data, _ = prepare(config, encoder, tokenizer, collection)
        train(config, encoder, data)
        states.append(encoder.projection.weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_no_batch_holds_a_false_negative():
    relevant = [frozenset({0, 1}), frozenset({1}), frozenset({2}), frozenset({0, 3}), frozenset({4}), frozenset({5})]
    none = Texts([], np.empty((0, 2), np.float32))
    pairs = [(query, document) for query, ids in enumerate(relevant) for document in sorted(ids)]
    source = batches(TrainingData(pairs, relevant, none, none), 4, seed=0)
    seen = set()
    for _ in range(30):
        batch = next(source)
        seen |= set(batch)
        assert len({document for _, document in batch}) == len(batch)
        for query, _ in batch:
            assert len(relevant[query] & {document for _, document in batch}) == 1
    assert seen == set(pairs)


def test_unknown_member_and_domain_are_named(tmp_path, family, corpus, text, settings):
    for change, words in (({"member": "huge"}, "small"), ({"source_domain": "moon"}, "moon")):
        with pytest.raises(ConfigError, match=words):
            distil(settings.model_copy(update=change), out=tmp_path, family=family, corpus=corpus, text=text)


def test_an_encoder_with_foreign_weights_is_refused(trained, tmp_path, family):
    with pytest.raises(ArtifactError, match=r"model\.embeddings\.start is missing.*do not belong together"):
        load_encoder(trained[0], family / "members/small/model.safetensors")
    with pytest.raises(ArtifactError, match="contract"):
        load_encoder(tmp_path)
