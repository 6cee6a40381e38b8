"""Settings of ingest, validation, tokenizers and packing."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from accordion.config.base import Seed, Settings


class SourceConfig(Settings):
    """One source of your own data (docs/data.md, "Your own data"). What a record states itself comes first."""

    kind: Literal["text", "images", "audio", "video", "retrieval"]
    path: str = Field(min_length=1, description="a file, a folder, or a pattern such as /data/shards/*.tar")
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$", description="source of its records, part of their ids")
    licence: str | None = Field(None, min_length=1)
    language: str | None = Field(None, pattern=r"^[A-Za-z]{2,3}([_-][A-Za-z0-9]+)*$", description="None: identified")
    role: Literal["train", "evaluation"] = Field("train", description="evaluation: all of it is held out")
    weight: float = Field(
        1.0, gt=0, le=1000, description="how often its training records are read, beside others of its kind"
    )

    @model_validator(mode="after")
    def _weighed(self) -> "SourceConfig":
        if self.weight != 1 and (self.kind == "retrieval" or self.role == "evaluation"):
            why = "a collection" if self.kind == "retrieval" else "what is held out"
            raise ValueError(f"weight: got {self.weight:g}, but {why} is not read in training; leave it out")
        return self


class LanguagesConfig(Settings):
    """How declared languages are checked, by an identifier whose model is in its package."""

    minimum_characters: int = Field(200, ge=20, description="shorter texts are not judged: too often wrong")
    confidence: float = Field(0.9, gt=0, le=1, description="probability from which another language is a mismatch")
    mismatch: Literal["tag", "quarantine"] = Field("tag", description="tag: kept; the column `identified` tells")


class DuplicatesConfig(Settings):
    """What counts as a near duplicate; exact ones always go."""

    text: float | None = Field(0.8, gt=0.3, le=1, description="Jaccard similarity of 5-token shingles; None: off")
    images: int | None = Field(2, ge=0, le=8, description="bits of 64 by which perceptual hashes differ; None: off")


class DecontaminationConfig(Settings):
    """Which overlap with evaluation text is taken out of the training text."""

    words: int = Field(13, ge=5, description="length of an n-gram, in words")
    characters: int = Field(26, ge=5, description="the same for scripts without spaces (Chinese, Japanese, Thai, ...)")
    most_ngrams: int = Field(50_000_000, ge=1, description="of the evaluation text held in memory, 8 bytes each")


class IngestConfig(Settings):
    """Which data to read and how to split it."""

    seed: Seed = 0
    tier: Literal["sample", "full"] = Field(
        "sample", description="sample: shipped in the repository, data/sample; full: built by `make data`"
    )
    source: str | None = Field(None, description="folder in the layout of data/sample; None: the tier's")
    validation_share: float = Field(0.1, gt=0, lt=0.5, description="share of groups held out, by group hash")
    sources: tuple[SourceConfig, ...] = Field((), description="your own data, beside the tier's")
    replace: tuple[Literal["text", "images", "audio", "video", "retrieval"], ...] = Field(
        (), description="kinds that `sources` replace: the tier's own records of them are left out"
    )
    train_domains: tuple[str, ...] = Field(
        ("libreoffice-help",), description="retrieval domains that may be trained on; the others only evaluate"
    )
    audio_rate: int = Field(8000, ge=4000, le=48_000, description="samples a second, tokenizers.audio.sample_rate")
    image_side: int = Field(256, ge=8, le=4096, description="longest side of a stored image, in pixels")
    clip_side: int = Field(32, ge=8, le=512, description="pixels of a video clip, tokenizers.vision.image_size")
    clip_frames: int = Field(4, ge=1, le=64, description="frames of a video clip, a multiple of the tokenizer's")
    clips: int = Field(5000, ge=1, description="most clips cut out of one film")
    languages: LanguagesConfig = LanguagesConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    decontamination: DecontaminationConfig = DecontaminationConfig()

    @model_validator(mode="after")
    def _replaced(self) -> "IngestConfig":
        empty = set(self.replace) - {source.kind for source in self.sources}
        if empty:
            raise ValueError(f"replace names {', '.join(sorted(empty))}, of which ingest.sources has none; add one")
        return self


class DriftConfig(Settings):
    """How far a version of the data may be from the one before; beyond what chance alone gives."""

    compare: bool = Field(True, description="false: look for no previous version")
    rows: float = Field(2.0, gt=1, description="most that a count may grow or shrink, as a factor")
    mix: float = Field(0.05, ge=0, le=1, description="Jensen-Shannon divergence of languages, sources, tokens, in bits")
    stability: float = Field(0.25, ge=0, description="population stability index where there are few categories")
    lengths: float = Field(0.15, ge=0, le=1, description="Kolmogorov-Smirnov distance of a length distribution")
    accept: tuple[str, ...] = Field(
        (), description="beginnings (8 or more hex digits) of the digests of versions whose drift is meant"
    )

    @field_validator("accept")
    @classmethod
    def _digests(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not re.fullmatch(r"[0-9a-f]{8,64}", value):
                raise ValueError(f"{value!r} is no beginning of a digest: 8 to 64 of the digits 0-9 and a-f, in quotes")
        return values


class ValidateConfig(Settings):
    """Bounds of the raw-data expectations."""

    minimum_rows: dict[str, int] = Field(
        default_factory=lambda: {"text": 500, "images": 100, "audio": 100, "video": 10}
    )
    text_languages: tuple[str, ...] = ("en", "de", "fr", "es", "it", "ru", "ja", "zh")
    audio_languages: tuple[str, ...] = ("en", "es", "fr", "it", "ru")
    other_languages: bool = Field(False, description="whether there may be more languages than these")
    language_share: tuple[float, float] = Field(
        (0.02, 0.6), description="of each language among its modality's records"
    )
    language_agreement: float = Field(
        0.8, ge=0, le=1, description="least share of a language's texts that ingest did not identify as another"
    )
    text_characters: tuple[int, int] = (1, 100_000)
    text_median: tuple[float, float] = Field((5, 20_000), description="characters of the middle text")
    audio_seconds: tuple[float, float] = (0.1, 60.0)
    audio_median: tuple[float, float] = Field((0.2, 30.0), description="seconds of the middle clip")
    audio_level: float = Field(-55.0, lt=0, description="lowest level of a clip, dB under full scale (RMS)")
    silent_level: float = Field(-50.0, lt=0, description="20 ms under this level are silent, dB under full scale")
    silent_share: float = Field(0.8, ge=0, le=1, description="highest share of a clip that is silent")
    clipped_share: float = Field(0.05, ge=0, le=1, description="highest share of a clip's samples at full scale")
    picture_contrast: float = Field(4.0, ge=0, description="least standard deviation of pixel values (0 to 255)")
    flat_share: float = Field(0.97, ge=0, le=1, description="highest share of a picture that is one colour")
    blank_frames: float = Field(0.5, ge=0, le=1, description="highest share of a clip's frames under picture_contrast")
    frozen_clips: float = Field(0.01, ge=0, le=1, description="highest share of clips in which nothing moves")
    query_characters: tuple[int, int] = (1, 1_000)
    quarantined_share: float = Field(0.05, ge=0, le=1, description="highest share of records that could not be read")
    copies_share: float = Field(0.3, ge=0, le=1, description="highest share of exact copies that ingest removed")
    near_copies_share: float = Field(0.5, ge=0, le=1, description="highest share of near copies that ingest removed")
    drift: DriftConfig = DriftConfig()


class TextTokenizerConfig(Settings):
    """Byte-level BPE over UTF-16BE (foundation model, section 2)."""

    vocabulary: int = Field(2048, ge=400, description="16 control ids, 353 base tokens, the rest learned merges")


class VisionLossConfig(Settings):
    """Weights of the vision tokenizer's losses; a term of weight 0 is not computed."""

    absolute: float = Field(1.0, ge=0, description="mean |x - y|")
    squared: float = Field(2.0, ge=0, description="mean (x - y)^2")
    commitment: float = Field(0.25, ge=0, description="mean (z - sg(code))^2")
    entropy: float = Field(0.0, ge=0, description="mean entropy of each bit's decision: low, decisions are sure")
    diversity: float = Field(0.01, ge=0, description="minus the entropy of each bit's mean: high, both values are used")
    perceptual: float = Field(0.0, ge=0, description="distance in the features of EfficientNet-Lite0")
    semantic: float = Field(
        0.0, ge=0, description="1 - cosine of the decoder's features to those of EfficientNet-Lite0"
    )
    adversarial: float = Field(0.0, ge=0, description="patch critic with hinge loss, times its adaptive weight")
    adversarial_start: float = Field(0.5, ge=0, lt=1, description="share of the steps before the critic is heard")
    lecam: float = Field(0.01, ge=0, description="weight of LeCam's regularisation of the critic")


class VisionTokenizerConfig(Settings):
    """Multi-scale residual bit-wise codes (foundation model, section 2)."""

    image_size: int = Field(32, ge=8)
    scales: tuple[int, ...] = Field((1, 2, 4, 8), description="side of each scale, in tokens; the last is the latent's")
    bits: int = Field(10, ge=1, le=32)
    low_bits: tuple[int, ...] = Field(
        (), description="smaller budgets of a token, rising: training starts with the first and switches up to `bits`"
    )
    switch_share: float = Field(0.3, gt=0, le=1, description="share of the steps before the last switch")
    quantizer: Literal["lfq", "bsq"] = Field("lfq", description="signs of a free latent, or of one on a unit sphere")
    channels: int = 32
    frames: int = Field(4, ge=1, description="frames of a video clip")
    video_share: float = Field(0.25, ge=0, le=1, description="share of the steps, at the end, that train on clips")
    drop_scales: float = Field(0.1, ge=0, le=1, description="share of the frames that keep only their first scales")
    drop_bits: float = Field(0.1, ge=0, le=1, description="share of the frames that keep only a smaller budget")
    augment: float = Field(0.0, ge=0, le=1, description="share of the frames that are zoomed, recoloured and mixed")
    average: float = Field(0.0, ge=0, lt=1, description="decay of the running mean of the weights that is kept")
    steps: int = Field(300, ge=1)
    batch: int = 32
    learning_rate: float = 5e-3
    seed: Seed = 0
    losses: VisionLossConfig = VisionLossConfig()

    @property
    def budgets(self) -> tuple[int, ...]:
        """Bits of a token that the tokenizer can be used with, rising; the last is `bits`."""
        return (*self.low_bits, self.bits)

    @model_validator(mode="after")
    def _rising(self) -> "VisionTokenizerConfig":
        if min(self.budgets) < 1 or list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"low_bits {self.low_bits} must be positive, rise, and stay below bits ({self.bits})")
        return self


class AudioTokenizerConfig(Settings):
    """Residual vector quantization at 12.5 frames a second (foundation model, section 2)."""

    sample_rate: int = 8000
    frame_samples: int = Field(640, description="8000 / 640 = 12.5 frames a second; a multiple of 8")
    levels: int = Field(4, ge=1, description="codes of a frame")
    codebook: int = Field(64, ge=2, description="entries of each level's codebook")
    width: int = Field(32, ge=2, description="numbers of the vector that is quantized")
    channels: int = Field(48, ge=8, description="width at 100 Hz is twice this, at 12.5 Hz four times")
    blocks: int = Field(2, ge=1, description="residual blocks of encoder and decoder at 12.5 Hz")
    context: int = Field(1, ge=0, description="frames before its own that each block of the encoder sees")
    rounds: int = Field(32, ge=1, description="of Griffin-Lim, which finds the phase of what is decoded")
    steps: int = Field(400, ge=0, description="0: only what is computed in closed form")
    batch: int = 16
    segment: int = Field(16, ge=4, description="frames of a training example")
    learning_rate: float = 2e-3
    teacher: str | None = Field(
        "data/teacher/speech.npz",
        description="file of speech-encoder features that code 1 learns, relative to the repository; null, or a file "
        "that knows under half of the clips: mel cepstra take their place",
    )
    semantic: float = Field(0.7, ge=0, le=1, description="how much the distance of code 1 is the teacher's")
    distillation: float = Field(0.05, ge=0, description="weight of the teacher's features read off code 1")
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits(self) -> "AudioTokenizerConfig":
        if self.width > min(4 * self.channels, 256):
            raise ValueError(f"width is {self.width}; it wants at most 4 x channels, {4 * self.channels}, and 256")
        return self


class TokenizersConfig(Settings):
    """The three tokenizers."""

    text: TextTokenizerConfig = TextTokenizerConfig()
    vision: VisionTokenizerConfig = VisionTokenizerConfig()
    audio: AudioTokenizerConfig = AudioTokenizerConfig()


class PackConfig(Settings):
    """How documents become fixed-length sequences."""

    sequence: int = Field(512, ge=16, description="positions in a packed sequence")
    seed: Seed = 0
    passes: int = Field(1, ge=1, description="times the training text is encoded, each with its own BPE-dropout")
    dropout: float = Field(0.1, ge=0, lt=1, description="BPE-dropout probability, training text only")
    positions: int = Field(1_200_000, ge=1, description="most positions of the training split, before padding")
    understanding: bool = Field(
        True, description="images and clips before their captions are given as features (pretrain.model.vit_layers), "
        "in a fifth of the positions; false: images as the bits that are generated, clips not at all"
    )  # fmt: skip
    drop_captions: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of the training images and clips after a caption that have none, for guidance",
    )
    voices: bool = Field(
        True, description="speech after its transcript is given its speaker's voice, as a vector of another clip of "
        "that speaker; false: none is, and a model of these shards takes none"
    )  # fmt: skip
    drop_voices: float = Field(
        0.2, ge=0, le=1, description="share of that speech, in training, whose voice is not told, for speech in any"
    )
    audio_gain: float = Field(0.5, gt=0, le=1, description="quietest repeat of a training clip, as a factor")
    audio_speeds: tuple[float, ...] = Field(
        (0.85, 1.0, 1.15), min_length=1, description="speeds at which repeats of a training clip are played; at each "
        "its speaker is another voice, since the pitch changes too"
    )  # fmt: skip

    @field_validator("audio_speeds")
    @classmethod
    def _speeds_are_speech(cls, speeds: tuple[float, ...]) -> tuple[float, ...]:
        for speed in speeds:
            if not 0.5 <= speed <= 2:
                raise ValueError(f"got {speed:g}; wants 0.5 to 2")
        return speeds

    shares: dict[Literal["text", "image", "video", "audio"], float] = Field(
        {"text": 0.5, "image": 0.15, "video": 0.2, "audio": 0.15},
        description="share of the positions that training reads, by kind of document; text fills sequences of media",
    )
    long_sequence: int = Field(
        0,
        ge=0,
        description="positions in a sequence of stage 2 (pretrain.long_context), a multiple of sequence; 0: none",
    )
    long_positions: int = Field(400_000, ge=1, description="most positions of those sequences, before padding")
    window: int = Field(64, ge=1, description="sequences open at once while packing")
    shard_sequences: int = Field(2048, ge=1, description="sequences in a file, at most")

    @model_validator(mode="after")
    def _whole(self) -> "PackConfig":
        if set(self.shares) != {"text", "image", "video", "audio"} or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError("shares needs text, image, video and audio, adding up to 1")
        if self.long_sequence and (self.long_sequence % self.sequence or self.long_sequence == self.sequence):
            raise ValueError(f"long_sequence {self.long_sequence} must be a multiple of sequence, {self.sequence}")
        return self

    @property
    def splits(self) -> dict[str, "PackConfig"]:
        """The splits to pack, each with the settings it is packed with."""
        own = {"train": self, "val": self}
        if self.long_sequence:
            longer = {"sequence": self.long_sequence, "positions": self.long_positions, "seed": self.seed + 1}
            own["long"] = self.model_copy(update=longer)
        return own


class ValidateShardsConfig(Settings):
    """Bounds of the shard expectations."""

    minimum_tokens: dict[str, int] = Field(
        default_factory=lambda: {"text": 10_000, "image": 1_000, "video": 1_000, "audio": 1_000}
    )
    padding_share: float = Field(0.2, ge=0, le=1, description="highest share of padding positions")
    modality_share: tuple[float, float] = Field((0.001, 0.95), description="of each modality in the filled positions")
    base_share: float = Field(0.7, ge=0, le=1, description="highest share of text tokens that are bytes or characters")
    text_entropy: float = Field(4.0, ge=0, description="least entropy of the text tokens, bits")
    code_entropy: float = Field(0.1, ge=0, le=1, description="least entropy of each audio level, of log2(codebook)")
    bit_balance: float = Field(0.02, ge=0, le=0.5, description="least share of ones, and of zeros, in each vision bit")
    drift: DriftConfig = DriftConfig()
