"""Settings of evaluation, gates, registration and rollout."""

from typing import Literal

from pydantic import Field, model_validator

from accordion.config.base import Seed, Settings


class EvaluateConfig(Settings):
    """Zero-shot evaluation beside BM25."""

    seed: Seed = 0
    bootstrap: int = Field(1000, ge=100, description="resamples of a 95 % interval")
    permutations: int = Field(10_000, ge=100, description="sign flips of a paired randomisation test")
    depth: int = Field(100, ge=100, description="documents ranked for a query; Recall@100 needs 100")
    bm25_k1: float = Field(0.9, ge=0)
    bm25_b: float = Field(0.4, ge=0, le=1)


class CheckConfig(Settings):
    """One gate check over a measured figure, addressed by its dotted path in the figures."""

    figure: str
    minus: str | None = Field(None, description="path of a figure to subtract first")
    over: str | None = Field(None, description="path of a figure to divide by first")
    direction: Literal["at_least", "at_most", "above", "below"]
    threshold: float
    minimum_count: int = Field(0, ge=0, description="fewest samples behind the figures (their sibling `count`)")

    @model_validator(mode="after")
    def _one_operation(self) -> "CheckConfig":
        if self.minus is not None and self.over is not None:
            raise ValueError("a check subtracts (minus) or divides (over), not both")
        return self


def _default_checks() -> dict[str, CheckConfig]:
    """What every profile demands unless its own `gate.checks` says otherwise."""
    source = "evaluate.domains.libreoffice-help"
    checks: dict[str, CheckConfig] = {
        "extraction_exact": CheckConfig(figure="extract.max_abs_logit_diff", direction="at_most", threshold=1e-5)
    }
    # Validation loss against the unigram marginals of the same modality: the share that may be left.
    for modality, share in (("text", 0.75), ("image", 0.92), ("video", 0.92), ("audio", 0.92)):
        checks[f"{modality}_beats_unigram"] = CheckConfig(
            figure=f"pretrain.val_loss_full.{modality}", over=f"pretrain.val_loss_unigram.{modality}",
            direction="at_most", threshold=share,
        )  # fmt: skip
    checks["rl_helps"] = CheckConfig(
        figure="rl.pass_after.rate", minus="rl.pass_before.rate", direction="above", threshold=0.0, minimum_count=200
    )
    checks["encoder_training_helps"] = CheckConfig(
        figure=f"{source}.gain.ndcg10.low", direction="above", threshold=0.0, minimum_count=100
    )
    checks["encoder_gain_significant"] = CheckConfig(
        figure=f"{source}.encoder_vs_untrained_p", direction="below", threshold=0.01
    )
    return checks


class GateConfig(Settings):
    """A gate passes when every check passes; a missing, NaN or under-sampled figure fails.

    `checks` maps a readable name to a check; a profile that gives `checks` replaces all of them.
    """

    checks: dict[str, CheckConfig] = Field(default_factory=_default_checks)


class RegisterConfig(Settings):
    """The registered model's name."""

    model: str = "accordion-encoder"


class RegisterFamilyConfig(Settings):
    """Names of the registered models of the family: the prefix and the size."""

    prefix: str = "accordion-lm"


class RolloutConfig(Settings):
    """Rollout of a registered version to Triton."""

    model: str = Field("encoder", pattern="^[a-z][a-z0-9_-]*$", description="name in the Triton repository")
    golden_cosine: float = Field(0.9999, le=1, description="lowest accepted cosine to the evaluated embeddings")
    shadow_requests: int = Field(32, ge=1, description="queries sent to both versions before the canary")
    canary_steps: tuple[float, ...] = Field((0.1, 0.5, 1.0), description="share of traffic in each canary step")
    requests_per_step: int = Field(50, ge=1, description="fewest requests the new version answers in each step")
    error_rate: float = Field(0.0, ge=0, le=1, description="highest accepted share of failed requests")
    p99_ms: float = Field(2000.0, gt=0, description="highest accepted client p99 of the new version, milliseconds")
    instances: int = Field(1, ge=1, description="server processes of each version")
    threads: int = Field(1, ge=1, description="ONNX Runtime threads of each instance")
    keep_versions: int = Field(3, ge=2, description="newest version folders kept on disk")
