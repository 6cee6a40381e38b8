"""The encoder: a sub-model's token states, pooled, projected and scaled to length 1."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from accordion.config.pretrain import ModelConfig
from accordion.data.tokenizers.text import BOS, PAD, TextTokenizer
from accordion.errors import ArtifactError
from accordion.model import Model, load_model
from accordion.model.files import check_weights, read_tensors
from accordion.observe import progress
from accordion.retrieval.contract import EncoderContract, Side, length_batches

WEIGHTS, CONFIG = "model.safetensors", "config.json"
BATCH_TOKENS = 8192  # padded tokens of an inference batch


class Encoder(nn.Module):
    """(batch, seq) token ids -> (batch, dimension) embeddings of length 1."""

    def __init__(self, model: Model, contract: EncoderContract) -> None:
        super().__init__()
        self.model = model
        self.contract = contract
        self.projection = nn.Linear(model.config.hidden, contract.dimension, bias=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (batch, seq) int64 and mask (batch, seq) bool, True at real tokens, which come first in a row."""
        hidden = self.model.hidden(ids, mask, bidirectional=self.contract.bidirectional)  # (batch, seq, hidden)
        return nn.functional.normalize(self.projection(self.pool(hidden, mask)), dim=-1)

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(batch, seq, hidden) -> (batch, hidden), as the contract says."""
        weights = mask.to(hidden.dtype)  # (batch, seq)
        if self.contract.pooling == "last":
            following = torch.cat([weights[:, 1:], torch.zeros_like(weights[:, :1])], dim=1)
            weights = weights - following  # 1 at the last real token
        weights = weights / weights.sum(dim=1, keepdim=True)
        return torch.einsum("bs,bsh->bh", weights, hidden)

    @torch.inference_mode()
    def encode(
        self, tokenizer: TextTokenizer, texts: Sequence[str], side: Side, label: str | None = None
    ) -> NDArray[np.float32]:
        """Embeddings (texts, dimension) in the order given; `label` shows progress under that name."""
        rows = self.contract.prepare(tokenizer, texts, side)
        batches = length_batches(rows, BATCH_TOKENS)
        out = np.empty((len(rows), self.contract.dimension), dtype=np.float32)
        training = self.training
        self.eval()
        for batch in progress(batches, label, unit="batch") if label else batches:
            ids, mask = self.contract.pad_batch([rows[index] for index in batch])
            out[batch] = self(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        self.train(training)
        return out


def new_encoder(member: Path, contract: EncoderContract, seed: int) -> Encoder:
    """An encoder from an extracted sub-model; only the projection is new: a random rotation (or part of one)."""
    encoder = Encoder(load_model(member), contract)
    generator = torch.Generator().manual_seed(seed)
    nn.init.orthogonal_(encoder.projection.weight, generator=generator)
    return encoder


def contract_for(
    *, pooling: Literal["mean", "last"], bidirectional: bool, max_tokens: int, dimension: int
) -> EncoderContract:
    """The contract of an encoder of this repository: BOS first, no prefixes, padding masked."""
    return EncoderContract(
        pooling=pooling, bidirectional=bidirectional, query_prefix="", document_prefix="",
        bos=BOS, pad=PAD, max_tokens=max_tokens, dimension=dimension,
    )  # fmt: skip


def save_weights(encoder: Encoder, path: Path) -> None:
    """Write the weights as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, path)


def save_encoder(encoder: Encoder, folder: Path, text: Path) -> None:
    """Write weights, model config, contract and the tokenizer's files (from folder `text`) into `folder`."""
    save_weights(encoder, folder / WEIGHTS)
    (folder / CONFIG).write_text(encoder.model.config.model_dump_json(indent=1) + "\n")
    encoder.contract.save(folder)
    for path in sorted(text.iterdir()):
        if path.is_file() and path.name.startswith("tokenizer"):
            shutil.copyfile(path, folder / path.name)


def load_encoder(folder: Path, weights: Path | None = None) -> tuple[Encoder, TextTokenizer]:
    """Read an encoder artifact; `weights` takes another weights file of the same shape (`untrained/`).

    Raises:
        ArtifactError: a file is missing, or names, shapes or types of the weights are not those of the config.
    """
    contract = EncoderContract.load(folder)
    path = weights or folder / WEIGHTS
    if not (folder / CONFIG).is_file():
        raise ArtifactError(f"{folder / CONFIG}: no such file; the encoder is incomplete, run stage distil again")
    encoder = Encoder(Model(ModelConfig.from_json((folder / CONFIG).read_text())), contract)
    state = read_tensors(path)
    check_weights(encoder.state_dict(), state, where=str(path))
    encoder.load_state_dict(state)
    return encoder.eval(), TextTokenizer.load(folder)
