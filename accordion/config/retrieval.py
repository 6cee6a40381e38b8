"""Settings of the retrieval encoder."""

from pydantic import Field

from accordion.config.base import Settings


class DistilConfig(Settings):
    """Distillation of a retrieval encoder from a sub-model."""

    seed: int = 0
    member: str = Field("shallow", description="which extracted sub-model becomes the encoder")
    source_domain: str = Field("libreoffice-help", description="the only domain trained on")
    dimension: int = Field(128, description="width of the embedding")
    max_tokens: int = 128
    steps: int = 200
    batch: int = 48
    learning_rate: float = 5e-4
    temperature: float = 0.05
