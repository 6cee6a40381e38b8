"""Documents of text, images, video and speech as columns of positions: ids, codes, inputs, targets, Uni-RoPE."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from accordion.data.batch import AUDIO, COLUMNS, IMAGE, LOOK_FRAMES, TEXT, VIDEO, Columns, empty_columns
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.text import BOA, BOI, BOS, BOV, EOA, EOI, EOS, EOV, VOICE, Dropout, TextTokenizer
from accordion.data.tokenizers.vision import VisionTokenizer, accumulate
from accordion.errors import DataError


class Pool(NamedTuple):
    """Documents that are read equally often: of one kind, from sources of one weight."""

    kind: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        return self.kind if self.weight == 1 else f"{self.kind}-x{self.weight:.12g}"


@dataclass(frozen=True)
class Document:
    """One document: columns of (length, ...), groups counted from 0.

    Attributes:
        kind: what its share is charged to.
        weight: of its source, how often it is read beside others of its kind.
    """

    kind: str
    columns: Columns
    weight: float = 1.0

    @property
    def pool(self) -> Pool:
        return Pool(self.kind, self.weight)

    @property
    def length(self) -> int:
        return len(self.columns["token"])

    @property
    def patches(self) -> int:
        """Rows of its tables of patches."""
        return len(self.columns["patch_pixels"])

    @property
    def voices(self) -> int:
        """Rows of its table of voices."""
        return len(self.columns["voice_vector"])


@dataclass(frozen=True)
class Spoken:
    """In which voice something is to be spoken.

    Attributes:
        marked: whether a `VOICE` stands before the sound; models without voices know none.
        vector: (V,) describes the voice (`tokenizers/voice.py`); None: any voice.
    """

    marked: bool
    vector: Tensor | None = None


PLAIN = Spoken(marked=False)


class Assembler:
    """Turns tokenized parts into documents of at most `sequence` positions."""

    def __init__(self, text: TextTokenizer, vision: VisionTokenizer, audio: AudioTokenizer, *, sequence: int) -> None:
        self.text, self.vision, self.audio, self.sequence = text, vision, audio, sequence
        self.bits, self.levels = vision.config.bits, audio.config.levels
        clip = vision.config.frames * sum(side * side for side in vision.config.scales)
        if clip + 4 > sequence:
            raise DataError(
                f"pack.sequence: {sequence} positions cannot hold a video clip of {clip} and its four control tokens; "
                f"raise it to {clip + 4} or lower tokenizers.vision.frames"
            )

    def builder(self, kind: str) -> "Builder":
        """An empty document of `kind`."""
        return Builder(kind, bits=self.bits, levels=self.levels, codebook=self.audio.config.codebook)

    def texts(self, text: str, dropout: Dropout | None = None) -> list[Document]:
        """A text as one document, or as several if it is longer than a sequence."""
        ids = self.text.encode(text, dropout=dropout)
        room = self.sequence - 1
        pieces = [ids[start : start + room] for start in range(0, len(ids) + 1, room)]
        found = []
        for number, piece in enumerate(pieces):
            ending = [EOS] if number == len(pieces) - 1 else []
            if piece or (ending and number == 0):
                found.append(self.builder("text").tokens([BOS, *piece, *ending]).document())
        return found

    def cut(self, document: Document, length: int) -> tuple[Document, Document]:
        """A text in two: its first `length` positions, whose last predicts nothing, and `BOS` with the rest."""
        ids = document.columns["token"].tolist()
        head, rest = (self.builder(document.kind).tokens(part) for part in (ids[:length], [BOS, *ids[length:]]))
        return replace(head.document(), weight=document.weight), replace(rest.document(), weight=document.weight)

    def image_seen(self, caption: str, pixels: Tensor, latent: Tensor) -> Document:
        """`BOS BOI <image> EOI caption EOS` with the image as features; uint8 (1,3,H,W), latent (1,1,side,side,D)."""
        return self._seen("image", IMAGE, BOI, EOI, caption, pixels, latent)

    def video_seen(self, caption: str, pixels: Tensor, latent: Tensor) -> Document:
        """`BOS BOV <frames> EOV caption EOS` with the clip as features; uint8 (T,3,H,W), latent (1,T,side,side,D)."""
        return self._seen("video", VIDEO, BOV, EOV, caption, pixels, latent)

    def _seen(
        self, kind: str, modality: int, begin: int, end: int, caption: str, pixels: Tensor, latent: Tensor
    ) -> Document:
        builder = self.builder(kind).tokens([BOS, begin]).look(modality, pixels, latent)
        if builder.patches > self.sequence:
            raise DataError(
                f"pack.sequence: {self.sequence} positions, but the {builder.patches} patches of a clip to understand "
                f"do not fit its table; raise it to {builder.patches}, or set pack.understanding to false"
            )
        room = self.sequence - 2 - sum(len(part["token"]) for part in builder.parts)
        return builder.tokens([end, *self.text.encode(caption)[:room], EOS]).document()

    def image(
        self, caption: str, bits: Sequence[Tensor], latent: Tensor | None = None, *, image_first: bool
    ) -> Document:
        """`BOS caption BOI <image> EOI EOS`, or `BOS BOI <image> EOI caption EOS`; bits of one frame (1,1,h,h,D)."""
        room = self.sequence - 4 - sum(grid.shape[2] ** 2 for grid in bits)
        words = self.text.encode(caption)[:room]
        builder = self.builder("image")
        builder.tokens([BOS, BOI] if image_first else [BOS, *words, BOI]).vision(IMAGE, bits, latent)
        return builder.tokens([EOI, *words, EOS] if image_first else [EOI, EOS]).document()

    def video(self, caption: str, bits: Sequence[Tensor], latent: Tensor | None = None) -> Document:
        """`BOS caption BOV <frames> EOV EOS`; bits of one clip (1,T,h,h,D)."""
        room = self.sequence - 4 - bits[0].shape[1] * sum(grid.shape[2] ** 2 for grid in bits)
        words = self.text.encode(caption)[:room]
        builder = self.builder("video").tokens([BOS, *words, BOV])
        return builder.vision(VIDEO, bits, latent).tokens([EOV, EOS]).document()

    def heard(self, transcript: str, codes: Tensor) -> Document:
        """`BOS BOA <frames> EOA transcript EOS`; frames (T,Q) that do not fit are cut."""
        words = self.text.encode(transcript)[: self.sequence // 2]
        frames = codes[: self.sequence - 4 - len(words)].numpy()
        builder = self.builder("audio").tokens([BOS, BOA]).speech(frames, cut=len(frames) < len(codes))
        return builder.tokens([EOA, *words, EOS]).document()

    def spoken(self, transcript: str, codes: Tensor, voice: Spoken = PLAIN) -> Document:
        """`BOS transcript VOICE BOA <frames> EOA EOS`; frames (T,Q) that do not fit are cut.

        Args:
            voice: PLAIN: there is no VOICE.
        """
        words = self.text.encode(transcript)[: self.sequence // 2]
        prompt = spoken_prompt(words, voice)
        frames = codes[: self.sequence - 2 - len(prompt)].numpy()
        builder = self.builder("audio").tokens(prompt, voice.vector).speech(frames, cut=len(frames) < len(codes))
        return builder.tokens([EOA, EOS]).document()


def spoken_prompt(words: Sequence[int], voice: Spoken) -> list[int]:
    """The ids before a sound that is to be spoken."""
    return [BOS, *words, *([VOICE] if voice.marked else []), BOA]


class Builder:
    """Appends parts to a document, keeping count of positions and groups.

    Args:
        kind: of the document.
        bits: of a vision token.
        levels: codes of an audio frame.
        codebook: its size is the code that ends a sound.
    """

    def __init__(self, kind: str, *, bits: int, levels: int, codebook: int) -> None:
        self.kind, self.bits, self.levels, self.codebook = kind, bits, levels, codebook
        self.parts: list[Columns] = []
        self.next_position = 0.0  # the next text or audio position, t = h = w
        self.next_group = 0
        self.patches = self.voices = 0  # rows of the tables so far

    def _add(self, length: int, modality: int, groups: np.ndarray, patches: int = 0, voices: int = 0) -> Columns:
        part = empty_columns((length,), self.bits, self.levels, patches, voices)
        part["modality"][:] = modality
        part["group"][:] = self.next_group + groups
        self.next_group += int(groups[-1]) + 1
        self.parts.append(part)
        return part

    def _advance(self, part: Columns) -> None:
        length = len(part["token"])
        part["position"][:] = (self.next_position + np.arange(length))[:, None]
        self.next_position += length

    def tokens(self, ids: list[int], voice: Tensor | None = None) -> "Builder":
        """Text and control ids; each predicts the next id of this run.

        Args:
            voice: (V,), what the one `VOICE` among them stands for; None: any voice.
        """
        part = self._add(len(ids), TEXT, np.arange(len(ids)), voices=0 if voice is None else 1)
        self._advance(part)
        if voice is not None:
            part["voice"][ids.index(VOICE)] = self.voices
            part["voice_vector"][0] = voice.numpy()
            self.voices += 1
        part["token"][:] = ids
        part["target_token"][:-1] = ids[1:]
        return self

    def speech(self, frames: np.ndarray, *, cut: bool) -> "Builder":
        """Audio frames (T,Q): BOA predicts the first, each frame the next, the last one end-of-audio unless cut."""
        part = self.frames(frames)
        self.parts[-2]["target_codes"][-1] = frames[0]
        part["target_codes"][:-1] = frames[1:]
        part["target_codes"][-1] = -1 if cut else self.codebook
        return self

    def frames(self, frames: np.ndarray) -> Columns:
        """Audio frames (T,Q) that predict nothing: the part they are."""
        part = self._add(len(frames), AUDIO, np.arange(len(frames)))
        self._advance(part)
        part["codes"][:] = frames
        return part

    def vision(self, modality: int, bits: Sequence[Tensor], latent: Tensor | None = None) -> "Builder":
        """Frames of bits (1,T,h,h,D), frame by frame and scale by scale; a scale is one group.

        Args:
            latent: (1,T,side,side,D) that the bits are of; needed where history bits are flipped in training.
        """
        inputs, _ = accumulate(bits)
        frames, side = bits[-1].shape[1:3]
        heights = [grid.shape[2] for grid in bits]
        sizes = np.array([height * height for height in heights])
        scale = np.tile(np.repeat(np.arange(len(bits)), sizes), frames)
        frame = np.repeat(np.arange(frames), sizes.sum())
        part = self._add(len(scale), modality, frame * len(bits) + scale)
        part["scale"][:], part["frame"][:] = scale, frame
        part["vision_input"][:] = _in_order(inputs)
        part["target_bits"][:] = _in_order(bits)
        if latent is not None:
            part["latent"].reshape(frames, sizes.sum(), -1)[:, -sizes[-1] :] = latent[0].flatten(1, 2).numpy()
        grid = np.concatenate([_centres(height, side) for height in heights])  # (positions of a frame, 2)
        part["position"][:, 0] = self.next_position + frame
        part["position"][:, 1:] = self.next_position + np.tile(grid, (frames, 1))
        self.next_position += max(frames, side)
        return self

    def look(self, modality: int, pixels: Tensor, latent: Tensor) -> "Builder":
        """Frames to understand, uint8 (T,3,H,W) and latents (1,T,side,side,D): a group for each image or 4 frames.

        Frames that the last group lacks are the last frame again.
        """
        depth = LOOK_FRAMES if modality == VIDEO else 1
        missing = -len(pixels) % depth
        frames = [*range(len(pixels)), *[len(pixels) - 1] * missing]
        side = latent.shape[2]
        blocks = (side // 2) ** 2
        groups = len(frames) // depth
        part = self._add(groups * blocks, modality, np.repeat(np.arange(groups), blocks), len(frames) * side * side)
        cells = F.pixel_unshuffle(pixels[frames].float(), pixels.shape[-1] // side).to(torch.uint8)  # (T,48,side,side)
        part["patch_pixels"][:] = _in_blocks(cells.movedim(1, -1))
        part["patch_latent"][:] = _in_blocks(latent[0, frames])
        start = np.arange(groups)[:, None] * depth * side * side + np.arange(blocks) * 4
        part["patch"][:] = self.patches + start.reshape(-1)
        self.patches += len(frames) * side * side
        part["frame"][:] = np.repeat(np.arange(groups) * depth, blocks)
        part["position"][:, 0] = self.next_position + part["frame"]
        part["position"][:, 1:] = self.next_position + np.tile(_centres(side // 2, side), (groups, 1))
        self.next_position += max(len(frames), side)
        return self

    def document(self) -> Document:
        return Document(self.kind, {name: np.concatenate([part[name] for part in self.parts]) for name in COLUMNS})


def _in_order(grids: Sequence[Tensor]) -> np.ndarray:
    """Per-scale (1,T,h,h,D) -> (positions, D), frame by frame, coarse to fine, rows first."""
    flat = [grid[0].flatten(1, 2).numpy() for grid in grids]  # (T, h*h, D)
    return np.concatenate(flat, axis=1).reshape(-1, flat[0].shape[-1])


def _in_blocks(grid: Tensor) -> np.ndarray:
    """(T,side,side,C) -> (T*side*side, C), the four cells of each 2 x 2 block together, blocks row by row."""
    blocks = grid.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 1, 3, 2, 4, 5)
    return blocks.flatten(0, 4).numpy()


def _centres(height: int, side: int) -> np.ndarray:
    """(h, w) of a scale's tokens in units of the finest: the centre of the area each covers, (height^2, 2)."""
    line = (np.arange(height) + 0.5) * side / height - 0.5
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
