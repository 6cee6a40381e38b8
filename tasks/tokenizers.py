"""Tokenizers: one for each of text, vision and audio, trained on the corpus after it was validated."""

from flytekit import Resources

from accordion.config.data import AudioTokenizerConfig, TextTokenizerConfig, VisionTokenizerConfig
from accordion.store import Artifact
from tasks._run import Run
from tasks._stage import Stage

TEXT = Stage(
    "text_tokenizer",
    "accordion.data.tokenizers.text_training:train_text_tokenizer",
    TextTokenizerConfig,
    kind="tokenizer-text",
)
VISION = Stage(
    "vision_tokenizer",
    "accordion.data.tokenizers.vision_training:train_vision_tokenizer",
    VisionTokenizerConfig,
    kind="tokenizer-vision",
)
AUDIO = Stage(
    "audio_tokenizer",
    "accordion.data.tokenizers.audio_training:train_audio_tokenizer",
    AudioTokenizerConfig,
    kind="tokenizer-audio",
    reads=("data/teacher",),
)
SIZE = Resources(cpu="2", mem="4Gi")


@TEXT.task(requests=SIZE)
def text_tokenizer(run: Run, config: str, corpus: Artifact) -> Artifact:
    """Byte-pair codes of text."""
    return TEXT.run(run, config, corpus=corpus)


@VISION.task(requests=SIZE)
def vision_tokenizer(run: Run, config: str, corpus: Artifact) -> Artifact:
    """Multi-scale bit-wise codes of images and video frames."""
    return VISION.run(run, config, corpus=corpus)


@AUDIO.task(requests=SIZE)
def audio_tokenizer(run: Run, config: str, corpus: Artifact) -> Artifact:
    """Residual codes of audio."""
    return AUDIO.run(run, config, corpus=corpus)
