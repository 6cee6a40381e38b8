"""The encoder as one ONNX graph, pooling and normalisation inside, checked against torch; and golden embeddings."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accordion.data.tokenizers.text import TextTokenizer
from accordion.errors import ArtifactError
from accordion.retrieval.encoder import Encoder
from accordion.retrieval.onnx_encoder import ONNX, OnnxEncoder

GOLDEN = "golden.npz"
MINIMUM_COSINE = 0.9999
OPSET = 18


def write_golden(encoder: Encoder, tokenizer: TextTokenizer, texts: Sequence[str], folder: Path) -> None:
    """Write `golden.npz`: `texts` (n,) unicode and their document `embeddings` (n, dimension) by the torch model."""
    stored = np.array(texts, dtype=np.str_)
    assert stored.tolist() == list(texts), "NumPy strings drop trailing NUL characters: choose other golden texts"
    np.savez_compressed(folder / GOLDEN, texts=stored, embeddings=encoder.encode(tokenizer, texts, "document"))


def read_golden(folder: Path) -> tuple[list[str], np.ndarray]:
    """What `write_golden` wrote: texts, and embeddings (n, dimension) float32."""
    path = folder / GOLDEN
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; the encoder is incomplete, run stage distil again")
    with np.load(path, allow_pickle=False) as stored:
        return stored["texts"].tolist(), stored["embeddings"]


def export_onnx(encoder: Encoder, tokenizer: TextTokenizer, texts: Sequence[str], folder: Path) -> dict[str, Any]:
    """Write `encoder.onnx` and check it: inputs ids (int64) and mask (bool), both (batch, seq); output vectors.

    Experts are computed densely (every expert for every token, weighted by the router): the graph then has no
    data-dependent shapes.

    Args:
        texts: embedded by torch and by ONNX Runtime, in batches of mixed lengths and one by one.

    Returns:
        `{"cosine": lowest, "max_abs_diff": largest, "texts": n, "bytes": size of the graph}`.

    Raises:
        ArtifactError: an embedding of the graph has cosine below 0.9999 to torch's.
    """
    path = folder / ONNX
    rows = encoder.contract.prepare(tokenizer, ["a few words", "two words", "a"], "document")
    inputs = tuple(torch.from_numpy(array) for array in encoder.contract.pad_batch(rows))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=encoder.contract.max_tokens)}
    encoder.eval()
    encoder.model.exportable = True
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            # Traced in strict mode, which refuses to fix a dynamic dimension at the example's size.
            program = torch.export.export(encoder, inputs, dynamic_shapes=(axes, axes), strict=True)
            torch.onnx.export(
                program, dynamo=True, f=path, input_names=["ids", "mask"], output_names=["vectors"],
                opset_version=OPSET, external_data=False, verbose=False,
            )  # fmt: skip
    finally:
        encoder.model.exportable = False
    return {**compare(encoder, tokenizer, texts, folder), "bytes": path.stat().st_size}


def compare(encoder: Encoder, tokenizer: TextTokenizer, texts: Sequence[str], folder: Path) -> dict[str, Any]:
    """Lowest cosine and largest absolute difference between torch and the exported graph."""
    wanted = encoder.encode(tokenizer, texts, "document")  # (n, dimension)
    session = OnnxEncoder(folder)
    together = session.encode(texts, "document")
    alone = np.concatenate([session.encode([text], "document") for text in texts])
    cosine = min(float((wanted * found).sum(axis=1).min()) for found in (together, alone))
    difference = max(float(np.abs(wanted - found).max()) for found in (together, alone))
    if not cosine >= MINIMUM_COSINE:
        raise ArtifactError(f"{folder / ONNX}: cosine {cosine} to torch, wants {MINIMUM_COSINE}; the export is wrong")
    return {"cosine": cosine, "max_abs_diff": difference, "texts": len(texts)}
