"""Settings of supervised fine-tuning and reinforcement learning."""

from typing import Any

from pydantic import Field

from accordion.config.base import Settings


class TaskConfig(Settings):
    """A family of problems with a verifiable answer (reasoning-gym name and parameters)."""

    name: str = "chain_sum"
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    )


class SftConfig(Settings):
    """Supervised fine-tuning on solved problems."""

    seed: int = 0
    tasks: tuple[TaskConfig, ...] = (TaskConfig(),)
    problems: int = 2000
    steps: int = 120
    batch: int = 64
    learning_rate: float = 1e-3


class RlConfig(Settings):
    """Reinforcement learning with verifiable rewards (post-training, policy objective)."""

    seed: int = 0
    tasks: tuple[TaskConfig, ...] = (TaskConfig(),)
    steps: int = 40
    queries: int = Field(16, description="prompts a step")
    group: int = Field(8, description="rollouts a prompt, G")
    answer_tokens: int = 8
    temperature: float = 1.0
    learning_rate: float = 3e-4
    clip: float = Field(0.2, description="epsilon of the ratio clip")
    mask: tuple[float, float] = Field((0.5, 2.0), description="alpha, beta of the train/infer ratio mask")
    held_out: int = Field(400, ge=200, description="problems for the pass rate before and after")
