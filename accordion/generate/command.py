"""Files in, files or text out: what `accordion generate` calls. The suffix of the output says what is asked for."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from accordion.data import media
from accordion.data.media.film import Film
from accordion.data.media.image import on_square
from accordion.data.tokenizers.text import BOS
from accordion.errors import DataError
from accordion.generate.create import Creator
from accordion.generate.sampling import Sampling
from accordion.rl.rollout import chat_prompt
from accordion.store.atomic import atomic_write

FILM_SECONDS = 0.2  # between the frames of a written film
SUFFIXES = {".png": "image", ".mp4": "video", ".wav": "sound", None: "text"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is given, exactly one of the first five beside a caption or a voice, and what is wanted.

    Attributes:
        question: answered as a post-trained policy is asked; text: continued, or read aloud; caption: of what is to
            be drawn or filmed; image, audio, video: files to be described, or continued as a film.
        voice: a file of speech, in whose voice the text is read aloud.
        out: new file, .png, .mp4 or .wav; None: the answer is text.
        longest: most tokens of a text.
        seconds: most of a sound.
    """

    question: str | None = None
    text: str | None = None
    caption: str | None = None
    image: Path | None = None
    audio: Path | None = None
    video: Path | None = None
    voice: Path | None = None
    out: Path | None = None
    longest: int = 64
    seconds: float = 5.0

    def kinds(self) -> tuple[str, str]:
        """What is given and what is wanted: names of `DIRECTIONS`.

        Raises:
            DataError: nothing or too much is given, it is empty, or it does not lead to what is wanted.
        """
        given = [
            name
            for name in ("question", "text", "image", "audio", "video", "caption")
            if getattr(self, name) is not None
        ]
        source = given[0] if given else ""
        captioned = len(given) == 2 and given[1] == "caption" and source in FILMED
        if len(given) != 1 and not captioned:
            raise DataError(
                f"generate: got {' and '.join(given) or 'nothing'}; give one of a question, --text, --caption, "
                "--image, --audio, --video; only a film may have a --caption beside its first frames"
            )
        for name in ("question", "text"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                what = "prompt" if name == "question" else "--text"
                raise DataError(f"the {what} is empty; give at least one word")
        if self.longest < 1 or not 0 < self.seconds <= 600:
            raise DataError(
                f"generate: {self.longest} tokens, {self.seconds} seconds; wants 1 token or more, at most 600 seconds"
            )
        suffix = None if self.out is None else self.out.suffix.lower()
        if suffix not in SUFFIXES:
            raise DataError(f"--out {self.out}: wants .png (an image), .mp4 (a film) or .wav (a voice)")
        wanted = SUFFIXES[suffix]
        if (source, wanted) not in DIRECTIONS:
            ways = ", ".join(f"{a} to {b}" for a, b in DIRECTIONS)
            raise DataError(f"generate: no way from {source} to {wanted}; there are: {ways}")
        if self.voice is not None and (source, wanted) != ("text", "sound"):
            raise DataError(
                f"--voice {self.voice}: only a text that is read aloud has a voice; give --text and --out FILE.wav"
            )
        if self.out is not None and self.out.exists():
            raise DataError(f"--out {self.out}: exists already; choose a new file")
        if self.out is not None and not self.out.absolute().parent.is_dir():  # before the work, not after it
            raise DataError(f"--out {self.out}: no folder {self.out.parent}; make it, or choose another file")
        return source, wanted


def run(request: Request, creator: Creator, sampling: Sampling) -> str:
    """Generate what is asked for, and write it; the text to print.

    Raises:
        DataError: the request makes no sense, or a file cannot be read or written; the text names it.
    """
    made = DIRECTIONS[request.kinds()](request, creator, sampling)
    if isinstance(made, str):
        return made
    assert request.out is not None  # kinds() asks for text where it is None
    try:
        atomic_write(request.out, made)
    except OSError as error:
        raise DataError(f"{request.out}: cannot be written ({error.strerror}); choose another file") from None
    return f"written: {request.out}"


def _answer(request: Request, creator: Creator, sampling: Sampling) -> str:
    prompt = chat_prompt(creator.text, str(request.question))
    return creator.continue_text(prompt, sampling, longest=request.longest)


def _continue(request: Request, creator: Creator, sampling: Sampling) -> str:
    prompt = [BOS, *creator.text.encode(str(request.text))]
    return str(request.text) + creator.continue_text(prompt, sampling, longest=request.longest)


def _caption(request: Request, creator: Creator, sampling: Sampling) -> str:
    return creator.caption(_picture(request, creator), sampling, longest=request.longest)


def _describe(request: Request, creator: Creator, sampling: Sampling) -> str:
    assert request.video is not None
    clip = _clip(request.video, creator, creator.vision.config.frames)
    return creator.describe(clip, sampling, longest=request.longest)


def _transcribe(request: Request, creator: Creator, sampling: Sampling) -> str:
    assert request.audio is not None
    sound, wanted = _sound(request.audio, creator), creator.audio.config.sample_rate
    if len(sound) > request.seconds * wanted:
        raise DataError(
            f"{request.audio}: {len(sound) / wanted:.1f} s; at most {request.seconds:g} s are read, "
            "cut it or raise --seconds"
        )
    return creator.transcribe(sound, sampling, longest=request.longest)


def _draw(request: Request, creator: Creator, sampling: Sampling) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_pixels(creator.draw(str(request.caption), sampling)[None])[0]).save(file, "PNG")
    return file.getvalue()


def _film(request: Request, creator: Creator, sampling: Sampling) -> bytes:
    start = None
    if request.image is not None:
        start = _picture(request, creator)[None]
    elif request.video is not None:
        start = _clip(request.video, creator, creator.vision.config.frames - 1)
    made = _pixels(creator.film(request.caption or "", start, sampling))
    film = Film(made.shape[1])
    film.add([number * FILM_SECONDS for number in range(len(made))], made)
    return film.finish()


def _speak(request: Request, creator: Creator, sampling: Sampling) -> bytes:
    voice = None
    if request.voice is not None:
        sound = _sound(request.voice, creator)
        try:
            voice = creator.voice(sound)
        except DataError as error:
            raise DataError(f"--voice {request.voice}: {error}") from None
    pcm = creator.speak(str(request.text), sampling, seconds=request.seconds, voice=voice)
    file = io.BytesIO()
    soundfile.write(file, pcm.numpy(), creator.audio.config.sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _sound(path: Path, creator: Creator) -> Tensor:
    """A sound file's samples (n,) in [-1, 1] at the tokenizer's rate."""
    pcm, rate = media.read_audio(path)
    return torch.from_numpy(media.resample(pcm, rate, creator.audio.config.sample_rate)).clamp(-1, 1)


def _clip(path: Path, creator: Creator, most: int) -> Tensor:
    """The first frames of a film, at most so many: (t,3,H,W) in [0,1]."""
    side = creator.vision.config.image_size
    frames = zip(media.video_frames(path), range(most), strict=False)
    return _floats(np.stack([on_square(frame.pixels, side) for frame, _ in frames]))


def _picture(request: Request, creator: Creator) -> Tensor:
    assert request.image is not None
    pixels = on_square(media.read_image(request.image), creator.vision.config.image_size)
    return _floats(pixels[None])[0]


def _floats(frames: np.ndarray) -> Tensor:
    """uint8 (T,H,W,3) -> (T,3,H,W) in [0,1]."""
    return torch.from_numpy(frames).movedim(-1, 1).float() / 255


def _pixels(frames: Tensor) -> np.ndarray:
    """(T,3,H,W) in [0,1] -> uint8 (T,H,W,3)."""
    return (frames * 255).round().to(torch.uint8).movedim(1, -1).numpy()


FILMED = ("image", "video")  # what a film may begin with
DIRECTIONS: Mapping[tuple[str, str], Callable[[Request, Creator, Sampling], str | bytes]] = {
    ("question", "text"): _answer,
    ("text", "text"): _continue,
    ("text", "sound"): _speak,
    ("audio", "text"): _transcribe,
    ("caption", "image"): _draw,
    ("caption", "video"): _film,
    ("image", "text"): _caption,
    ("video", "text"): _describe,
    ("image", "video"): _film,
    ("video", "video"): _film,
}
