"""SwiGLU experts in turn, a few at a time, with a hand-written backward pass: for CPUs, and float32 anywhere.

Between the products everything is done for about `ROWS` assignments at once, which the core's cache holds: gathered
tokens, activations and their gradients never see the memory. Of a forward pass only the first product is kept, since
the rest is sooner computed again than read. Autograd over a loop of slices would fill a gradient of the whole weight
for each expert.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 64  # assignments an expert of a chunk, below which gradients are multiplied in columns
ROWS = 128  # 128 rows of 3 x 256 activations and as many gradients are 0.8 MB


class Spare:
    """The memory of a layer's last gradients, for the next ones.

    A gradient of all experts is too large for the C library to keep when it is freed. Fresh pages for it, each a trap
    into the system, cost as much as a fifth of the layer's forward and backward pass.
    """

    def __init__(self) -> None:
        self._of_shape: dict[torch.Size, Tensor] = {}

    def forget(self, weight: nn.Parameter) -> None:
        """Drop the gradient of a weight, as `zero_grad` does; nobody else may go on using it."""
        if type(weight.grad) is Tensor and not weight.is_cuda:  # a GPU's memory is kept by PyTorch, a shard is FSDP's
            self._of_shape[weight.shape] = weight.grad
        weight.grad = None

    def take(self, weight: Tensor) -> Tensor:
        """Memory for a gradient of a weight, not filled."""
        kept = self._of_shape.pop(weight.shape, None)
        return torch.empty_like(weight) if kept is None or kept.dtype != weight.dtype else kept


class Chunk(NamedTuple):
    """Assignments that are computed together: their rows, and which of these each expert has."""

    rows: slice
    members: list[tuple[int, slice]]


def chunks_of(counts: Sequence[int]) -> list[Chunk]:
    """Experts with `counts` assignments each, in chunks of at least `ROWS` of them, or what is left."""
    chunks, members, start, end = [], [], 0, 0
    for expert, count in enumerate(counts):
        if count:
            members.append((expert, slice(end - start, end - start + count)))
            end += count
        if end - start >= ROWS:
            chunks.append(Chunk(slice(start, end), members))
            members, start = [], end
    return [*chunks, Chunk(slice(start, end), members)] if members else chunks


class ExpertsInTurn(torch.autograd.Function):
    """out[n] = sum over the assignments (n, e, gate) of gate * W_out[e] SwiGLU(W_in[e] x[n])."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gates: Tensor, weight_in: Tensor, weight_out: Tensor, order: Tensor, place: Tensor,
        counts: Tensor, spare: Spare,
    ) -> Tensor:  # fmt: skip
        """Run the chosen experts.

        Args:
            x: (n, H) tokens.
            gates: (n, K) weight of each choice.
            weight_in: (E, H, 2I); weight_out: (E, I, H).
            order, place, counts: a `Dispatch`.
            spare: where the gradients of both weights find memory.
        """
        tokens = order // gates.shape[1]  # (A + 1,)
        ctx.counts, ctx.spare = counts.tolist(), spare
        first, second = weight_in.unbind(), weight_out.unbind()
        both = x.new_empty(len(order), weight_in.shape[2])
        result = x.new_empty(len(order), x.shape[1])
        result[-1] = 0.0  # stands for the choices that are not computed
        for rows, members in chunks_of(ctx.counts):
            _products(x.index_select(0, tokens[rows]), first, members, both[rows])
            gate, up = both[rows].chunk(2, -1)
            _products(F.silu(gate).mul_(up), second, members, result[rows])
        ctx.save_for_backward(x, gates, weight_in, weight_out, order, place, both)
        # slot by slot, in one pass: the sum does not depend on how many slots are unused
        return F.embedding_bag(place.view_as(gates), result, per_sample_weights=gates, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, gates and both weights; an expert nobody chose gets zeros."""
        x, gates, weight_in, weight_out, order, place, both = ctx.saved_tensors
        tokens, gate_of = order // gates.shape[1], gates.reshape(-1)[order].unsqueeze(1)  # (A + 1, 1)
        grad_in, grad_out = (ctx.spare.take(weight) for weight in (weight_in, weight_out))
        first, second = weight_in.unbind(), weight_out.unbind()
        into_first, into_second = grad_in.unbind(), grad_out.unbind()
        dots, grad_inputs = x.new_zeros(len(order)), x.new_empty(len(order), x.shape[1])
        grad_inputs[-1] = 0.0
        one = x.new_ones(())
        for rows, members in chunks_of(ctx.counts):
            grad_rows = grad.index_select(0, tokens[rows])
            grad_active = grad_rows.new_empty(len(grad_rows), len(second[0]))  # still to be multiplied by the gate
            _products_back(grad_rows, second, members, grad_active)
            gate, up = both[rows].chunk(2, -1)
            chance = gate.sigmoid()
            silu = gate * chance
            slope = torch.lerp(silu, one, chance)  # silu' = s + silu (1 - s)
            active = silu * up
            torch.sum(grad_active * active, -1, out=dots[rows])
            _outers(active.mul_(gate_of[rows]), grad_rows, members, into_second)
            grad_active.mul_(gate_of[rows])
            grad_both = torch.cat((slope.mul_(up).mul_(grad_active), silu.mul_(grad_active)), -1)
            _outers(x.index_select(0, tokens[rows]), grad_both, members, into_first)
            _products_back(grad_both, first, members, grad_inputs[rows])
        if 0 in ctx.counts:
            idle = torch.tensor([not count for count in ctx.counts], device=x.device)
            grad_in[idle], grad_out[idle] = 0.0, 0.0
        grad_x = F.embedding_bag(place.view_as(gates), grad_inputs, mode="sum")
        return grad_x, dots[place].view_as(gates), grad_in, grad_out, None, None, None, None


def _products(rows: Tensor, weights: Sequence[Tensor], members: list[tuple[int, slice]], out: Tensor) -> None:
    """Each expert's rows (R, a) times its weight (a, b), into out (R, b)."""
    for expert, span in members:
        torch.mm(rows[span], weights[expert], out=out[span])


def _products_back(rows: Tensor, weights: Sequence[Tensor], members: list[tuple[int, slice]], out: Tensor) -> None:
    """Each expert's rows (R, b) times its transposed weight (a, b), into out (R, a).

    For few rows MKL takes weight times rows^T a third faster than rows times weight^T, more than the turning costs.
    """
    if len(rows) >= FEW * len(members):
        for expert, span in members:
            torch.mm(rows[span], weights[expert].t(), out=out[span])
        return
    columns, across = rows.new_empty(out.shape[1], len(rows)), rows.t()
    for expert, span in members:
        torch.mm(weights[expert], across[:, span], out=columns[:, span])
    out.copy_(columns.t())


def _outers(left: Tensor, right: Tensor, members: list[tuple[int, slice]], into: Sequence[Tensor]) -> None:
    """For each expert the sum over its rows of left (R, a) x right (R, b), into (a, b)."""
    across = left.t()
    for expert, span in members:
        torch.mm(across[:, span], right[span], out=into[expert])
