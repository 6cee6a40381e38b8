"""SwiGLU experts over sorted token-expert assignments: the choice of kernel, and the kernel for bfloat16.

On a GPU in bfloat16 the products of all experts are one `grouped_mm`, which never waits for the counts. On a CPU, and
in float32, `ExpertsInTurn` computes them one after the other.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from accordion.model.experts_in_turn import ExpertsInTurn, Spare


class Dispatch(NamedTuple):
    """The assignments of tokens to experts, sorted by expert.

    Attributes:
        order: (A + 1,) index n * K + slot of each assignment; the last entry is no assignment.
        place: (n * K,) where in `order` each choice lies; A where the token uses fewer than K experts.
        counts: (E,) int64, assignments of each expert.
    """

    order: Tensor
    place: Tensor
    counts: Tensor


def dispatch(choice: Tensor, experts: int, used: int | None = None) -> Dispatch:
    """Sort the choices (n, K) by expert.

    Args:
        choice: expert of each choice; `experts` where a token uses fewer than K.
        used: how many choices there are that name an expert; None: counted (which waits for a GPU).
    """
    flat = choice.reshape(-1)
    if flat.is_cuda:
        ordered, order = flat.sort(stable=True)
        ends = torch.searchsorted(ordered, torch.arange(experts, device=flat.device), right=True)
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
    else:  # (bincount waits for a GPU)
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=experts)[:experts]
    if used is None:
        used = int(counts.sum())
    place = torch.full_like(flat, used).scatter_(0, order[:used], torch.arange(used, device=flat.device))
    return Dispatch(torch.cat((order[:used], order.new_zeros(1))), place, counts)


class GroupedExperts(torch.autograd.Function):
    """The sum of `ExpertsInTurn`, in bfloat16: the products of all experts are one operation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gates: Tensor, weight_in: Tensor, weight_out: Tensor, order: Tensor, place: Tensor,
        counts: Tensor,
    ) -> Tensor:  # fmt: skip
        """Run the chosen experts, see `ExpertsInTurn`."""
        slots = gates.shape[1]
        first, second = weight_in.to(torch.bfloat16), weight_out.to(torch.bfloat16)
        ends = counts.cumsum(0).to(torch.int32)  # (E,)
        inputs = x.to(torch.bfloat16).index_select(0, order // slots)  # (A + 1, H)
        both = _by_group(inputs, first, ends)
        gate, up = both.chunk(2, -1)
        active = F.silu(gate).mul_(up)
        result = _by_group(active, second, ends)  # the last row stands for the choices that are not computed
        ctx.save_for_backward(gates, first, second, order, place, inputs, both, active, result, counts, ends)
        ctx.kind = weight_in.dtype
        gathered = result.index_select(0, place).view(len(gates), slots, -1)
        out = gates[:, :1] * gathered[:, 0]
        for slot in range(1, slots):  # one by one: the sum must not depend on how many slots are unused
            out.addcmul_(gates[:, slot, None], gathered[:, slot].to(out.dtype))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, gates and both weights; an expert nobody chose gets zeros."""
        gates, first, second, order, place, inputs, both, active, result, counts, ends = ctx.saved_tensors
        slots = gates.shape[1]
        grad_rows = grad.to(inputs.dtype).index_select(0, order // slots)  # (A + 1, H)
        dots = torch.sum(grad_rows * result, -1, dtype=grad.dtype)
        grad_gates = dots.index_select(0, place).view_as(gates)  # the last of `dots` is 0
        grad_rows.mul_(gates.reshape(-1)[order].to(inputs.dtype).unsqueeze(1))
        grad_active = _by_group(grad_rows, second.transpose(1, 2), ends)
        grad_out = _outer_by_group(active, grad_rows, ends, counts)
        gate, up = both.chunk(2, -1)
        grad_both = torch.empty_like(both)
        half = active.shape[1]
        torch.ops.aten.silu_backward.grad_input(grad_active * up, gate, grad_input=grad_both[:, :half])
        torch.mul(grad_active, F.silu(gate), out=grad_both[:, half:])
        grad_inputs = _by_group(grad_both, first.transpose(1, 2), ends)
        grad_in = _outer_by_group(inputs, grad_both, ends, counts)
        grad_x = grad_inputs.index_select(0, place).view(-1, slots, grad.shape[1]).sum(1, dtype=grad.dtype)
        return grad_x, grad_gates, grad_in.to(ctx.kind), grad_out.to(ctx.kind), None, None, None


def _by_group(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """rows (A + 1, a) times its expert's weight (E, a, b) -> (A + 1, b); the last row, no assignment, is 0."""
    result = F.grouped_mm(rows, weight, offs=ends)
    result[-1].zero_()
    return result


def _outer_by_group(left: Tensor, right: Tensor, ends: Tensor, counts: Tensor) -> Tensor:
    """For each expert the sum over its rows of left (A + 1, a) x right (A + 1, b) -> (E, a, b)."""
    whole = F.grouped_mm(left.t(), right, offs=ends)
    return whole.masked_fill_((counts == 0)[:, None, None], 0.0)


def apply_experts(
    x: Tensor, gates: Tensor, weight_in: Tensor, weight_out: Tensor, sorted_: Dispatch, spare: Spare | None = None
) -> Tensor:
    """The sum of `ExpertsInTurn` for tokens x (n, H) and gates (n, K), in the type of the autocast: (n, H)."""
    device = x.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if kind == torch.bfloat16:
        return GroupedExperts.apply(x, gates, weight_in, weight_out, *sorted_)
    return ExpertsInTurn.apply(x, gates, weight_in, weight_out, *sorted_, spare or Spare())


def run_experts(
    x: Tensor,
    gates: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    choice: Tensor,
    used: int | None = None,
    spare: Spare | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum of `ExpertsInTurn` for choices (n, K): (n, H), and the assignments (E,) of each expert."""
    sorted_ = dispatch(choice, len(weight_out), used)
    return apply_experts(x, gates, weight_in, weight_out, sorted_, spare), sorted_.counts


def dense_experts(x: Tensor, gates: Tensor, weight_in: Tensor, weight_out: Tensor, choice: Tensor) -> Tensor:
    """The same sum with every expert computed for every token: no data-dependent shapes, for graph export."""
    experts = weight_out.shape[0]
    chosen = F.one_hot(choice, experts + 1)[..., :experts].to(gates.dtype)  # (n, K, E)
    weight = torch.einsum("nk,nke->ne", gates, chosen)
    gate, up = torch.einsum("nh,ehi->nei", x, weight_in).chunk(2, -1)
    return torch.einsum("nei,eih,ne->nh", F.silu(gate) * up, weight_out, weight)
