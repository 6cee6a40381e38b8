"""The exported encoder under ONNX Runtime: what `accordion query` and the server use; needs no torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NotImplemented

from accordion.data.tokenizers.text import TextTokenizer
from accordion.errors import ArtifactError
from accordion.observe import progress
from accordion.retrieval.contract import EncoderContract, Side, length_batches

ONNX = "encoder.onnx"
BATCH_TOKENS = 4096  # padded tokens of an inference batch


class OnnxEncoder:
    """Texts -> embeddings, by `encoder.onnx` and the contract beside it."""

    def __init__(self, folder: Path, *, threads: int = 2) -> None:
        """Open an encoder artifact.

        Raises:
            ArtifactError: it is incomplete or the graph cannot be read.
        """
        self.contract = EncoderContract.load(folder)
        self.tokenizer = TextTokenizer.load(folder)
        self.session = open_session(folder / ONNX, threads=threads)

    def encode(self, texts: Sequence[str], side: Side, label: str | None = None) -> NDArray[np.float32]:
        """Embeddings (texts, dimension) in the order given; `label` shows progress under that name."""
        rows = self.contract.prepare(self.tokenizer, texts, side)
        out = np.empty((len(rows), self.contract.dimension), dtype=np.float32)
        batches = length_batches(rows, BATCH_TOKENS)
        for batch in progress(batches, label, unit="batch") if label else batches:
            ids, mask = self.contract.pad_batch([rows[index] for index in batch])
            out[batch] = self.session.run(None, {"ids": ids, "mask": mask})[0]
        return out


def open_session(path: Path, *, threads: int) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU.

    Raises:
        ArtifactError: no such file, or not a graph ONNX Runtime can load.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; the encoder is incomplete, run stage distil again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, InvalidProtobuf, NotImplemented) as error:
        raise ArtifactError(f"{path}: ONNX Runtime cannot load it ({error}); run stage distil again") from None
