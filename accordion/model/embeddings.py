"""Inputs of the backbone: text tokens, vision features and audio codes become hidden states."""

import torch
from torch import Tensor, nn

from accordion.config.pretrain import ModelConfig
from accordion.data.batch import AUDIO, IMAGE, VIDEO, Batch
from accordion.model.understanding import Understanding


class Embeddings(nn.Module):
    """One embedding for each kind of position (foundation model, sections 3 and 4).

    Text: a table. Vision: a projection of the accumulated feature plus the scale's embedding; the first scale of
    the first frame has no feature yet and gets a learned start. Audio: the sum of its levels' embeddings. An image or
    clip to understand: what `Understanding` sees of it. A voice that is told: a projection of what describes it, added
    to the embedding of its token.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.text = nn.Embedding(config.text_vocabulary, config.hidden)
        self.vision = nn.Linear(config.bits, config.hidden, bias=False)
        self.scale = nn.Embedding(len(config.scales), config.hidden)
        self.start = nn.Parameter(torch.empty(config.hidden))
        self.audio = nn.Parameter(torch.empty(config.audio_levels, config.audio_codebook + 1, config.hidden))

        self.understanding = Understanding(config) if config.vit_layers else None
        self.voice = nn.Linear(config.voice_size, config.hidden, bias=False) if config.voice_size else None

    def forward(self, batch: Batch) -> Tensor:
        """Hidden states (B, S, H) of the positions of a batch; padding gets that of text id 0."""
        x = self.text(batch.token)  # (B, S, H)
        flat = x.view(-1, x.shape[-1])
        kind = batch.modality.view(-1)
        drawn = ((kind == IMAGE) | (kind == VIDEO)) & (batch.scale.view(-1) >= 0)
        vision = drawn.nonzero().squeeze(1)
        audio = (kind == AUDIO).nonzero().squeeze(1)
        if len(vision):
            scale = batch.scale.view(-1)[vision]
            first = (scale == 0) & (batch.frame.view(-1)[vision] == 0)
            feature = self.vision(batch.vision_input.view(-1, batch.vision_input.shape[-1])[vision].to(x.dtype))
            feature = feature + self.scale(scale) + self.start * first.unsqueeze(1)
            flat = flat.index_copy(0, vision, feature)
        if len(audio):
            codes = batch.codes.view(-1, batch.codes.shape[-1])[audio]  # (n, Q)
            levels = torch.arange(codes.shape[1], device=codes.device)
            flat = flat.index_copy(0, audio, self.audio[levels, codes].sum(1))
        if self.voice is not None and len(told := (batch.voice.view(-1) >= 0).nonzero().squeeze(1)):
            vectors = batch.voice_vector[told // batch.voice.shape[1], batch.voice.view(-1)[told]]  # (n, V)
            flat = flat.index_add(0, told, self.voice(vectors.to(x.dtype)).to(x.dtype))
        states = flat.view_as(x)
        return states if self.understanding is None else self.understanding(batch, states)
