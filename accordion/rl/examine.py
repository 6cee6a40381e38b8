"""Pass rates on held-out problems, with what was answered to each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from accordion.config.posttrain import TaskConfig
from accordion.data.tokenizers.text import TextTokenizer
from accordion.evaluate.statistics import wilson
from accordion.model import Model
from accordion.rl.rollout import chat_prompt, sample
from accordion.rl.tasks import Problem, distinct
from accordion.rl.verifiers import Verdict, verify

HELD_OUT_SEED = 20_26  # of the held-out draw and of sampling on it: every stage is examined on the same problems


@dataclass(frozen=True)
class Answer:
    """One response to one problem."""

    problem: Problem
    response: str
    verdict: Verdict

    @property
    def passed(self) -> bool:
        return self.verdict.reward >= 1.0


def held_out(tasks: Sequence[TaskConfig], count: int) -> list[Problem]:
    """The same `count` different held-out problems in every stage and for every training seed."""
    return distinct(tasks, "held-out", count, HELD_OUT_SEED)


def answers(
    model: Model, tokenizer: TextTokenizer, problems: Sequence[Problem], *, max_tokens: int, temperature: float
) -> list[Answer]:
    """One response to each problem; sampling, where temperature is above 0, has a fixed seed of its own."""
    prompts = [chat_prompt(tokenizer, problem.prompt) for problem in problems]
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    rollouts = sample(model, prompts, max_tokens=max_tokens, temperature=temperature, generator=generator)
    responses = rollouts.texts(tokenizer)
    return [Answer(p, r, verify(p, r)) for p, r in zip(problems, responses, strict=True)]


def pass_rate(given: Sequence[Answer]) -> dict[str, Any]:
    """pass@1 with its Wilson 95 % interval: {"rate", "low", "high", "count"}."""
    passed = sum(answer.passed for answer in given)
    low, high = wilson(passed, len(given))
    return {"rate": passed / len(given), "low": low, "high": high, "count": len(given)}
