"""Outputs of the backbone: next text token, the token after it, vision bits, audio codes."""

import torch
from torch import Tensor, nn

from accordion.config.pretrain import ModelConfig
from accordion.model.norm import RmsNorm, rms_norm


class Heads(nn.Module):
    """Output heads; text and vision read the final normed state, each audio level its own top layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, codes, levels = config.hidden, config.audio_codebook + 1, config.audio_levels
        self.text = nn.Linear(hidden, config.text_vocabulary, bias=False)
        self.vision = nn.Linear(hidden, config.bits)
        self.audio_norm = nn.Parameter(torch.ones(levels, hidden))
        self.audio = nn.Parameter(torch.empty(levels, codes, hidden))
        self.audio_code = nn.Parameter(torch.empty(levels - 1, codes, hidden))
        self.mtp_norm_state = RmsNorm(hidden)
        self.mtp_norm_token = RmsNorm(hidden)
        self.mtp_mix = nn.Linear(2 * hidden, hidden, bias=False)
        self.mtp_norm = RmsNorm(hidden)

    def audio_logits(self, level: int, state: Tensor) -> Tensor:
        """Logits (n, C + 1) of the code of `level` (from 0) of the next frame, from its layer's output (n, H).

        Index C is end-of-audio, at every level.
        """
        return rms_norm(state, self.audio_norm[level]) @ self.audio[level].t()

    def mtp_logits(self, state: Tensor, next_token: Tensor) -> Tensor:
        """Logits (n, V) of the token after the next (multi-token prediction, arXiv 2412.19437 section 2.2, here
        without attention of its own), from the final state (n, H) and the embedding of the next token (n, H)."""
        mixed = torch.cat((self.mtp_norm_state(state), self.mtp_norm_token(next_token)), -1)
        return self.text(self.mtp_norm(state + self.mtp_mix(mixed)))
