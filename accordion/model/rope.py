"""Uni-RoPE: rotary positions over (t, h, w) triples (foundation model, section 1).

The rotary frequencies of a head are dealt to the axes in turn (t, h, w, t, h, w, ...), so that each axis
has fast and slow ones; with t = h = w, as for text and audio, it is exactly plain RoPE.
"""

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]  # cosines, sines: (B, 1, S, D/2) each


def rope_angles(positions: Tensor, head_width: int, base: float) -> Tensor:
    """Rotation angles (B, S, D/2).

    Args:
        positions: (B, S, 3) float, (t, h, w) of each position.
        head_width: D, even.
        base: of the geometric row of frequencies.
    """
    pairs = head_width // 2
    index = torch.arange(pairs, device=positions.device)
    frequency = base ** (-index.float() / pairs)  # (D/2,)
    return positions.float().index_select(-1, index % 3) * frequency


def rope_table(positions: Tensor, head_width: int, base: float) -> Rope:
    """Cosines and sines of the angles, see `rope_angles`."""
    angle = rope_angles(positions, head_width, base)
    return angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the pairs (x_i, x_{i + D/2}) of queries or keys x (B, heads, S, D)."""
    cos, sin = rope
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
