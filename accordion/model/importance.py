"""How much the tokens of a model use each of its experts, and the order that follows from it.

An expert's importance is the sum of the gates that tokens gave it: how often it was chosen, and with what weight.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from accordion.data.batch import Batch
from accordion.model.model import Model


def measure_importance(model: Model, on: bool) -> None:
    """Let every layer add up the gates its experts receive from now on, or stop."""
    for _, router in model.layers.routers():
        router.measuring = on


def importance_order(masses: Iterable[Tensor]) -> tuple[tuple[int, ...], ...]:
    """For each layer its experts, that of the largest gate mass first; masses (E,), one a layer."""
    return tuple(tuple(mass.argsort(descending=True, stable=True).tolist()) for mass in masses)


@torch.no_grad()
def rank_experts(model: Model, data: Iterable[Batch]) -> tuple[tuple[int, ...], ...]:
    """The order of a trained model's experts by their gate mass on `data`."""
    training = model.training
    model.eval()
    for _, router in model.layers.routers():
        router.mass.zero_()
    measure_importance(model, True)
    for batch in data:
        model.outputs(batch)
    measure_importance(model, False)
    for _, router in model.layers.routers():
        router.settle()
    model.train(training)
    return importance_order(router.mass for _, router in model.layers.routers())
