"""What the model predicts for a batch, and the losses of it, in nats.

Text (and the token after the next): cross-entropy of a token. Image and video: binary cross-entropy of a bit
(VideoAR, arXiv 2601.05966). Audio: cross-entropy of a code, over all levels (arXiv 2602.04705).
"""

from collections.abc import Sequence
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
        vision_at (v,), bits (v, d) float, video (v,) bool, scale (v,): bits at the position, and of what.
        audio_at (a,), codes (a, Q): codes of the next frame.
        videos: how many of `video` are true.
    """

    text_at: Tensor
    text: Tensor
    mtp_at: Tensor
    mtp: Tensor
    vision_at: Tensor
    bits: Tensor
    video: Tensor
    scale: Tensor
    audio_at: Tensor
    codes: Tensor
    videos: int

    @property
    def counts(self) -> dict[str, int]:
        """What each modality's loss is a sum of: text tokens, image and video bits, audio codes; and of `mtp`."""
        width = self.bits.shape[1]
        return {
            "text": len(self.text),
            "image": (len(self.video) - self.videos) * width,
            "video": self.videos * width,
            "audio": self.codes.numel(),
            "mtp": len(self.mtp),
        }

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
        video = kind[vision_at] == VIDEO
        return cls(
            text_at=text_at,
            text=token.view(-1)[text_at],
            mtp_at=mtp_at,
            mtp=token.view(-1)[mtp_at + 1],
            vision_at=vision_at,
            bits=batch.target_bits.view(-1, batch.target_bits.shape[-1])[vision_at].float(),
            video=video,
            scale=batch.scale.view(-1)[vision_at],
            audio_at=audio_at,
            codes=batch.target_codes.view(-1, batch.target_codes.shape[-1])[audio_at],
            videos=int(video.sum()),
        )


def _where(mask: Tensor) -> Tensor:
    return mask.reshape(-1).nonzero().squeeze(1)


@dataclass(frozen=True)
class Lessons:
    """Which predictions of a batch learn from which others: pupils and teachers, in the same order.

    Attributes:
        text, vision, audio: (pupils (m,), teachers (m,)), indices into the targets of each kind.
        weight: of the teacher's prediction against the data.
    """

    text: tuple[Tensor, Tensor]
    vision: tuple[Tensor, Tensor]
    audio: tuple[Tensor, Tensor]
    weight: float

    @classmethod
    def of(cls, targets: Targets, pupils: Tensor, first_teacher: int, length: int, weight: float) -> "Lessons":
        """Rows `pupils` (m,), ascending, learn from the rows from `first_teacher` on: the same sequences again."""

        def pairs(at: Tensor) -> tuple[Tensor, Tensor]:
            rows = at // length
            return _where(torch.isin(rows, pupils)), _where(rows >= first_teacher)

        return cls(pairs(targets.text_at), pairs(targets.vision_at), pairs(targets.audio_at), weight)


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

    def losses(self, lessons: Lessons | None = None, scale_weights: Tensor | None = None) -> "Losses":
        """The losses of these predictions: of the data, and what training minimises.

        Args:
            lessons: by which a pupil's loss is (1 - w) its own + w KL(teacher || pupil) in what is minimised.
            scale_weights: (scales,), how much the bits of each scale count in what is minimised.
        """
        targets = self.targets
        bits = F.binary_cross_entropy_with_logits(self.vision.float(), targets.bits, reduction="none").sum(1)  # (v,)
        sums = {
            "text": F.cross_entropy(self.text, targets.text, reduction="sum"),
            **self._images_and_video(bits),
            "audio": F.cross_entropy(self.audio.flatten(0, -2), targets.codes.flatten(), reduction="sum"),
        }
        weighed = dict(sums)
        if lessons is not None:
            weighed["text"] = sums["text"] + _lesson(self.text, targets.text, lessons.text, lessons.weight)
            weighed["audio"] = sums["audio"] + _lesson(self.audio, targets.codes, lessons.audio, lessons.weight)
            pupils, teachers = lessons.vision
            bits = bits.index_add(0, pupils, lessons.weight * (self._bits_apart(pupils, teachers) - bits[pupils]))
        if scale_weights is not None:
            bits = bits * scale_weights[targets.scale]
        weighed |= self._images_and_video(bits)
        if self.mtp is not None:
            sums["mtp"] = F.cross_entropy(self.mtp, targets.mtp, reduction="sum")
        held = targets.counts
        return Losses(sums, {name: held[name] for name in sums}, weighed)

    def _images_and_video(self, bits: Tensor) -> dict[str, Tensor]:
        """Summed losses of both from those of every position (v,)."""
        video = self.targets.video.to(bits.dtype)
        return {"image": (bits * (1 - video)).sum(), "video": (bits * video).sum()}

    def _bits_apart(self, pupils: Tensor, teachers: Tensor) -> Tensor:
        """(m,) KL of the teachers' bits from the pupils', summed over the bits of a token."""
        learnt, known = self.vision[pupils].float(), self.vision[teachers].detach().float()
        chance = known.sigmoid()
        cross = F.binary_cross_entropy_with_logits(learnt, chance, reduction="none")
        return (cross - F.binary_cross_entropy_with_logits(known, chance, reduction="none")).sum(1)


def _lesson(logits: Tensor, wanted: Tensor, pairs: tuple[Tensor, Tensor], weight: float) -> Tensor | float:
    """What lessons add to the summed cross-entropy of `wanted` (n, ...) under logits (n, ..., V)."""
    pupils, teachers = pairs
    if not len(pupils):
        return 0.0
    learnt, known = logits[pupils], logits[teachers].detach()
    own = F.cross_entropy(learnt.flatten(0, -2), wanted[pupils].flatten(), reduction="sum")
    apart = F.kl_div(
        F.log_softmax(learnt.float(), -1), F.log_softmax(known.float(), -1), reduction="sum", log_target=True
    )  # fmt: skip
    return weight * (apart - own)


@dataclass(frozen=True)
class Losses:
    """Summed losses and what they are sums of, by modality (and `mtp` in training).

    Attributes:
        sums: nats of the data, scalar tensors that carry gradients in training.
        counts: text tokens, image and video bits, audio codes.
        weighed: what training minimises in place of each modality's sum: pupils learn from teachers too, and scales
            count differently.
    """

    sums: dict[str, Tensor]
    counts: dict[str, int]
    weighed: dict[str, Tensor]

    @property
    def means(self) -> dict[str, Tensor]:
        """Mean nats of the data of each modality that the batch holds: per token, per bit, per code."""
        return {name: total / self.counts[name] for name, total in self.sums.items() if self.counts[name]}

    @property
    def aims(self) -> dict[str, Tensor]:
        """What training minimises, as means; of multi-token prediction the same."""
        return self.means | {name: sum_ / self.counts[name] for name, sum_ in self.weighed.items() if self.counts[name]}


def scale_weights(scales: Sequence[int], power: float) -> Tensor:
    """Weight of each scale's bits, (last side / side)^power, so that a frame's weights have mean 1: (scales,).

    Early scales have few positions and decide what all later ones refine (VideoAR, arXiv 2601.05966).
    """
    sides = torch.tensor(scales, dtype=torch.float64)
    weight = (sides[-1] / sides) ** power
    return (weight * (sides**2).sum() / (weight * sides**2).sum()).float()
