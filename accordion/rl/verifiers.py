"""Verifiers: one interface from (problem, response) to a reward, found by name in a registry.

A verifier that raises is a failed verification: no reward, the error kept with the sample, the run goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from accordion.config.posttrain import TaskConfig
from accordion.errors import ConfigError
from accordion.rl.tasks import Problem, dataset

Verifier = Callable[[Problem, str], bool]
_registry: dict[str, Verifier] = {}


@dataclass(frozen=True)
class Verdict:
    """What a response earned; `error` is set when the verifier itself failed."""

    reward: float
    error: str | None = None


def register(name: str) -> Callable[[Verifier], Verifier]:
    """Decorator that puts a verifier into the registry under `name`.

    Raises:
        ConfigError: the name is taken.
    """

    def add(verifier: Verifier) -> Verifier:
        if name in _registry:
            raise ConfigError(f"verifier {name!r} is registered already; choose another name")
        _registry[name] = verifier
        return verifier

    return add


def verifier_named(name: str) -> Verifier:
    """The registered verifier.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in _registry:
        raise ConfigError(f"verifier {name!r}: unknown; registered: {', '.join(sorted(_registry))}")
    return _registry[name]


def verify(problem: Problem, response: str) -> Verdict:
    """Reward 1 for a response the problem's verifier accepts, 0 otherwise.

    A verifier runs on whatever a policy writes and may be user code, so any exception it raises is
    turned into a verdict here, the one place where that is right; it never earns reward.
    """
    verifier = verifier_named(problem.task.verifier)
    try:
        accepted = verifier(problem, response)
    except Exception as error:
        return Verdict(0.0, f"{type(error).__name__}: {error}")
    return Verdict(1.0 if accepted else 0.0)


@register("exact")
def exact(problem: Problem, response: str) -> bool:
    """The reference answer, character for character, but for surrounding white space."""
    return response.strip() == problem.answer.strip()


@register("numeric")
def numeric(problem: Problem, response: str) -> bool:
    """A decimal number equal to the reference (`+04.0` is `4`); anything that is no number is wrong."""
    try:
        return Decimal(response.strip()) == Decimal(problem.answer)
    except InvalidOperation:
        return False


@register("reasoning-gym")
def scored(problem: Problem, response: str) -> bool:
    """Full marks from the task's own scorer in reasoning-gym; its partial marks count as wrong."""
    return _scorer(problem.task.model_dump_json()).score_answer(response.strip(), problem.entry) >= 1.0


@lru_cache(maxsize=64)
def _scorer(task: str) -> Any:
    return dataset(TaskConfig.from_json(task), seed=0, size=1)
