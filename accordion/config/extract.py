"""Settings of extraction, of the search for members of the family, and of their recovery."""

from typing import Literal

from pydantic import Field

from accordion.config.base import Seed, Settings
from accordion.config.pretrain import MEMBERS, Family

RECOVERY_RATE = 0.2  # of the learning rate of the run: docs/experiments.md has what higher ones did

Cost = Literal["active_parameters", "parameters", "bytes", "latency_ms"]


class ExtractConfig(Settings):
    """Which members of the family to cut out, and what is demanded of them."""

    members: Family = tuple(member for member in MEMBERS if member.name != "sparse")
    sequences: int = Field(32, ge=1, description="validation sequences on which logits are compared")
    huggingface: bool = Field(True, description="also write each member's text path in the Hugging Face layout")


class BudgetConfig(Settings):
    """What a member may cost at most; several limits hold together, None: no limit."""

    parameters: int | None = Field(None, ge=1)
    active_parameters: int | None = Field(None, ge=1, description="used for one token")
    bytes: int | None = Field(None, ge=1, description="of its file of weights, in float32")
    latency_ms: float | None = Field(None, gt=0, description="measured: one forward pass of one packed sequence")


class SearchConfig(Settings):
    """Search for members: depth, and for each layer its experts and top-k."""

    seed: Seed = 0
    cost: Cost = Field("active_parameters", description="what the Pareto front weighs against the loss")
    budget: BudgetConfig = BudgetConfig()
    trials: int = Field(64, ge=1, description="members judged, the even ones of every size among them")
    population: int = Field(16, ge=2, description="of the genetic search (NSGA-II)")
    sequences: int = Field(16, ge=1, description="validation sequences that steer the search; as many others judge")
    latency_repeats: int = Field(5, ge=1, description="timed passes of each member, the median counts")
    members: int = Field(4, ge=1, description="members of the front to write, the best within the budget among them")


class RecoverConfig(Settings):
    """Further training of an extracted member on its own, with the settings of the run it came from."""

    seed: Seed = 0
    steps: int = Field(30, ge=1)
    batch: int | None = Field(None, ge=1, description="sequences a step; None: as many as in pre-training")
    rate: float = Field(RECOVERY_RATE, gt=0, description="learning rate at the start, of that of pre-training")
