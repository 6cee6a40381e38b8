"""Settings of evaluation, gates, registration and rollout."""

from typing import Literal

from pydantic import Field

from accordion.config.base import Settings


class EvaluateConfig(Settings):
    """Zero-shot evaluation beside BM25."""

    seed: int = 0
    bootstrap: int = Field(1000, ge=100, description="resamples of a 95 % interval")
    depth: int = Field(100, description="documents ranked for a query")
    bm25_k1: float = 0.9
    bm25_b: float = 0.4


class CheckConfig(Settings):
    """One gate check over a measured figure, addressed by its dotted path in the figures."""

    figure: str
    direction: Literal["at_least", "at_most"]
    threshold: float
    minimum_count: int = Field(0, description="fewest samples behind the figure (its sibling `count`)")


class GateConfig(Settings):
    """A gate passes when every check passes; a missing, NaN or under-sampled figure fails."""

    checks: tuple[CheckConfig, ...] = ()


class RegisterConfig(Settings):
    """The registered model's name."""

    model: str = "accordion-encoder"


class RolloutConfig(Settings):
    """Rollout of a registered version to Triton."""

    model: str = "encoder"
    golden_cosine: float = Field(0.9999, le=1)
    canary_steps: tuple[float, ...] = Field((0.1, 0.5, 1.0), description="share of traffic in each canary step")
    requests_per_step: int = 50
    p99_ms: float = Field(2000.0, description="highest accepted client p99 of the new version, milliseconds")
