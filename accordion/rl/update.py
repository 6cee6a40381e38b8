"""What both post-training stages share: opening a policy, the guarded optimizer step, the curves file."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accordion.data.tokenizers.text import TextTokenizer
from accordion.errors import DataError, TrainingDiverged
from accordion.model import Model, load_model
from accordion.store import atomic_write
from accordion.train.schedule import warmup_stable_decay


def load_policy(folder: Path, text: Path) -> tuple[Model, TextTokenizer]:
    """A model and the text tokenizer it speaks.

    Raises:
        ArtifactError: either cannot be read.
        DataError: their vocabularies differ.
    """
    model, tokenizer = load_model(folder), TextTokenizer.load(text)
    if model.config.text_vocabulary != tokenizer.vocabulary:
        raise DataError(
            f"{folder}: its text vocabulary is {model.config.text_vocabulary}, that of {text} is "
            f"{tokenizer.vocabulary}; give the tokenizer the model was trained with"
        )
    return model, tokenizer


class Updater:
    """AdamW without weight decay under warm-up-stable-decay, clipped gradients, refusing NaN.

    Args:
        updates: optimizer steps planned; the rate falls linearly to a tenth over the last `decay_share` of them.
    """

    def __init__(
        self,
        model: Model,
        *,
        learning_rate: float,
        warmup_steps: int,
        clip_norm: float,
        updates: int,
        decay_share: float,
    ) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.updates = updates
        self.decay_share = decay_share
        self.clip_norm = clip_norm
        self.count = 0

    def __call__(self, loss: Tensor, step: int, samples: Sequence[str]) -> float:
        """One optimizer step on `loss`; returns the gradient norm before clipping.

        Raises:
            TrainingDiverged: the loss or the gradient is NaN or infinite; names the step and the samples.
                The weights are then as they were before.
        """
        if not torch.isfinite(loss):
            raise TrainingDiverged(_diverged("loss", float(loss), step, samples))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm))
        if not norm < float("inf"):
            raise TrainingDiverged(_diverged("gradient norm", norm, step, samples))
        factor = warmup_stable_decay(
            self.count, steps=self.updates, warmup=self.warmup_steps, decay_share=self.decay_share
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        self.optimizer.step()
        self.count += 1
        return norm


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON document a line."""
    atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))


def mean_of_last(curves: Sequence[Mapping[str, float]], name: str, share: float = 0.1) -> float:
    """Mean of a figure over the last `share` of the steps that have it."""
    values = [row[name] for row in curves if name in row]
    tail = values[-max(1, round(len(values) * share)) :]
    return sum(tail) / len(tail)


def _diverged(what: str, value: float, step: int, samples: Sequence[str]) -> str:
    shown = "; ".join(repr(sample) for sample in samples[:4])
    return (
        f"step {step}: {what} is {value}; the batch began with {shown}. "
        "Lower learning_rate, or look at these samples and at the checkpoint the stage started from"
    )
