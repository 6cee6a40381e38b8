"""Any file as tokens and back: what `accordion tokenize` calls.

A file goes the way that packing takes: text as it is; a picture, and each frame of a video, scaled to fit the square
that the vision tokenizer codes; sound at the codec's rate. So the figures say what a model sees of the file. Sound
and video are coded piece by piece, so that memory does not grow with their length beyond what the reader holds.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image

from accordion.data import media
from accordion.data.media.film import Film
from accordion.data.media.image import on_square
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.text import TextTokenizer
from accordion.data.tokenizers.text_training import fertility
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.data.tokenizers.vision_metrics import compare
from accordion.errors import ArtifactError, DataError
from accordion.lookup import ancestor, open_verified
from accordion.report.run import RunFigures
from accordion.store import Manifest
from accordion.store.atomic import atomic_write

Part = Literal["text", "vision", "audio"]
PARTS: tuple[Part, ...] = ("text", "vision", "audio")
PIECE_SECONDS = 20  # of sound, coded at once
SHOWN = 32  # tokens of a text that are shown
SHOWN_FRAMES = 6  # frames of sound whose codes are shown


class Tokenizers:
    """The three tokenizers, each found, verified and read when a file first needs it."""

    def __init__(self, folders: Mapping[Part, Path] | None = None) -> None:
        """Take some from `folders`; the others are the newest of their kind in the store."""
        self._folders = dict(folders or {})

    @classmethod
    def of(cls, run: Path | None = None, chosen: Sequence[str] = ()) -> "Tokenizers":
        """Those that a run made, or the newest; `chosen` ones stand in for them.

        Args:
            run: folder of a finished run (with a run.json).
            chosen: artifacts: KIND, KIND:DIGEST or a folder.

        Raises:
            ArtifactError: one of `chosen` is not found or is no tokenizer.
            DataError: `run` is no folder of a finished run.
        """
        folders: dict[Part, Path] = {}
        if run is not None:
            made = RunFigures.load(run).folders
            folders = {part: made[f"{part}_tokenizer"] for part in PARTS if f"{part}_tokenizer" in made}
            if len(folders) < len(PARTS):
                raise DataError(f"{run}: that run made no tokenizers; name others with --tokenizer")
        for text in chosen:
            folder = open_verified(text)
            kind = Manifest.read(folder).kind
            part = next((part for part in PARTS if kind == f"tokenizer-{part}"), None)
            if part is None:
                raise ArtifactError(f"{text!r}: a {kind}; wants tokenizer-{', tokenizer-'.join(PARTS)}")
            folders[part] = folder
        return cls(folders)

    @cached_property
    def text(self) -> TextTokenizer:
        return TextTokenizer.load(self._folder("text"))

    @cached_property
    def vision(self) -> VisionTokenizer:
        return VisionTokenizer.load(self._folder("vision"))

    @cached_property
    def audio(self) -> AudioTokenizer:
        return AudioTokenizer.load(self._folder("audio"))

    def _folder(self, part: Part) -> Path:
        return open_verified(str(self._folders.get(part, f"tokenizer-{part}")))


class MadeWith(Tokenizers):
    """Those that an artifact was made with, by its lineage; each found, verified and read when it is first needed."""

    def __init__(self, artifact: Path) -> None:
        super().__init__()
        self._artifact = artifact

    def _folder(self, part: Part) -> Path:
        return ancestor(self._artifact, f"tokenizer-{part}")


class Outputs:
    """Where reconstructions go: `FOLDER/FILE.decoded.SUFFIX`, numbered when two files of a call share a name."""

    def __init__(self, folder: Path) -> None:
        """Make the folder.

        Raises:
            DataError: it cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be made ({error.strerror}); give a folder for what is decoded") from None
        self.folder = folder
        self._taken: set[Path] = set()

    def write(self, source: Path, suffix: str, data: bytes) -> Path:
        """Write one file in one step and return its path."""
        names = (f"{source.name}.decoded{f'-{number}' if number else ''}{suffix}" for number in range(10**6))
        path = next(path for name in names if (path := self.folder / name) not in self._taken)
        try:
            atomic_write(path, data)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}); give another folder") from None
        self._taken.add(path)
        return path


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """One file, coded and decoded.

    Attributes:
        tokens: positions it takes in a sequence.
        figures: what was measured; the names end in their unit where they have one.
        pieces: the first tokens of a text, each as (id, what it reads).
        written: the reconstruction, when one was asked for.
    """

    file: Path
    kind: media.Kind
    tokens: int
    figures: Mapping[str, Any]
    pieces: Sequence[tuple[int, str]] = field(default=())
    written: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"file": str(self.file), "written": str(self.written) if self.written else None}


def tokenize(path: Path, tokenizers: Tokenizers, outputs: Outputs | None = None) -> Tokenized:
    """Code a file of any readable kind, decode it again, and measure both.

    Args:
        outputs: where to write what the tokens decode to; None: nowhere.

    Raises:
        DataError: the file is missing, empty, damaged, too large, or of an unknown type; the text names it.
        ArtifactError: there is no tokenizer for its kind, or it was altered.
    """
    kind = media.kind_of(path)
    return {"text": _text, "image": _image, "audio": _audio, "video": _video}[kind](path, tokenizers, outputs)


def _text(path: Path, tokenizers: Tokenizers, outputs: Outputs | None) -> Tokenized:
    text = media.read_text(path)
    if not text:
        raise DataError(f"{path}: no text but a byte order mark; replace it or leave it out")
    tokenizer = tokenizers.text
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    figures = {
        "characters": len(text),
        "vocabulary": tokenizer.vocabulary,
        **fertility([text], [ids]),
        "bits_per_character": len(ids) * math.log2(tokenizer.vocabulary) / len(text),
        "exact": decoded == text,
    }
    written = outputs.write(path, ".txt", decoded.encode()) if outputs else None
    pieces = list(zip(ids, tokenizer.pieces(ids[:SHOWN]), strict=False))
    return Tokenized(file=path, kind="text", tokens=len(ids), figures=figures, pieces=pieces, written=written)


def _image(path: Path, tokenizers: Tokenizers, outputs: Outputs | None) -> Tokenized:
    pixels = media.read_image(path)
    model = tokenizers.vision
    side = model.config.image_size
    decoded, rate, likeness = _code_frames(model, [on_square(pixels, side)])
    figures = {"width": pixels.shape[1], "height": pixels.shape[0], "coded_side": side, **rate, **likeness}
    written = None
    if outputs:
        file = io.BytesIO()
        Image.fromarray(decoded[0]).save(file, "PNG")
        written = outputs.write(path, ".png", file.getvalue())
    return Tokenized(file=path, kind="image", tokens=sum(rate["tokens_per_scale"]), figures=figures, written=written)


def _code_frames(
    model: VisionTokenizer, frames: Sequence[np.ndarray]
) -> tuple[np.ndarray, dict[str, Any], dict[str, float]]:
    """Frames (side, side, 3) uint8 of one clip -> decoded (T, side, side, 3) uint8, their rate, their likeness."""
    clip = torch.from_numpy(np.stack(frames)).movedim(-1, 1)[None].float() / 255  # (1,T,3,side,side)
    bits = model.encode(clip)
    decoded = model.decode(bits)
    count = sum(grid.numel() for grid in bits)
    rate = {
        "tokens_per_scale": [grid.shape[2] ** 2 for grid in bits],
        "bits": count,
        "bits_per_pixel": count / (clip.numel() / 3),
    }
    likeness = compare(clip[0], decoded[0])
    out = (decoded[0] * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    return out, rate, {"psnr_db": likeness["psnr"], "ssim": likeness["ssim"]}


def _video(path: Path, tokenizers: Tokenizers, outputs: Outputs | None) -> Tokenized:
    model = tokenizers.vision
    side = model.config.image_size
    film = Film(side) if outputs else None
    clips: list[dict[str, Any]] = []
    bits = count = 0
    last = 0.0
    for frames in _clips(path, model.config.frames):
        if not clips:
            height, width = frames[0].pixels.shape[:2]
        decoded, rate, likeness = _code_frames(model, [on_square(frame.pixels, side) for frame in frames])
        clips.append({"start_s": frames[0].seconds, "frames": len(frames), "bits": rate["bits"], **likeness})
        bits += rate["bits"]
        count += len(frames)
        last = frames[-1].seconds
        if film:
            film.add([frame.seconds for frame in frames], decoded)
    seconds = last * count / (count - 1) if count > 1 else 0.0  # the last frame is shown as long as the others
    figures = {
        "width": width, "height": height, "coded_side": side, "frames": count, "seconds": seconds,
        "tokens_per_scale": rate["tokens_per_scale"], "bits": bits, "bits_per_pixel": bits / (count * side * side),
        "bits_per_second": bits / seconds if seconds else None,
        **{name: float(np.average([clip[name] for clip in clips], weights=[clip["frames"] for clip in clips]))
           for name in ("psnr_db", "ssim")},
        "clips": clips,
    }  # fmt: skip
    written = outputs.write(path, ".mp4", film.finish()) if outputs and film else None
    tokens = count * sum(rate["tokens_per_scale"])
    return Tokenized(file=path, kind="video", tokens=tokens, figures=figures, written=written)


def _clips(path: Path, frames: int) -> Iterator[list[media.video.Frame]]:
    """The frames of a video, `frames` at a time; the last clip may be shorter."""
    clip: list[media.video.Frame] = []
    for frame in media.video_frames(path):
        clip.append(frame)
        if len(clip) == frames:
            yield clip
            clip = []
    if clip:
        yield clip


def _audio(path: Path, tokenizers: Tokenizers, outputs: Outputs | None) -> Tokenized:
    pcm, rate = media.read_audio(path)
    model = tokenizers.audio
    wanted, levels = model.config.sample_rate, model.config.levels
    sound = torch.from_numpy(media.resample(pcm, rate, wanted)).clamp(-1, 1)
    frame = model.config.frame_samples
    length = PIECE_SECONDS * wanted // frame * frame
    decoded, distances, coded = [], [], []
    for piece in sound.split(length):
        codes = model.encode(piece, wanted)
        made = [model.decode(codes[:, :used]) for used in range(1, levels + 1)]
        real = F.pad(piece, (0, len(made[-1]) - len(piece)))
        distances.append([model.mel_distance(part, real) for part in made])
        decoded.append(made[-1][: len(piece)])
        coded.append(codes)
    by_codes = np.average(distances, axis=0, weights=[len(codes) for codes in coded]).tolist()
    frames, per_second = sum(map(len, coded)), wanted / frame
    figures = {
        "seconds": len(pcm) / rate,
        "rate_hz": rate,
        "coded_rate_hz": wanted,
        "frames": frames,
        "codes_per_second": per_second * levels,
        "bits_per_second": model.bits_per_second,
        "mel_distance_db": by_codes[-1],
        "mel_distance_db_by_codes": by_codes,
        "first_frames": coded[0][:SHOWN_FRAMES].tolist(),
    }
    written = None
    if outputs:
        file = io.BytesIO()
        soundfile.write(file, torch.cat(decoded).numpy(), wanted, format="WAV", subtype="PCM_16")
        written = outputs.write(path, ".wav", file.getvalue())
    return Tokenized(file=path, kind="audio", tokens=frames, figures=figures, written=written)


def describe(found: Tokenized) -> list[str]:
    """Lines for a person: how many tokens, at what rate, how near what they decode to is."""
    figures = found.figures
    lines = [f"{found.kind}, {found.tokens:,} tokens"]
    if found.kind == "text":
        lines += [
            f"{figures['characters']:,} characters, {figures['characters_per_token']:.2f} a token, "
            f"{figures['bits_per_character']:.2f} bits a character (vocabulary {figures['vocabulary']:,})",
            "comes back exactly" if figures["exact"] else "DOES NOT COME BACK EXACTLY",
        ]
    elif found.kind == "audio":
        lines += [
            f"{figures['seconds']:.2f} s at {figures['rate_hz']:,} Hz, coded at {figures['coded_rate_hz']:,} Hz: "
            f"{figures['frames']:,} frames, {figures['codes_per_second']:g} codes/s, "
            f"{figures['bits_per_second']:g} bit/s",
            f"mel distance {figures['mel_distance_db']:.2f} dB; by number of codes: "
            + ", ".join(f"{distance:.2f}" for distance in figures["mel_distance_db_by_codes"]),
            "first frames: " + " | ".join(" ".join(map(str, codes)) for codes in figures["first_frames"]),
        ]
    else:
        side, scales = figures["coded_side"], "+".join(map(str, figures["tokens_per_scale"]))
        size = f"{figures['width']}x{figures['height']} pixels"
        if found.kind == "video":
            size += f", {figures['frames']:,} frames, {figures['seconds']:.2f} s, {len(figures['clips']):,} clips"
        rate = f"{figures['bits']:,} bits, {figures['bits_per_pixel']:.3f} a pixel"
        if figures.get("bits_per_second"):
            rate += f", {figures['bits_per_second']:,.0f} bit/s"
        lines += [
            f"{size}, coded as {side}x{side}: {scales} tokens{' a frame' if found.kind == 'video' else ''}, {rate}",
            f"PSNR {figures['psnr_db']:.2f} dB, SSIM {figures['ssim']:.3f}",
        ]
    if found.written:
        lines.append(f"written: {found.written}")
    return lines
