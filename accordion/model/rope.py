"""Uni-RoPE: rotary positions over (t, h, w) triples (foundation model, section 1).

The rotary frequencies of a head are dealt to the axes in turn (t, h, w, t, h, w, ...), so that each axis
has fast and slow ones; with t = h = w, as for text and audio, it is exactly plain RoPE.
"""

from typing import Any

import torch
from torch import Tensor

from accordion.model.norm import inverse_rms, rms_gradient, rms_norm

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


def queries_keys_values(qkv: Tensor, weight_q: Tensor, weight_k: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
    """Part qkv (B, S, 3, heads, D); queries and keys are RMS-normalised for each head (QK-norm), then rotated.

    Args:
        weight_q, weight_k: (D,) of the two norms.

    Returns:
        queries, keys and values, each (B, heads, S, D).
    """
    if torch.is_grad_enabled() and not qkv.is_cuda and qkv.dtype == weight_q.dtype:
        return _QueriesKeysValues.apply(qkv, weight_q, weight_k, *rope)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return rotate(rms_norm(q, weight_q), rope), rotate(rms_norm(k, weight_k), rope), v


class _QueriesKeysValues(torch.autograd.Function):
    """`queries_keys_values` in fewer passes over the memory than autograd takes, on a CPU."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, weight_q: Tensor, weight_k: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        saved, turned = [], []
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        for x, weight in ((q, weight_q), (k, weight_k)):
            scale = inverse_rms(x)
            unit = x * scale
            (a, b), (weight_a, weight_b) = unit.chunk(2, -1), weight.chunk(2)
            turned.append(_turn(a, b, (cos * weight_a, sin * weight_b), (sin * weight_a, cos * weight_b)))
            saved += [unit, scale, weight]
        ctx.save_for_backward(cos, sin, *saved)
        return turned[0], turned[1], v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The rotation back, then the gradient of `rms_norm`, each written where the product before it wants it."""
        cos, sin, *saved = ctx.saved_tensors
        rows, heads, length, width = grads[2].shape
        whole = grads[2].new_empty(rows, length, 3, heads, width)
        into = whole.permute(2, 0, 3, 1, 4)
        into[2].copy_(grads[2])
        grad_weights = []
        for at in range(2):
            unit, scale, weight = saved[3 * at : 3 * at + 3]
            a, b = grads[at].chunk(2, -1)
            grad = _turn(a, b, (cos, -sin), (-sin, cos))
            grad_weights.append(rms_gradient(grad, unit, scale, weight, out=into[at])[1])
        return whole, *grad_weights, None, None


def _turn(a: Tensor, b: Tensor, first: Rope, second: Rope) -> Tensor:
    """(a first_0 - b first_1, b second_1 + a second_0) of the halves a, b (B, heads, S, D/2)."""
    turned = a.new_empty((*a.shape[:-1], 2 * a.shape[-1]))
    left, right = turned.chunk(2, -1)
    torch.mul(a, first[0], out=left).addcmul_(b, first[1], value=-1)
    torch.mul(b, second[1], out=right).addcmul_(a, second[0])
    return turned
