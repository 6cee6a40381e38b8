"""Triton model of the retrieval encoder: text in, embedding out. Self-contained: tokenizer and weights lie beside it.

What a request gets: TEXT (BYTES, shape [n], 1 to 256 texts) and optionally KIND (BYTES, shape [1], `query` or
`document`, default `query`; it selects the prefix of the encoder's contract) -> EMBEDDING (FP32, [n, dimension]).
A text over 64 KiB is read up to that size: only the first `max_tokens` tokens count anyway, so the answer is the
one of its beginning. An empty text, or bytes that are no UTF-8, is refused by its index; other requests go on.
"""

import hashlib
import json
import locale
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

MAX_TEXTS = 256
MAX_TEXT_BYTES = 64 * 1024


class TritonPythonModel:
    """One instance: an ONNX Runtime session and the tokenizer of one encoder version."""

    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        verify(folder)
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")  # the stub starts in the C locale, where files are read as ASCII
        sys.path.insert(0, str(folder / "library"))
        from accordion.data.tokenizers.text import TextTokenizer
        from accordion.retrieval.contract import EncoderContract

        self.contract = EncoderContract.load(folder)
        self.tokenizer = TextTokenizer.load(folder)
        options = onnxruntime.SessionOptions()
        parameters = json.loads(args["model_config"])["parameters"]
        options.intra_op_num_threads = int(parameters["threads"]["string_value"])
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "encoder.onnx"), options, providers=["CPUExecutionProvider"]
        )
        types = {"tensor(int64)": np.int64, "tensor(bool)": np.bool_, "tensor(float)": np.float32}
        self.mask_type = types[{given.name: given.type for given in self.session.get_inputs()}["mask"]]
        self.warm_up()

    def warm_up(self):
        """One inference before the version counts as READY; a model that gives no unit vector is refused."""
        row = self.embed(["warm-up"], "query")[0]
        if not np.isfinite(row).all() or abs(float(np.linalg.norm(row)) - 1.0) > 1e-3:
            raise ValueError(f"warm-up gave no finite unit vector (norm {np.linalg.norm(row)})")

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """The response to one request; what is wrong with its input is its error and nobody else's."""
        try:
            texts = read_texts(pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy())
            kind = read_kind(pb_utils.get_input_tensor_by_name(request, "KIND"))
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        rows = self.embed(texts, kind)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("EMBEDDING", rows)])

    def embed(self, texts, kind):
        """Texts -> (n, dimension) FP32, through the same tokens as in training (contract.json)."""
        ids, mask = self.contract.pad_batch(self.contract.prepare(self.tokenizer, texts, kind))  # (n, longest) each
        return self.session.run(None, {"ids": ids, "mask": mask.astype(self.mask_type)})[0]  # (n, dimension)


def read_texts(values):
    """(n,) array of bytes -> list of n non-empty strings, each from at most 64 KiB."""
    if not 1 <= len(values) <= MAX_TEXTS:
        raise ValueError(f"TEXT holds {len(values)} texts; send 1 to {MAX_TEXTS} in a request")
    texts = []
    for index, value in enumerate(values):
        try:
            text = cut(value).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"TEXT[{index}] is not UTF-8 (byte {error.start}); encode it as UTF-8") from None
        if not text.strip():
            raise ValueError(f"TEXT[{index}] is empty; send at least one visible character")
        texts.append(text)
    return texts


def cut(value):
    """At most 64 KiB of a UTF-8 text, ending between two characters."""
    if len(value) <= MAX_TEXT_BYTES:
        return value
    end = MAX_TEXT_BYTES
    while end > MAX_TEXT_BYTES - 4 and value[end] & 0xC0 == 0x80:
        end -= 1
    return value[:end]


def read_kind(tensor):
    """`query` (also when KIND is not sent) or `document`."""
    if tensor is None:
        return "query"
    values = tensor.as_numpy()
    kind = values[0].decode("utf-8", "replace") if len(values) == 1 else ""
    if kind not in ("query", "document"):
        raise ValueError(f"KIND is {kind!r} ({len(values)} values); send one of `query`, `document`")
    return kind


def verify(folder):
    """Hash the version's files against source.json, so that an altered file never serves."""
    for name, expected in json.loads((folder / "source.json").read_text())["files"].items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ValueError(f"{name} is missing or was altered since version {folder.name} was staged")
