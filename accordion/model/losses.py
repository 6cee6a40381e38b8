"""What the model predicts for a batch, and the losses of it, in nats.

Text (and the token after the next): cross-entropy of a token. Image and video: binary cross-entropy of a bit
(VideoAR, arXiv 2601.05966). Audio: cross-entropy of a code, over all levels (arXiv 2602.04705).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from accordion.data.batch import IMAGE, VIDEO, Batch

MODALITIES = ("text", "image", "video", "audio")
NONE = -1  # marks an absent target in a Batch


@dataclass(frozen=True)
class Targets:
    """Where a batch has something to predict: flat positions (index b * S + s), and what.

    Attributes:
        text_at (n,), text (n,): next text token.
        mtp_at (m,), mtp (m,): the token after the next, where the same document has one.
        vision_at (v,), bits (v, d) float, video (v,) bool: bits at the position.
        audio_at (a,), codes (a, Q): codes of the next frame.
    """

    text_at: Tensor
    text: Tensor
    mtp_at: Tensor
    mtp: Tensor
    vision_at: Tensor
    bits: Tensor
    video: Tensor
    audio_at: Tensor
    codes: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Targets":
        """Collect the targets of a batch."""
        token = batch.target_token
        has = token != NONE
        after = torch.zeros_like(has)
        after[:, :-1] = has[:, :-1] & has[:, 1:] & (batch.document[:, :-1] == batch.document[:, 1:])
        text_at, mtp_at = _where(has), _where(after)
        kind = batch.modality.view(-1)
        vision_at = _where(batch.target_bits[..., 0] != NONE)
        vision_at = vision_at[(kind[vision_at] == IMAGE) | (kind[vision_at] == VIDEO)]
        audio_at = _where(batch.target_codes[..., 0] != NONE)
        return cls(
            text_at=text_at,
            text=token.view(-1)[text_at],
            mtp_at=mtp_at,
            mtp=token.view(-1)[mtp_at + 1],
            vision_at=vision_at,
            bits=batch.target_bits.view(-1, batch.target_bits.shape[-1])[vision_at].float(),
            video=kind[vision_at] == VIDEO,
            audio_at=audio_at,
            codes=batch.target_codes.view(-1, batch.target_codes.shape[-1])[audio_at],
        )


def _where(mask: Tensor) -> Tensor:
    return mask.reshape(-1).nonzero().squeeze(1)


@dataclass(frozen=True)
class Outputs:
    """Logits at the target positions of a batch, in the order of `targets`.

    Attributes:
        text: (n, V); mtp: (m, V) or None when it was not asked for; vision: (v, d), of a bit being 1;
        audio: (a, Q, C + 1).
    """

    targets: Targets
    text: Tensor
    mtp: Tensor | None
    vision: Tensor
    audio: Tensor

    def losses(self) -> "Losses":
        """The losses of these predictions."""
        targets = self.targets
        bits = F.binary_cross_entropy_with_logits(self.vision, targets.bits, reduction="none").sum(1)  # (v,)
        video = targets.video.to(bits.dtype)
        sums = {
            "text": F.cross_entropy(self.text, targets.text, reduction="sum"),
            "image": (bits * (1 - video)).sum(),
            "video": (bits * video).sum(),
            "audio": F.cross_entropy(self.audio.flatten(0, 1), targets.codes.flatten(), reduction="sum"),
        }
        width, videos = self.vision.shape[1], int(targets.video.sum())
        counts = {
            "text": len(targets.text),
            "image": (len(targets.video) - videos) * width,
            "video": videos * width,
            "audio": targets.codes.numel(),
        }
        if self.mtp is not None:
            sums["mtp"] = F.cross_entropy(self.mtp, targets.mtp, reduction="sum")
            counts["mtp"] = len(targets.mtp)
        return Losses(sums, counts)


@dataclass(frozen=True)
class Losses:
    """Summed losses and what they are sums of, by modality (and `mtp` in training).

    Attributes:
        sums: nats, scalar tensors that carry gradients in training.
        counts: text tokens, image and video bits, audio codes.
    """

    sums: dict[str, Tensor]
    counts: dict[str, int]

    @property
    def means(self) -> dict[str, Tensor]:
        """Mean nats of each modality that the batch holds: per token, per bit, per code."""
        return {name: total / self.counts[name] for name, total in self.sums.items() if self.counts[name]}
