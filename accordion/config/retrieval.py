"""Settings of the retrieval encoder."""

from typing import Literal

from pydantic import Field

from accordion.config.base import Seed, Settings


class DistilConfig(Settings):
    """Distillation of a retrieval encoder from a sub-model."""

    seed: Seed = 0
    member: str = Field("shallow", description="which extracted sub-model becomes the encoder")
    source_domain: str = Field("libreoffice-help", description="the only domain trained on")
    pooling: Literal["mean", "last"] = "mean"
    bidirectional: bool = True
    dimension: int = Field(128, ge=1, description="width of the embedding")
    max_tokens: int = Field(64, ge=2, description="longest input in tokens; longer texts are cut")
    teacher_tokens: int = Field(64, ge=2, description="longest input of the teacher, in its own tokens")
    teacher_weight: float = Field(1.0, ge=0, description="weight of the embedding distillation beside InfoNCE")
    steps: int = Field(60, ge=1)
    batch: int = Field(48, ge=2, description="query-document pairs a step")
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    temperature: float = Field(0.05, gt=0)
