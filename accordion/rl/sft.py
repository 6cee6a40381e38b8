"""Supervised fine-tuning: solved problems as `BOS USER question ASSISTANT answer EOS`, loss on the answer.

Batches of the pre-training mixture come in between (replay), so that what pre-training taught is kept.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accordion.config.posttrain import SftConfig
from accordion.data.loader import ShardLoader
from accordion.data.tokenizers.text import EOS, PAD, TextTokenizer
from accordion.model import Model, save_model
from accordion.model.flops import RowCounts, row_counts, training_flops
from accordion.model.losses import MODALITIES
from accordion.model.sampler import ElasticSampler
from accordion.observe import progress, record
from accordion.rl.examine import answers, held_out, pass_rate
from accordion.rl.rollout import chat_prompt
from accordion.rl.speed import TRAINED, Speed
from accordion.rl.tasks import Problem, distinct
from accordion.rl.update import Updater, load_policy, mean_of_last, write_lines
from accordion.train.guards import enough_memory
from accordion.train.loop import PosteriorScale
from accordion.train.validate import validation_batches, validation_losses


def sft(config: SftConfig, *, out: Path, checkpoint: Path, text: Path, shards: Path) -> dict[str, Any]:
    """The stage: fine-tune a checkpoint, write the policy and `curves.jsonl`, measure the held-out pass rate.

    Args:
        checkpoint: folder of the pre-trained model.
        text: folder of the text tokenizer.
        shards: packed pre-training sequences; the training split is replayed.

    Returns:
        {"pass": greedy held-out pass@1, "pass_sampled": the same at temperature 1, "loss": nats per answer
        token (mean of the last tenth of the steps), "val_loss": {"before", "after": {modality: nats}} on
        validation shards, "steps", "problems", "speed"}.

    Raises:
        ConfigError: the tasks do not have that many problems. DataError: tokenizer and model do not match.
        TrainingDiverged: the loss became NaN or infinite. OutOfMemory: names the settings to lower.
    """
    model, tokenizer = load_policy(checkpoint, text)
    examined = held_out(config.tasks, config.held_out)
    problems = distinct(config.tasks, "train", config.problems, config.seed)
    kept = list(validation_batches(shards, config.validation))
    before = validation_losses(model, kept)
    remedy = f"lower sft.batch (now {config.batch}) or sft.replay_batch (now {config.replay_batch})"
    loading = ShardLoader(shards, "train", batch=config.replay_batch, seed=config.seed)
    with closing(loading) as loader, enough_memory(remedy):
        speed = Speed(model)
        curves = _train(config, model, tokenizer, problems, Replay(config, model, loader, speed), speed)
        rates = speed.figures()
    after = validation_losses(model, kept)
    write_lines(out / "curves.jsonl", curves)
    save_model(model, out)
    greedy, sampled = (
        answers(model, tokenizer, examined, max_tokens=config.answer_tokens, temperature=temperature)
        for temperature in (0.0, 1.0)
    )
    return {
        "pass": pass_rate(greedy),
        "pass_sampled": pass_rate(sampled),
        "loss": mean_of_last(curves, "loss/answer"),
        "val_loss": {"before": before, "after": after},
        "steps": config.steps,
        "problems": len(problems),
        "speed": rates,
    }


class Replay:
    """Pre-training batches whose rows run as drawn sub-models, so that the elastic family is kept too."""

    def __init__(self, config: SftConfig, model: Model, loader: ShardLoader, speed: Speed) -> None:
        self.model, self.speed = model, speed
        self.every = config.replay_every
        self.weight = config.replay_weight
        self.loader = loader
        self.sampler = ElasticSampler(model.config, config.elastic, steps=config.steps, seed=config.seed)
        self.scale = PosteriorScale(memory=0.9)

    def loss(self, step: int) -> Tensor | None:
        """The weighted loss of one batch, modalities rescaled as in pre-training; None on steps without replay."""
        if self.every == 0 or step % self.every:
            return None
        batch = next(self.loader)
        draw = self.sampler.draw(step, len(batch))
        aims = self.model(batch, draw).aims
        rows = [RowCounts(*row) for row in row_counts(batch).tolist()]
        self.speed.flops += training_flops(self.model.config, draw, rows, batch.modality.shape[1])
        return self.weight * self.scale.total({name: aims[name] for name in MODALITIES if name in aims}, 0.0)


def _train(
    config: SftConfig,
    model: Model,
    tokenizer: TextTokenizer,
    problems: Sequence[Problem],
    replay: Replay,
    speed: Speed,
) -> list[dict[str, float]]:
    generator = torch.Generator().manual_seed(config.seed)
    update = Updater(
        model, learning_rate=config.learning_rate, warmup_steps=config.warmup_steps, clip_norm=config.clip_norm,
        updates=config.steps, decay_share=config.decay_share,
    )  # fmt: skip
    curves: list[dict[str, float]] = []
    model.train()
    for step in progress(range(config.steps), "fine-tuning", unit="step", note=lambda: _note(curves)):
        rows = torch.randint(len(problems), (config.batch,), generator=generator).tolist()
        drawn = [problems[row] for row in rows]
        tokens, present, trained = answer_batch(tokenizer, drawn)
        loss = answer_loss(model, tokens, present, trained)
        figures = {"loss/answer": float(loss.detach())}
        kept = replay.loss(step)
        if kept is not None:
            figures["loss/replay"] = float(kept.detach())
            loss = loss + kept
        figures["gradient/norm"] = update(loss, step, [problem.prompt for problem in drawn])
        speed.count(present.sum(1), trained.sum(1), tokens.shape[1], TRAINED)
        record(step, {**figures, **speed.figures()})
        curves.append({"step": step, **figures})
    return curves


def _note(curves: Sequence[dict[str, float]]) -> str:
    return f"loss {curves[-1]['loss/answer']:.3f}" if curves else ""


def answer_batch(tokenizer: TextTokenizer, problems: Sequence[Problem]) -> tuple[Tensor, Tensor, Tensor]:
    """Solved problems as tokens, padded on the right.

    Returns:
        tokens (B,S) int64; present (B,S) bool, real tokens; trained (B,S) bool, answer tokens and their EOS.
    """
    prompts = [chat_prompt(tokenizer, problem.prompt) for problem in problems]
    rows = [
        [*prompt, *tokenizer.encode(problem.answer), EOS] for prompt, problem in zip(prompts, problems, strict=True)
    ]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    index = torch.arange(width)[None]
    present = index < torch.tensor([[len(row)] for row in rows])
    trained = present & (index >= torch.tensor([[len(prompt)] for prompt in prompts]))
    return tokens, present, trained


def answer_loss(model: Model, tokens: Tensor, present: Tensor, trained: Tensor) -> Tensor:
    """Cross-entropy of the answer tokens given all before them, nats per token: the token at position j is
    predicted from the hidden state at j - 1."""
    hidden = model.hidden(tokens, present)[:, :-1]  # (B,S-1,H)
    wanted = trained[:, 1:]
    logits = model.text_logits(hidden[wanted])  # (answer tokens, V)
    return F.cross_entropy(logits.float(), tokens[:, 1:][wanted])
