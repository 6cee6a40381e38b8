"""How fast post-training goes, as a share of what the machine can do: an estimate, no part of what a stage computes."""

import time

from torch import Tensor

from accordion.device import peak_flops
from accordion.model import Model, SubmodelSpec
from accordion.model.flops import RowCounts, forward_flops

FORWARD, TRAINED = 1, 3  # passes: a backward pass is two products of the same size


class Speed:
    """Counts the operations of text rows that go through the whole model, against the clock and the measured peak.

    A sampled answer counts as if prompt and answer were read once; what decoding one token at a time wastes shows in
    the share.

    Attributes:
        flops: counted so far; a caller adds what it counts on its own.
    """

    def __init__(self, model: Model) -> None:
        self.config, self.full = model.config, SubmodelSpec.full(model.config)
        self.peak = peak_flops(model.norm.weight.device)
        self.flops = 0
        self.start = time.monotonic()

    def count(self, live: Tensor, predicted: Tensor, length: int, passes: int) -> None:
        """Add rows padded to `length`, of which each holds `live` tokens (B,) and predicts `predicted` (B,)."""
        for tokens, targets in zip(live.tolist(), predicted.tolist(), strict=True):
            row = RowCounts(live=tokens, text=targets, mtp=0, vision=0, audio=0)
            self.flops += passes * forward_flops(self.config, self.full, row, length, mtp=False)

    def figures(self) -> dict[str, float]:
        """Operations a second since the beginning, and their share of the peak."""
        rate = self.flops / max(time.monotonic() - self.start, 1e-9)
        return {"flops_per_second": rate, "flops_utilisation": rate / self.peak}
