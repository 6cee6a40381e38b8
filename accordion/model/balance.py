"""Which experts a token chooses, and the bias that keeps their load even; every backbone's router is one of these.

The router sees the hidden state and nothing else. Balancing is auxiliary-loss-free (Wang et al.,
arXiv 2408.15664): a bias, used for selection only, moves by +-u towards the load an expert should have.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Balanced:
    """What a module that routes tokens to experts mixes in.

    Attributes:
        experts, top_k: E and K of the layer.
        bias: (E,) selection bias, moved by `balance` and by nothing else.
        load: (E,) assignments received since the last `balance`.
        expected: (E,) assignments an even router would have given, counting for each token only the experts it
            was allowed to use.
        mass: (E,) sum of the gates each expert received while `measuring`, its importance; `fresh` is what came
            since the last `balance` or `settle`.
    """

    experts: int
    top_k: int
    measuring: bool
    bias: Tensor
    load: Tensor
    expected: Tensor
    mass: Tensor
    fresh: Tensor

    def set_up_balance(self, experts: int, top_k: int) -> None:
        """Make the buffers, in the constructor of the module; only the bias belongs to the weights."""
        assert isinstance(self, nn.Module)
        self.experts, self.top_k, self.measuring = experts, top_k, False
        self.register_buffer("bias", torch.zeros(experts))
        for name in ("load", "expected", "mass", "fresh"):
            self.register_buffer(name, torch.zeros(experts, dtype=torch.float64), persistent=False)

    def choose(
        self, scores: Tensor, eligible: Tensor | None, top_k: Tensor | None, slots: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose experts by score + bias, weigh them by score: choice (n, slots) and gates (n, slots), of sum 1.

        Args:
            scores: (n, E) of `router_scores`.
            eligible: (n, E) bool, experts each token may use (the others score -inf, bias included); None: all.
            top_k: (n,) experts each token uses, at most `slots`; None: `slots`. A slot beyond names expert E.
            slots: the most experts a token uses; None: K.
        """
        selection = scores.detach() + self.bias
        if eligible is not None:
            selection = selection.masked_fill(~eligible, float("-inf"))
        slots = self.top_k if slots is None else slots
        choice = selection.topk(slots, -1).indices  # (n, slots)
        gates = scores.gather(1, choice)
        if top_k is not None:
            beyond = torch.arange(slots, device=scores.device) >= top_k.unsqueeze(1)
            gates = gates.masked_fill(beyond, 0.0)
            choice = choice.masked_fill(beyond, self.experts)
        return choice, gates / gates.sum(-1, keepdim=True)

    @torch.no_grad()
    def count(self, counts: Tensor, asked: Tensor | int, eligible: Tensor | None) -> None:
        """Add to load and expectation: counts (E,); `asked`: choices of each token (n,), or of all together."""
        self.load += counts
        if eligible is None:
            self.expected += (asked if isinstance(asked, int) else asked.sum()) / self.experts
        else:
            each = asked if isinstance(asked, Tensor) else asked // len(eligible)
            share = each / eligible.sum(1)  # (n,)
            self.expected += share.double() @ eligible.double()

    @torch.no_grad()
    def weigh(self, choice: Tensor, gates: Tensor) -> None:
        """While `measuring`, add the gates (n, slots) to the mass of the experts chosen."""
        if self.measuring:
            padded = self.fresh.new_zeros(self.experts + 1)
            self.fresh += padded.index_add_(0, choice.reshape(-1), gates.reshape(-1).double())[:-1]

    @torch.no_grad()
    def balance(self, step: float) -> None:
        """Move the bias of each expert that was eligible since the last call by `step` towards its expected load."""
        self.bias += step * torch.sign(self.expected - self.load) * (self.expected > 0)
        self.load.zero_()
        self.expected.zero_()
        self.settle()

    def settle(self) -> None:
        """Add the fresh mass to the mass."""
        self.mass += self.fresh
        self.fresh.zero_()


def router_scores(x: Tensor, weight: Tensor) -> Tensor:
    """How well each expert fits each token: x (n, H) and weight (E, H) -> (n, E) in (0, 1).

    The product is taken in double precision: in single, its rounding depends on the number of experts, and an
    extracted model would drift from its origin by more than 1e-5 over the layers.
    """
    return torch.sigmoid(F.linear(x.double(), weight.double())).to(x.dtype)
