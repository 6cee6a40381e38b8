"""What a model can be asked for: text after anything, an image, a film, a voice; each a document as in training."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from accordion.data.batch import IMAGE, VIDEO
from accordion.data.documents import Spoken, spoken_prompt
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.text import BOA, BOI, BOS, BOV, EOA, EOI, EOS, EOV, SPECIAL, TextTokenizer
from accordion.data.tokenizers.vision import VisionTokenizer, accumulate
from accordion.data.tokenizers.voice import LEAST_SECONDS, LONGEST_SECONDS
from accordion.errors import DataError
from accordion.generate.sampling import Sampling, draw, draw_bits
from accordion.generate.stream import Stream
from accordion.model import Model

LONGEST_PROMPT = 4096  # positions; attention over the prompt grows with its square


class Tools(Protocol):
    """The tokenizers, each loaded when it is first asked for."""

    @property
    def text(self) -> TextTokenizer: ...
    @property
    def vision(self) -> VisionTokenizer: ...
    @property
    def audio(self) -> AudioTokenizer: ...


class Creator:
    """Generates with one model and the tokenizers it was trained with.

    Args:
        model: a checkpoint, a policy or an extracted member, in evaluation mode.
        tools: its tokenizers; one of another model is refused when it is first used.
    """

    def __init__(self, model: Model, tools: Tools) -> None:
        self.model, self._tools = model, tools

    @property
    def text(self) -> TextTokenizer:
        """The text tokenizer, of the model's vocabulary."""
        self._agree("text", (self._tools.text.vocabulary,), (self.model.config.text_vocabulary,))
        return self._tools.text

    @property
    def vision(self) -> VisionTokenizer:
        """The vision tokenizer, of the model's bits and scales."""
        own, config = self._tools.vision.config, self.model.config
        self._agree("vision", (own.bits, *own.scales), (config.bits, *config.scales))
        return self._tools.vision

    @property
    def audio(self) -> AudioTokenizer:
        """The audio tokenizer, of the model's levels and codebook."""
        own, config = self._tools.audio.config, self.model.config
        self._agree("audio", (own.levels, own.codebook), (config.audio_levels, config.audio_codebook))
        return self._tools.audio

    def _agree(self, part: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if given != wanted:
            raise DataError(
                f"{part} tokenizer: sizes {given}, the model was trained with {wanted}; give the tokenizer of its run"
            )

    def continue_text(self, prompt: Sequence[int], sampling: Sampling, *, longest: int) -> str:
        """The text after token ids that begin with `BOS`, until `EOS` or `longest` tokens."""
        stream = self._stream(len(prompt) + longest)
        return self._text_after(stream, stream.tokens(prompt), sampling, longest)

    def caption(self, picture: Tensor, sampling: Sampling, *, longest: int = 64) -> str:
        """What the model says of a picture (3,H,W) in [0,1]: the text after `BOS BOI <image> EOI`.

        A model that was not trained with features for understanding reads the bits of the picture.
        """
        if self.model.config.vit_layers:
            return self._seen(picture[None], IMAGE, (BOI, EOI), sampling, longest)
        bits = self.vision.encode(picture[None, None])
        stream = self._stream(4 + self._cells() + longest)
        stream.tokens([BOS, BOI])
        stream.read(stream.builder.vision(IMAGE, bits).parts[-1])
        return self._text_after(stream, stream.tokens([EOI]), sampling, longest)

    def describe(self, clip: Tensor, sampling: Sampling, *, longest: int = 64) -> str:
        """What the model says of a clip (T,3,H,W) in [0,1]: the text after `BOS BOV <frames> EOV`.

        Raises:
            DataError: the model was not trained with clips before their captions.
        """
        if not self.model.config.vit_layers:
            raise DataError(
                "video: the model was trained without features for understanding, so it has never seen a clip before "
                "its caption; use one packed with pack.understanding=true"
            )
        return self._seen(clip, VIDEO, (BOV, EOV), sampling, longest)

    def _seen(self, frames: Tensor, modality: int, marks: tuple[int, int], sampling: Sampling, longest: int) -> str:
        with torch.no_grad():
            latent = self.vision.latent(frames[None])
        stream = self._stream(4 + (len(frames) + 3) * latent.shape[2] ** 2 // 4 + longest)
        stream.tokens([BOS, marks[0]])
        stream.read(stream.builder.look(modality, (frames * 255).round().to(torch.uint8), latent).parts[-1])
        return self._text_after(stream, stream.tokens([marks[1]]), sampling, longest)

    def transcribe(self, pcm: Tensor, sampling: Sampling, *, longest: int = 128) -> str:
        """What the model hears in samples (n,) at the tokenizer's rate: the text after `BOS BOA <frames> EOA`."""
        codes = self.audio.encode(pcm)
        stream = self._stream(3 + len(codes) + longest)
        stream.sound(codes, [BOS, BOA])
        return self._text_after(stream, stream.tokens([EOA]), sampling, longest)

    def draw(self, caption: str, sampling: Sampling) -> Tensor:
        """A picture (3,H,W) in [0,1] for a caption; an empty one asks for any picture."""
        return self._frames(caption, BOI, IMAGE, None, 1, sampling)[0]

    def film(self, caption: str, start: Tensor | None, sampling: Sampling) -> Tensor:
        """A whole clip (T,3,H,W) in [0,1] for a caption, continuing the frames `start` (t,3,H,W), t < T, as they are.

        Raises:
            DataError: nothing is left to continue.
        """
        frames = self.vision.config.frames
        if start is not None and not 1 <= len(start) < frames:
            raise DataError(f"video: {len(start)} frames to begin with; a clip has {frames}, give 1 to {frames - 1}")
        return self._frames(caption, BOV, VIDEO, start, frames, sampling)

    def voice(self, pcm: Tensor) -> Tensor:
        """What describes the voice heard in samples (n,) at the tokenizer's rate: (V,), for `speak`.

        Raises:
            DataError: the model was trained without voices, or next to nothing sounds.
        """
        size, encoder = self.model.config.voice_size, self.audio.voices
        if not size:
            raise DataError(
                "the model was trained without voices, so it cannot speak in a given one; use one packed with "
                "pack.voices=true"
            )
        found = encoder(pcm)
        if found is None:
            raise DataError(
                f"less than {LEAST_SECONDS:g} s of the {len(pcm) / encoder.rate:.2f} s sound (the first "
                f"{LONGEST_SECONDS} s are heard), too little to know a voice by; give speech"
            )
        self._agree("audio", (len(found),), (size,))
        return found

    def speak(self, text: str, sampling: Sampling, *, seconds: float, voice: Tensor | None = None) -> Tensor:
        """A voice that reads the text: samples (n,) at the tokenizer's rate, at most so many seconds.

        Level after level of a frame is drawn at its layer; the first frame in which any level ends the sound, ends it.

        Args:
            voice: (V,), in which to speak, from `voice`; None: any.
        """
        config = self.audio.config
        longest = max(1, round(seconds * config.sample_rate / config.frame_samples))
        prompt = spoken_prompt(self.text.encode(text), Spoken(self.model.config.voice_size > 0, voice))
        stream, generator = self._stream(len(prompt) + longest), sampling.generator()
        frames: list[Tensor] = []
        codes = torch.zeros(config.levels, dtype=torch.int64)

        def choose(level: int, logits: Tensor) -> Tensor:
            if not frames:  # a sound has at least one
                logits = logits.index_fill(1, torch.tensor([config.codebook], device=logits.device), float("-inf"))
            codes[level] = draw(logits[0], sampling, generator)
            return codes[level : level + 1].to(logits.device)

        stream.tokens(prompt, choose, voice)
        while int(codes.max()) < config.codebook and len(frames) < longest:
            frames.append(codes.clone())
            if len(frames) < longest:
                stream.frame(frames[-1], choose)
        return self.audio.decode(torch.stack(frames))

    def _frames(
        self, caption: str, begin: int, modality: int, start: Tensor | None, count: int, sampling: Sampling
    ) -> Tensor:
        """Frames (T,3,H,W), drawn frame by frame and scale by scale; each scale is one forward pass."""
        model, tokenizer, generator = self.model, self.vision, sampling.generator()
        words = self.text.encode(caption)
        prompts = [[BOS, *words, begin], [BOS, begin]]  # the second is the one without a caption
        weights = [sampling.guidance, 1 - sampling.guidance]
        asked = [(prompt, weight) for prompt, weight in zip(prompts, weights, strict=True) if weight]
        streams = [self._stream(len(prompt) + count * self._cells()) for prompt, _ in asked]
        for stream, (prompt, _) in zip(streams, asked, strict=True):
            stream.tokens(prompt)
        scales = model.config.scales
        bits = [torch.zeros(1, count, side, side, model.config.bits, dtype=torch.uint8) for side in scales]
        known = 0
        if start is not None:
            known = len(start)
            for whole, given in zip(bits, tokenizer.encode(start[None]), strict=True):
                whole[:, :known] = given
        places = [stream.builder.vision(modality, bits).parts[-1] for stream in streams]
        at = known * self._cells()
        if known:
            for stream, place in zip(streams, places, strict=True):
                stream.read({name: values[:at] for name, values in place.items()})
        for frame in range(known, count):
            for scale, side in enumerate(scales):
                feature = accumulate(bits)[0][scale][0, frame].flatten(0, 1).numpy()  # (side^2, D)
                logits = torch.zeros(side * side, model.config.bits)
                for stream, place, (_, weight) in zip(streams, places, asked, strict=True):
                    part = {name: values[at : at + side * side] for name, values in place.items()}
                    part["vision_input"][:] = feature  # a view: the place keeps it
                    logits = logits + weight * stream.bit_logits(stream.read(part)).cpu()
                bits[scale][0, frame] = draw_bits(logits, sampling, generator).unflatten(0, (side, side))
                at += side * side
        return tokenizer.decode(bits)[0]

    def _text_after(self, stream: Stream, states: Tensor, sampling: Sampling, longest: int) -> str:
        generator = sampling.generator()
        ids: list[int] = []
        for count in range(longest):
            logits = stream.token_logits(states).clone()
            # control ids are not text, and an answer has at least one token
            logits[[id_ for id_ in range(SPECIAL) if id_ != EOS or not ids]] = float("-inf")
            ids.append(draw(logits, sampling, generator))
            if ids[-1] == EOS or count + 1 == longest:
                break
            states = stream.tokens(ids[-1:])
        return whole_characters(self.text.decode([id_ for id_ in ids if id_ != EOS]))

    def _stream(self, length: int) -> Stream:
        if length > LONGEST_PROMPT:
            raise DataError(f"generation: {length} positions; at most {LONGEST_PROMPT}, give less or ask for less")
        return Stream(self.model, length)

    def _cells(self) -> int:
        """Positions of a frame."""
        return sum(side * side for side in self.model.config.scales)


def whole_characters(text: str) -> str:
    """The text with a replacement character for each half of a pair that a model wrote alone: no file takes those."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
