"""Experts parted by modality: what one pool for all of them is compared with, at equal FLOPs."""

import torch
from torch import Tensor

from accordion.config.pretrain import ModelConfig
from accordion.data.batch import AUDIO, IMAGE, MODALITIES, VIDEO

PARTS = 4  # of every four experts two belong to text, one to images and video, one to audio


def isolation(config: ModelConfig) -> Tensor:
    """(5, E) bool: which experts a position of each modality (padding too) may use."""
    part = torch.arange(max(config.experts)) % PARTS
    table = (part < 2).expand(len(MODALITIES), -1).clone()
    table[IMAGE] = table[VIDEO] = part == 2
    table[AUDIO] = part == 3
    return table
