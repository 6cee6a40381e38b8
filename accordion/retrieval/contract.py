"""The encoder's contract: how a text becomes model input. Light (no torch), so that a server can follow it too."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from accordion.errors import ArtifactError, DataError

CONTRACT = "contract.json"
Side = Literal["query", "document"]
_CHARACTERS_PER_TOKEN = 64  # no text needs more characters than this to fill a token; longer ones are cut first


class Tokenizer(Protocol):
    """What the contract needs of a text tokenizer."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True, kw_only=True)
class EncoderContract:
    """What was true when the encoder was trained and evaluated, and must stay true when it serves.

    Attributes:
        pooling: how token states (batch, seq, hidden) become one vector: their mean, or the last one.
        bidirectional: whether a token attends to those after it.
        query_prefix, document_prefix: put before the text.
        bos: the token every input starts with.
        max_tokens: longest input, beginning-of-sequence token included; what is over is cut off.
        dimension: width of the embedding, which has length 1.
        pad: the token that fills a batch; masked out.
    """

    pooling: Literal["mean", "last"]
    bidirectional: bool
    query_prefix: str
    document_prefix: str
    bos: int
    max_tokens: int
    dimension: int
    pad: int = 0

    def save(self, folder: Path) -> None:
        (folder / CONTRACT).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "EncoderContract":
        """Read `folder/contract.json`.

        Raises:
            ArtifactError: it is missing, no JSON, or has other fields than this version writes.
        """
        path = folder / CONTRACT
        if not path.is_file():
            raise ArtifactError(f"{folder}: no {CONTRACT}, so it is no encoder; run stage distil again")
        try:
            values = json.loads(path.read_text())
        except ValueError as error:
            raise ArtifactError(f"{path}: not JSON ({error}); run stage distil again") from None
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            raise ArtifactError(f"{path}: wants exactly the fields {', '.join(sorted(known))}; run stage distil again")
        return cls(**values)

    def prepare(
        self, tokenizer: Tokenizer, texts: Sequence[str], side: Side
    ) -> list[list[int]]:  # one list of token ids a text, BOS first, at most max_tokens long
        """Token ids of `texts`; an empty text is the lone BOS token.

        Raises:
            DataError: an item is not a string; the text names its position.
        """
        prefix = self.query_prefix if side == "query" else self.document_prefix
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"text {index}: got {type(text).__name__}; wants a string")
        limit = self.max_tokens * _CHARACTERS_PER_TOKEN
        rows = tokenizer.encode_batch([(prefix + text)[:limit] for text in texts])
        return [[self.bos, *row[: self.max_tokens - 1]] for row in rows]

    def pad_batch(self, rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Right-pad token ids to (ids (batch, seq), mask (batch, seq) that is True at real tokens)."""
        length = max(len(row) for row in rows)
        ids = np.full((len(rows), length), self.pad, dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=bool)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = True
        return ids, mask


def length_batches(rows: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Row indices in batches of similar length, each of at most about `tokens` padded tokens, longest first."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    batches: list[list[int]] = []
    while order:
        size = max(1, tokens // max(1, len(rows[order[0]])))
        batches.append(order[:size])
        order = order[size:]
    return batches
