"""Fine-grained mixture of experts: one router and one pool of experts for every modality.

The router sees the hidden state and nothing else. Balancing is auxiliary-loss-free (Wang et al.,
arXiv 2408.15664): a bias, used for selection only, moves by +-u towards the load an expert should have.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accordion.model.experts import dense_experts, run_experts


class MoE(nn.Module):
    """Routed SwiGLU experts plus a shared one that every token uses; no token is ever dropped.

    Attributes:
        bias: (E,) selection bias, moved by `balance` and by nothing else.
        load: (E,) assignments received since the last `balance`.
        expected: (E,) assignments an even router would have given, counting for each token only the experts it
            was allowed to use.
        mass: (E,) sum of the gates each expert received while `measuring`: its importance.
        dense: compute every expert for every token (for graph export); the result is the same.
    """

    bias: Tensor
    load: Tensor
    expected: Tensor
    mass: Tensor

    def __init__(self, hidden: int, experts: int, top_k: int, expert_hidden: int, shared_hidden: int) -> None:
        super().__init__()
        self.experts, self.top_k = experts, top_k
        self.dense = self.measuring = False
        self.router = nn.Parameter(torch.empty(experts, hidden))
        self.expert_in = nn.Parameter(torch.empty(experts, hidden, 2 * expert_hidden))
        self.expert_out = nn.Parameter(torch.empty(experts, expert_hidden, hidden))
        self.shared_in = nn.Linear(hidden, 2 * shared_hidden, bias=False) if shared_hidden else None
        self.shared_out = nn.Linear(shared_hidden, hidden, bias=False) if shared_hidden else None
        self.register_buffer("bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts, dtype=torch.float64), persistent=False)
        self.register_buffer("expected", torch.zeros(experts, dtype=torch.float64), persistent=False)
        self.register_buffer("mass", torch.zeros(experts, dtype=torch.float64), persistent=False)

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
        if self.dense:
            out = dense_experts(x, gates, self.expert_in, self.expert_out, choice)
        else:
            out, counts = run_experts(x, gates, self.expert_in, self.expert_out, choice, used)
            if self.training:
                self._count(counts, len(choice) * choice.shape[1] if top_k is None else top_k, eligible)
            if self.measuring:
                padded = self.mass.new_zeros(self.experts + 1)
                self.mass += padded.index_add_(0, choice.reshape(-1), gates.detach().reshape(-1).double())[:-1]
        if self.shared_in is not None and self.shared_out is not None:
            gate, up = self.shared_in(x).chunk(2, -1)
            out = out + self.shared_out(F.silu(gate) * up)
        return out, choice

    def route(
        self, x: Tensor, eligible: Tensor | None, top_k: Tensor | None, slots: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose experts by score + bias, weigh them by score: choice (n, slots) and gates (n, slots), of sum 1.

        The product is taken in double precision: in single, its rounding depends on the number of experts, and an
        extracted model would drift from its origin by more than 1e-5 over the layers.
        """
        scores = torch.sigmoid(F.linear(x.double(), self.router.double())).to(x.dtype)  # (n, E)
        selection = scores.detach() + self.bias
        if eligible is not None:
            selection = selection.masked_fill(~eligible, float("-inf"))
        slots = self.top_k if slots is None else slots
        choice = selection.topk(slots, -1).indices  # (n, slots)
        gates = scores.gather(1, choice)
        if top_k is not None:
            beyond = torch.arange(slots, device=x.device) >= top_k.unsqueeze(1)
            gates = gates.masked_fill(beyond, 0.0)
            choice = choice.masked_fill(beyond, self.experts)
        return choice, gates / gates.sum(-1, keepdim=True)

    @torch.no_grad()
    def _count(self, counts: Tensor, asked: Tensor | int, eligible: Tensor | None) -> None:
        """Add to load and expectation; `asked`: choices of each token (n,), or of all together."""
        self.load += counts
        if eligible is None:
            self.expected += (asked if isinstance(asked, int) else asked.sum()) / self.experts
        else:
            each = asked if isinstance(asked, Tensor) else asked // len(eligible)
            share = each / eligible.sum(1)  # (n,)
            self.expected += share.double() @ eligible.double()

    @torch.no_grad()
    def balance(self, step: float) -> None:
        """Move the bias of each expert that was eligible since the last call by `step` towards its expected load."""
        self.bias += step * torch.sign(self.expected - self.load) * (self.expected > 0)
        self.load.zero_()
        self.expected.zero_()
