"""Settings of supervised fine-tuning and reinforcement learning."""

from typing import Any, Literal

from pydantic import Field

from accordion.config.base import Seed, Settings
from accordion.config.pretrain import ElasticConfig


class TaskConfig(Settings):
    """A family of problems with a verifiable answer (reasoning-gym name and parameters)."""

    name: str = "chain_sum"
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    )
    prompt: str = Field(
        "{question}", description="what the model is asked: a format over the question and the entry's metadata"
    )
    verifier: str = Field("reasoning-gym", description="name in the registry of accordion.rl.verifiers")


class SftConfig(Settings):
    """Supervised fine-tuning on solved problems, with pre-training text as replay."""

    seed: Seed = 0
    tasks: tuple[TaskConfig, ...] = Field((TaskConfig(prompt="{expression} ="),), min_length=1)
    problems: int = Field(2000, ge=1, description="distinct training problems")
    steps: int = Field(150, ge=1)
    batch: int = Field(64, ge=1, description="problems a step")
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(10, ge=0)
    decay_share: float = Field(
        0.5, ge=0, le=1, description="share of the steps, at the end, in which the rate falls to a tenth"
    )
    clip_norm: float = Field(1.0, gt=0)
    answer_tokens: int = Field(8, ge=1, description="longest answer when the pass rate is taken, tokens")
    replay_every: int = Field(8, ge=0, description="steps between two pre-training batches; 0: no replay")
    replay_batch: int = Field(4, ge=1, description="packed sequences in a replay batch")
    replay_weight: float = Field(1.0, ge=0, description="of the replay loss beside the answer loss")
    elastic: ElasticConfig = Field(
        ElasticConfig(warmup_share=0.0), description="sub-models that the rows of replay batches run as"
    )
    validation: int = Field(16, ge=1, description="validation sequences on which forgetting is measured")
    held_out: int = Field(400, ge=1, description="problems for the pass rate after the stage")


class RlConfig(Settings):
    """Reinforcement learning with verifiable rewards (post-training, policy objective)."""

    seed: Seed = 0
    tasks: tuple[TaskConfig, ...] = Field((TaskConfig(prompt="{expression} ="),), min_length=1)
    objective: Literal["misc", "grpo"] = Field(
        "misc", description="misc: sequence-level ratio (GSPO) with the token-level train/infer mask; "
        "grpo: token-level ratio with the same mask"
    )  # fmt: skip
    steps: int = Field(60, ge=1)
    queries: int = Field(32, ge=1, description="prompts a step")
    group: int = Field(8, ge=2, description="rollouts a prompt, G")
    updates: int = Field(1, ge=1, description="optimizer steps on each batch of rollouts, each on its share of queries")
    answer_tokens: int = Field(8, ge=1, description="longest answer, tokens")
    temperature: float = Field(1.0, gt=0)
    learning_rate: float = Field(3e-4, gt=0)
    warmup_steps: int = Field(5, ge=0)
    decay_share: float = Field(
        0.5, ge=0, le=1, description="share of the steps, at the end, in which the rate falls to a tenth"
    )
    clip_norm: float = Field(1.0, gt=0)
    clip: float = Field(0.2, gt=0, lt=1, description="epsilon of the ratio clip")
    mask: tuple[float, float] = Field((0.5, 2.0), description="alpha, beta of the train/infer ratio mask")
    held_out: int = Field(400, ge=200, description="problems for the pass rate before and after")
