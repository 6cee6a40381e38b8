"""summary.json: the measured figures of a run, typed and checked, under the keys that users and checks read.

A section whose stage did not run (no rollout after a failed gate) is null; a section whose stage did run must
be whole: a missing figure is an error that names it, never a gap.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from accordion.errors import DataError
from accordion.store.atomic import atomic_write

Metrics = Mapping[str, Mapping[str, Any]]
Modality = Literal["text", "image", "video", "audio"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "video", "audio")
SYSTEMS = ("encoder", "untrained", "bm25", "fusion")
MEASURES = ("ndcg10", "recall100", "mrr10")


class _Figures(BaseModel):
    """Measured figures: NaN and infinity are refused; fields of a stage that no summary needs are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StageTiming(_Figures):
    """How long a stage worked, and whether its result came from the cache (then: the time to look it up)."""

    seconds: float = Field(ge=0)
    cached: bool
    peak_rss_bytes: int | None = None


class Interval(_Figures):
    """A mean with its 95 % interval over `count` samples."""

    mean: float
    low: float
    high: float
    count: int


class Rate(_Figures):
    """A pass rate with its Wilson 95 % interval over `count` problems."""

    rate: float
    low: float
    high: float
    count: int


class Submodel(_Figures):
    """One member of the elastic family."""

    name: str
    layers: Any
    experts: Any
    top_k: Any
    val_loss: dict[Modality, float]
    parameters: int
    active_parameters: int


class Pretrain(_Figures):
    """Validation losses in nats: text a token, image and video a bit, audio a code."""

    val_loss_full: dict[Modality, float]
    val_loss_unigram: dict[Modality, float]
    submodels: list[Submodel]
    tokens: int | None = None
    speed: dict[str, float] = {}
    steps: int | None = None


class Posttrain(_Figures):
    """Pass rates on held-out problems before and after reinforcement learning."""

    pass_before: float
    pass_after: float
    pass_before_interval: tuple[float, float]
    pass_after_interval: tuple[float, float]
    count: int

    @classmethod
    def of(cls, rl: Mapping[str, Any]) -> Self:
        before, after = Rate.model_validate(rl["pass_before"]), Rate.model_validate(rl["pass_after"])
        return cls(
            pass_before=before.rate,
            pass_after=after.rate,
            pass_before_interval=(before.low, before.high),
            pass_after_interval=(after.low, after.high),
            count=after.count,
        )


class Extract(_Figures):
    """How exactly the extracted members equal the masked full model."""

    max_abs_logit_diff: float
    members: list[dict[str, Any]] = Field(default_factory=list)


class Domain(_Figures):
    """One retrieval domain: measure -> system -> interval, and the paired tests."""

    ndcg10: dict[str, Interval]
    recall100: dict[str, Interval]
    mrr10: dict[str, Interval]
    encoder_vs_untrained_p: float | None = None
    encoder_vs_bm25_p: float | None = None

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Self:
        systems = [name for name in SYSTEMS if name in figures]
        return cls(
            **{measure: {name: figures[name][measure] for name in systems} for measure in MEASURES},
            encoder_vs_untrained_p=figures.get("encoder_vs_untrained_p"),
            encoder_vs_bm25_p=figures.get("encoder_vs_bm25_p"),
        )


class Check(BaseModel):
    """One gate check; a value that was missing or NaN is None and has failed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    figure: str
    direction: str
    threshold: float
    value: float | None = None
    count: int | None = None
    minimum_count: int = 0
    passed: bool
    message: str = ""


class Gate(_Figures):
    """The verdict."""

    passed: bool
    checks: list[Check]


class Registry(_Figures):
    """What was registered."""

    model: str
    version: int
    aliases: list[str]


class Rollout(_Figures):
    """What the rollout measured on the served version."""

    golden_cosine: float
    served_version: int
    requests: int
    errors: int
    p50_ms: float | None = None
    p99_ms: float | None = None


class Summary(_Figures):
    """Everything in summary.json; a section is None when its stage did not run."""

    stages: dict[str, StageTiming]
    pretrain: Pretrain | None = None
    posttrain: Posttrain | None = None
    extract: Extract | None = None
    retrieval: dict[str, Domain] | None = None
    gate: Gate | None = None
    registry: Registry | None = None
    rollout: Rollout | None = None

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        atomic_write(path, json.dumps(self.model_dump(mode="json"), indent=1) + "\n")


_SECTIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "pretrain": ("pretrain", Pretrain.model_validate),
    "posttrain": ("rl", Posttrain.of),
    "extract": ("extract", Extract.model_validate),
    "retrieval": (
        "evaluate",
        lambda figures: {name: Domain.of(domain) for name, domain in figures["domains"].items()},
    ),
    "gate": ("gate", Gate.model_validate),
    "registry": ("register", Registry.model_validate),
    "rollout": ("rollout", Rollout.model_validate),
}


def summarise(metrics: Metrics, timings: Mapping[str, StageTiming]) -> Summary:
    """Build the summary from the metrics that each stage returned.

    Raises:
        DataError: a stage that ran lacks a figure, or a figure is NaN; the text names stage and figure.
    """
    values: dict[str, Any] = {"stages": dict(timings)}
    for section, (stage, build) in _SECTIONS.items():
        if stage not in metrics:
            continue
        try:
            values[section] = build(metrics[stage])
        except KeyError as error:
            missing = f"metrics of stage {stage}: {error.args[0]!r} is missing"
            raise DataError(f"{missing}; run stage {stage} again") from None
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, issue['loc']))}: {issue['msg'].lower()}, got {issue['input']!r}"[:300]
                for issue in error.errors()
            )
            raise DataError(f"metrics of stage {stage}: {wrong}; run stage {stage} again") from None
    return Summary(**values)
