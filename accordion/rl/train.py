"""Reinforcement learning with verifiable rewards: sample groups, verify, normalise, update; repeat.

Synchronous: each batch of rollouts is trained on before the next is sampled, so a token's policy version
is at most `updates - 1` optimizer steps old.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accordion.config.posttrain import RlConfig
from accordion.data.tokenizers.text import EOS, TextTokenizer
from accordion.model import Model, save_model
from accordion.observe import progress, record, say
from accordion.rl.examine import Answer, answers, held_out, pass_rate
from accordion.rl.objective import PolicyLoss, group_advantages, policy_loss
from accordion.rl.rollout import Rollouts, chat_prompt, response_log_probs, sample
from accordion.rl.speed import FORWARD, TRAINED, Speed
from accordion.rl.tasks import Problem, stream
from accordion.rl.update import Updater, load_policy, write_lines
from accordion.rl.verifiers import Verdict, verify
from accordion.train.guards import enough_memory


def rl(config: RlConfig, *, out: Path, policy: Path, text: Path) -> dict[str, Any]:
    """The stage: reinforce a policy and measure pass@1 on the same held-out problems before and after.

    The headline pass rates are greedy; `sampled` holds those of one draw each at temperature 1, with the
    same seed before and after. Writes the policy, `curves.jsonl` (every step), `problems.jsonl` (every
    held-out problem with both answers) and `verifier_errors.jsonl` (samples whose verifier raised).

    Args:
        policy: folder of the fine-tuned model.
        text: folder of the text tokenizer.

    Returns:
        {"pass_before", "pass_after": {"rate", "low", "high", "count"} with Wilson 95 % intervals, "decoding",
        "sampled": {"pass_before", "pass_after"}, "changed": {"gained", "lost"} problems, and the course of
        training: "reward", "entropy" (first and last tenth of the steps), "train_infer_gap_max", ..., "speed"}.

    Raises:
        ConfigError, DataError: the tasks or the tokenizer do not fit.
        TrainingDiverged: a loss or gradient became NaN or infinite. OutOfMemory: names the settings to lower.
    """
    model, tokenizer = load_policy(policy, text)
    problems = held_out(config.tasks, config.held_out)
    before = _examine(config, model, tokenizer, problems)
    trainer = Trainer(config, model, tokenizer)
    with enough_memory(f"lower rl.queries (now {config.queries}) or rl.group (now {config.group})"):
        for _ in progress(range(config.steps), "reinforcement", unit="step", note=trainer.note):
            trainer.step()
    speed = trainer.speed.figures()
    after = _examine(config, model, tokenizer, problems)
    save_model(model, out)
    write_lines(out / "curves.jsonl", trainer.curves)
    write_lines(out / "problems.jsonl", _compared(before, after))
    write_lines(out / "verifier_errors.jsonl", trainer.errors)
    return {**_summary(before, after), **trainer.summary(), "speed": speed}


@dataclass(frozen=True)
class Experience:
    """The rollouts of one step and what they earned. R = queries x group, a query's rollouts side by side."""

    problems: list[Problem]  # R
    rollouts: Rollouts
    rewards: Tensor  # (queries, group)
    advantages: Tensor  # (R,)
    informative: Tensor  # (queries,) bool: groups whose rewards are not all equal


class Trainer:
    """The synchronous loop over one policy; every random draw comes from `generator`."""

    def __init__(self, config: RlConfig, model: Model, tokenizer: TextTokenizer) -> None:
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.generator = torch.Generator().manual_seed(config.seed)
        self.problems = stream(config.tasks, "train", config.seed)
        self.update = Updater(
            model, learning_rate=config.learning_rate, warmup_steps=config.warmup_steps, clip_norm=config.clip_norm,
            updates=config.steps * config.updates, decay_share=config.decay_share,
        )  # fmt: skip
        self.curves: list[dict[str, float]] = []
        self.errors: list[dict[str, Any]] = []
        self.speed = Speed(model)

    def step(self) -> dict[str, float]:
        """Sample, verify and update once; returns (and records) the figures of the step."""
        step = len(self.curves)
        experience = self.experience(step)
        losses, norms = self.improve(experience, step)
        figures = {**_rollout_figures(experience), **_update_figures(losses, norms)}
        record(step, {**figures, **self.speed.figures()})
        self.curves.append({"step": step, **figures})
        return figures

    def experience(self, step: int) -> Experience:
        """`group` rollouts of each of `queries` new problems, verified."""
        config = self.config
        queries = list(islice(self.problems, config.queries))
        problems = [problem for problem in queries for _ in range(config.group)]
        rollouts = sample(
            self.model,
            [chat_prompt(self.tokenizer, problem.prompt) for problem in problems],
            max_tokens=config.answer_tokens,
            temperature=config.temperature,
            generator=self.generator,
            version=self.update.count,
        )
        self._count(rollouts, FORWARD)
        responses = rollouts.texts(self.tokenizer)
        verdicts = [verify(problem, response) for problem, response in zip(problems, responses, strict=True)]
        self._keep_errors(step, problems, responses, verdicts)
        rewards = torch.tensor([verdict.reward for verdict in verdicts]).view(config.queries, config.group)
        advantages, informative = group_advantages(rewards)
        return Experience(problems, rollouts, rewards, advantages.flatten(), informative)

    def improve(self, experience: Experience, step: int) -> tuple[list[PolicyLoss], list[float]]:
        """`updates` optimizer steps, each on its share of the informative groups; none if no group is."""
        config = self.config
        groups = experience.informative.nonzero().squeeze(1)  # (informative queries,)
        self.model.train()
        shares = [rows for rows in groups.tensor_split(config.updates) if len(rows)]
        parts = [(share[:, None] * config.group + torch.arange(config.group)).flatten() for share in shares]
        losses: list[PolicyLoss] = []
        norms: list[float] = []
        old = self._old_log_probs(experience, parts)
        for rows, reference in zip(parts, old, strict=True):
            rollouts = experience.rollouts.select(rows)
            new = response_log_probs(self.model, rollouts)
            result = policy_loss(
                new,
                new.detach() if reference is None else reference,
                rollouts.log_prob,
                rollouts.present,
                experience.advantages[rows],
                objective=config.objective,
                clip=config.clip,
                mask=config.mask,
            )
            self._count(rollouts, TRAINED)
            norms.append(self.update(result.loss, step, [experience.problems[row].prompt for row in rows.tolist()]))
            losses.append(result)
        return losses, norms

    @torch.no_grad()
    def _old_log_probs(self, experience: Experience, parts: Sequence[Tensor]) -> list[Tensor | None]:
        """log pi_train(theta_old) of each part, before any update; None for the first, where new equals old."""
        later = [experience.rollouts.select(rows) for rows in parts[1:]]
        for rollouts in later:
            self._count(rollouts, FORWARD)
        return [None, *(response_log_probs(self.model, rollouts) for rollouts in later)] if parts else []

    def _count(self, rollouts: Rollouts, passes: int) -> None:
        live = rollouts.prompt_present.sum(1) + rollouts.lengths()
        self.speed.count(live, rollouts.lengths(), rollouts.prompt.shape[1] + rollouts.response.shape[1], passes)

    def note(self) -> str:
        """The latest reward, for the progress line."""
        return f"reward {self.curves[-1]['reward/mean']:.3f}" if self.curves else ""

    def summary(self) -> dict[str, Any]:
        """The course of training in a few figures."""
        curves, tenth = self.curves, max(1, len(self.curves) // 10)
        gaps = [row["policy/gap_max"] for row in curves if "policy/gap_max" in row]
        course = {
            name: {"first": _mean(curves[:tenth], key), "last": _mean(curves[-tenth:], key)}
            for name, key in (
                ("reward", "reward/mean"),
                ("entropy", "policy/entropy"),
                ("response_tokens", "response/tokens"),
                ("zero_variance_share", "reward/zero_variance_share"),
            )
        }
        return {
            **course,
            "train_infer_gap_max": max(gaps) if gaps else None,
            "verifier_errors": len(self.errors),
            "steps": len(curves),
            "updates": self.update.count,
            "rollouts": len(curves) * self.config.queries * self.config.group,
        }

    def _keep_errors(
        self, step: int, problems: Sequence[Problem], responses: Sequence[str], verdicts: Sequence[Verdict]
    ) -> None:
        for problem, response, verdict in zip(problems, responses, verdicts, strict=True):
            if verdict.error is not None:
                self.errors.append(
                    {"step": step, "prompt": problem.prompt, "response": response, "error": verdict.error}
                )
                if len(self.errors) == 1:
                    say(f"step {step}: the verifier failed on {response!r}: {verdict.error}; no reward is given")


def _rollout_figures(experience: Experience) -> dict[str, float]:
    rollouts = experience.rollouts
    tokens = rollouts.present.sum()
    ended = (rollouts.response == EOS).any(dim=1)
    return {
        "reward/mean": float(experience.rewards.mean()),
        "reward/pass_at_group": float((experience.rewards > 0).any(dim=1).float().mean()),
        "reward/zero_variance_share": 1.0 - float(experience.informative.float().mean()),
        "policy/entropy": float(rollouts.entropy.sum() / tokens),
        "response/tokens": float(rollouts.lengths().float().mean()),
        "response/ended_share": float(ended.float().mean()),
    }


def _update_figures(losses: Sequence[PolicyLoss], norms: Sequence[float]) -> dict[str, float]:
    """Means over the step's updates; empty where no group was informative and nothing was updated."""
    if not losses:
        return {}
    count = len(losses)
    return {
        "loss/policy": sum(float(result.loss) for result in losses) / count,
        "policy/mask_fraction": sum(result.mask_fraction for result in losses) / count,
        "policy/clip_fraction": sum(result.clip_fraction for result in losses) / count,
        "policy/gap": sum(result.gap for result in losses) / count,
        "policy/gap_max": max(result.gap_max for result in losses),
        "gradient/norm": sum(norms) / count,
    }


def _examine(
    config: RlConfig, model: Model, tokenizer: TextTokenizer, problems: Sequence[Problem]
) -> tuple[list[Answer], list[Answer]]:
    """Greedy answers, and answers sampled at temperature 1."""
    greedy, sampled = (
        answers(model, tokenizer, problems, max_tokens=config.answer_tokens, temperature=temperature)
        for temperature in (0.0, 1.0)
    )
    return greedy, sampled


def _summary(before: tuple[list[Answer], ...], after: tuple[list[Answer], ...]) -> dict[str, Any]:
    pairs = list(zip(before[0], after[0], strict=True))
    return {
        "pass_before": pass_rate(before[0]),
        "pass_after": pass_rate(after[0]),
        "decoding": "greedy, the same held-out problems before and after",
        "sampled": {"pass_before": pass_rate(before[1]), "pass_after": pass_rate(after[1])},
        "changed": {
            "gained": sum(new.passed and not old.passed for old, new in pairs),
            "lost": sum(old.passed and not new.passed for old, new in pairs),
        },
    }


def _compared(before: tuple[list[Answer], ...], after: tuple[list[Answer], ...]) -> Iterator[dict[str, Any]]:
    for rows in zip(*before, *after, strict=True):
        problem = rows[0].problem
        row: dict[str, Any] = {"task": problem.task.name, "prompt": problem.prompt, "answer": problem.answer}
        for name, given in zip(("before", "before_sampled", "after", "after_sampled"), rows, strict=True):
            row[name] = {"response": given.response, "passed": given.passed, "error": given.verdict.error}
        yield row


def _mean(rows: Sequence[dict[str, float]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)
