"""Problems with a verifiable answer, drawn from reasoning-gym, split for good into training and held-out.

A problem's split is a hash of its question: no choice of seeds, counts or stages can bring a
held-out question into training. The two splits are also drawn from disjoint seed ranges.
"""

import hashlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

from accordion.config.posttrain import TaskConfig
from accordion.errors import ConfigError

Split = Literal["train", "held-out"]
HELD_OUT_SHARE = 0.25  # of all questions, by hash
_CHUNK = 1 << 16  # entries of one reasoning-gym dataset (entry i of seed s is entry 0 of seed s + i)
_PATIENCE = 64  # draws without a new question, per question wanted, before a task counts as exhausted


@dataclass(frozen=True)
class Problem:
    """One question, what it is asked as, and all a verifier needs.

    Attributes:
        task: index into the configured tasks.
        prompt: the text after USER.
        answer: the reference answer, the text after ASSISTANT in fine-tuning.
        entry: the reasoning-gym entry (question, answer, metadata), as its scorer wants it.
    """

    task: TaskConfig
    prompt: str
    answer: str
    entry: dict[str, Any] = field(repr=False)


def split_of(question: str) -> Split:
    """The split a question belongs to, decided by its SHA-256 alone."""
    draw = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64
    return "held-out" if draw < HELD_OUT_SHARE else "train"


def stream(tasks: Sequence[TaskConfig], split: Split, seed: int) -> Iterator[Problem]:
    """Endless problems of one split, the tasks in turn; questions may repeat.

    Raises:
        ConfigError: a task is unknown, its parameters are refused, or its prompt names no field of the entry.
    """
    sources = [_entries(task, split, seed) for task in tasks]
    while True:
        for task, source in zip(tasks, sources, strict=True):
            yield _problem(task, next(source))


def distinct(tasks: Sequence[TaskConfig], split: Split, count: int, seed: int) -> list[Problem]:
    """`count` problems of one split with pairwise different prompts, in the order drawn.

    Raises:
        ConfigError: the tasks do not have that many; the text says how many were found.
    """
    found: dict[str, Problem] = {}
    for drawn, problem in enumerate(stream(tasks, split, seed), 1):
        found.setdefault(problem.prompt, problem)
        if len(found) == count:
            return list(found.values())
        if drawn >= _PATIENCE * count:
            names = ", ".join(task.name for task in tasks)
            raise ConfigError(
                f"tasks ({names}): only {len(found)} different {split} questions in {drawn} draws, {count} wanted; "
                "ask for fewer problems or widen the task's parameters"
            )
    raise AssertionError("the stream of problems is endless")


def dataset(task: TaskConfig, seed: int, size: int) -> Any:
    """The reasoning-gym dataset of a task (imported here: loading it takes seconds)."""
    gym = _reasoning_gym()
    try:
        return gym.create_dataset(task.name, seed=seed, size=size, **task.parameters)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"task {task.name!r} with {task.parameters}: reasoning-gym refuses it: {error}") from None


def _reasoning_gym() -> ModuleType:
    """reasoning-gym, loaded without pycosat where that is missing.

    Only its zebra puzzles use that solver, which comes as C source and would make a compiler part of the set-up; an
    empty module of its name lets the rest load, and a zebra puzzle fails as any other verifier or task error does.
    """
    if "pycosat" not in sys.modules and importlib.util.find_spec("pycosat") is None:
        sys.modules["pycosat"] = ModuleType("pycosat")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of cellpylib, which it imports
        import reasoning_gym
    return reasoning_gym


def _entries(task: TaskConfig, split: Split, seed: int) -> Iterator[dict[str, Any]]:
    """Entries whose question belongs to `split`; each chunk has a seed range of its own within the split's."""
    chunk = 0
    while True:
        digest = hashlib.sha256(f"{task.name}/{seed}/{chunk}".encode()).digest()
        # an even multiple of the chunk size for training, an odd one for held-out: the ranges never touch
        start = (int.from_bytes(digest[:3], "big") * 2 + (split == "held-out")) * _CHUNK
        for entry in dataset(task, start, _CHUNK):
            if split_of(entry["question"]) == split:
                yield entry
        chunk += 1


def _problem(task: TaskConfig, entry: dict[str, Any]) -> Problem:
    fields = {**entry.get("metadata", {}), "question": entry["question"]}
    try:
        prompt = task.prompt.format(**fields)
    except (KeyError, IndexError) as error:
        raise ConfigError(
            f"task {task.name!r}: prompt {task.prompt!r} asks for {error}; this task has {', '.join(sorted(fields))}"
        ) from None
    return Problem(task=task, prompt=prompt, answer=entry["answer"], entry=entry)
