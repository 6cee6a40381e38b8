"""Fine-grained mixture of experts: one router and one pool of experts for every modality."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accordion.model.balance import Balanced, router_scores
from accordion.model.experts import dense_experts, run_experts
from accordion.model.experts_in_turn import Spare


class MoE(Balanced, nn.Module):
    """Routed SwiGLU experts plus a shared one that every token uses; no token is ever dropped.

    Attributes:
        dense: compute every expert for every token (for graph export); the result is the same.
    """

    def __init__(self, hidden: int, experts: int, top_k: int, expert_hidden: int, shared_hidden: int) -> None:
        super().__init__()
        self.dense = False
        self.router = nn.Parameter(torch.empty(experts, hidden))
        self.expert_in = nn.Parameter(torch.empty(experts, hidden, 2 * expert_hidden))
        self.expert_out = nn.Parameter(torch.empty(experts, expert_hidden, hidden))
        self.shared_in = nn.Linear(hidden, 2 * shared_hidden, bias=False) if shared_hidden else None
        self.shared_out = nn.Linear(shared_hidden, hidden, bias=False) if shared_hidden else None
        self.spare = Spare()
        self.set_up_balance(experts, top_k)

    def forward(
        self,
        x: Tensor,
        eligible: Tensor | None,
        top_k: Tensor | None,
        *,
        slots: int | None = None,
        used: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Route and compute: x (n, H) -> (n, H), and the choice (n, slots), E where nothing was chosen.

        Args:
            eligible: (n, E) bool, experts each token may use; None: all.
            top_k: (n,) experts each token uses, at most `slots`; None: `slots`.
            slots: the most experts a token uses; None: K.
            used: sum of `top_k`, where it is known without asking a GPU.
        """
        choice, gates = self.route(x, eligible, top_k, slots)
        if top_k is None:
            used = choice.numel()
        if not len(x):  # every weight still gets its gradient of zeros: other processes wait for it
            out = x * gates.sum() * (self.expert_in.sum() + self.expert_out.sum())
        elif self.dense:
            out = dense_experts(x, gates, self.expert_in, self.expert_out, choice)
        else:
            out, counts = run_experts(x, gates, self.expert_in, self.expert_out, choice, used, self.spare)
            if self.training:
                self.count(counts, len(choice) * choice.shape[1] if top_k is None else top_k, eligible)
            self.weigh(choice, gates)
        if self.shared_in is not None and self.shared_out is not None:
            gate, up = self.shared_in(x).chunk(2, -1)
            out = out + self.shared_out(F.silu(gate) * up)
        return out, choice

    def forget_gradients(self) -> None:
        """Drop the gradients of the experts' weights; their memory is used again by the next ones."""
        for weight in (self.expert_in, self.expert_out):
            self.spare.forget(weight)

    def route(
        self, x: Tensor, eligible: Tensor | None, top_k: Tensor | None, slots: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The choice of each token x (n, H) and its gates, see `Balanced.choose`."""
        return self.choose(router_scores(x, self.router), eligible, top_k, slots)
