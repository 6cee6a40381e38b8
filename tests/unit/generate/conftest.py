"""A tiny model with untrained but real tokenizers."""

from dataclasses import dataclass

import pytest
import torch

from accordion.config.data import AudioTokenizerConfig, TextTokenizerConfig, VisionTokenizerConfig
from accordion.config.pretrain import ModelConfig
from accordion.data.batch import VOICE_SIZE
from accordion.data.tokenizers.audio import AudioTokenizer
from accordion.data.tokenizers.text import TextTokenizer
from accordion.data.tokenizers.text_training import fit
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.model import Model

VISION = VisionTokenizerConfig(channels=8, bits=5, low_bits=(), image_size=16, scales=(1, 2, 4), frames=3)
AUDIO = AudioTokenizerConfig(channels=8, levels=3, codebook=8)


@dataclass
class Tools:
    text: TextTokenizer
    vision: VisionTokenizer
    audio: AudioTokenizer


@pytest.fixture(scope="session")
def tools() -> Tools:
    torch.manual_seed(0)
    audio = AudioTokenizer(AUDIO).eval()
    torch.nn.init.normal_(audio.quantizer.codebooks, std=0.3)
    text = fit(TextTokenizerConfig(vocabulary=450), ["the cat and the dog and the car"] * 20)
    return Tools(text, VisionTokenizer(VISION).eval(), audio)


@pytest.fixture(scope="session")
def model(tools: Tools) -> Model:
    config = ModelConfig(
        hidden=16, heads=2, experts=(4,) * 5, top_k=(2,) * 5, expert_hidden=8, shared_hidden=8, rope_base=1e4,
        text_vocabulary=tools.text.vocabulary, bits=5, scales=VISION.scales, frames=3, audio_levels=3,
        audio_codebook=8, video_window=1, vit_layers=1, vit_width=32, voice_size=VOICE_SIZE,
    )  # fmt: skip
    made = Model(config, seed=1).eval()
    torch.nn.init.normal_(made.embeddings.voice.weight, generator=torch.Generator().manual_seed(1))  # begins as zeros
    return made
