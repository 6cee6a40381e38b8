"""A small real encoder artifact for serving tests: trained tokenizer, ONNX graph, contract, golden embeddings."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from accordion.config.data import TextTokenizerConfig
from accordion.data.tokenizers.text import BOS, TextTokenizer
from accordion.data.tokenizers.text_training import fit
from accordion.retrieval.contract import EncoderContract
from accordion.store import Artifact, Store

TEXTS = [
    "how do I insert a chart into a document", "the quick brown fox", "Wie füge ich eine Tabelle ein?",
    "print the current page", "числа и буквы", "a cell range 42", "漢字 and kana", "save as another format",
]  # fmt: skip
DIMENSION = 16


def make_encoder(store: Store, *, seed: int = 0, break_golden: bool = False, constant: float | None = None) -> Path:
    """Publish a bag-of-tokens encoder (mean of token vectors, normalised) and return its folder.

    Args:
        seed: of the token vectors: another seed is another model.
        break_golden: write golden embeddings of other vectors than the graph's.
        constant: fill every token vector with this value, for example NaN.
    """
    tokenizer = fit(TextTokenizerConfig(vocabulary=400), TEXTS * 4)
    table = np.random.default_rng(seed).normal(size=(tokenizer.vocabulary, DIMENSION)).astype(np.float32)
    if constant is not None:
        table[:] = constant
    contract = EncoderContract(
        pooling="mean", bidirectional=True, query_prefix="query: ", document_prefix="", bos=BOS, max_tokens=32,
        dimension=DIMENSION,
    )  # fmt: skip
    with store.staging("encoder") as folder:
        tokenizer.save(folder)
        contract.save(folder)
        onnx.save(_graph(table), folder / "encoder.onnx")
        golden = embed(tokenizer, contract, -table if break_golden else table, TEXTS, "document")
        np.savez(folder / "golden.npz", texts=np.array(TEXTS, dtype=np.str_), embeddings=golden)
        artifact = store.publish(folder, kind="encoder", stage="distil", config={"seed": seed}, parents={}, created={})
    return store.open(artifact)


def artifact_of(folder: Path) -> Artifact:
    """The artifact that a folder of `make_encoder` holds."""
    from accordion.store import Manifest

    return Artifact("encoder", Manifest.read(folder).digest)


def embed(
    tokenizer: TextTokenizer, contract: EncoderContract, table: np.ndarray, texts: list[str], side: str
) -> np.ndarray:
    """What the graph computes, in NumPy: (texts, dimension)."""
    rows = contract.prepare(tokenizer, texts, side)  # type: ignore[arg-type]
    means = np.stack([table[row].mean(axis=0) for row in rows])
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def _graph(table: np.ndarray) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["states"]),  # (batch, seq, dimension)
        helper.make_node("Cast", ["mask"], ["weights"], to=TensorProto.FLOAT),  # (batch, seq)
        helper.make_node("Unsqueeze", ["weights", "last"], ["column"]),  # (batch, seq, 1)
        helper.make_node("Mul", ["states", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["sums"], keepdims=0),  # (batch, dimension)
        helper.make_node("LpNormalization", ["sums"], ["embedding"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "bag",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["batch", "seq"]),
        ],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIMENSION])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model
