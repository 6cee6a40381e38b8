"""Training of the vision tokenizer: few bits first, then all; single frames first, then clips beside them.

Runs where `runtime.device` says. Every random draw is made on the CPU from one generator, so a seed means the same
pictures everywhere.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from accordion.config.data import VisionTokenizerConfig
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.data.tokenizers.vision_losses import Adversary, Kept, Objective
from accordion.device import training_device
from accordion.errors import TrainingDiverged
from accordion.observe import progress, record


@dataclass(frozen=True)
class Pictures:
    """What the tokenizer is trained and measured on: images (N,3,H,W) and clips (N,T,3,H,W), uint8."""

    images: Tensor
    clips: Tensor


def fit(config: VisionTokenizerConfig, pictures: Pictures) -> tuple[VisionTokenizer, dict[str, float]]:
    """Train a tokenizer from its seed, on the training device.

    Args:
        pictures: images and clips, at least one of each.

    Returns:
        the tokenizer with the running mean of its weights, in evaluation mode on the CPU, and the mean of each
        term of the loss over the last twenty steps.

    Raises:
        TrainingDiverged: the loss is no longer finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = VisionTokenizer(config)
        trainer = _Trainer(model, pictures, training_device())
        trainer.run()
    kept = VisionTokenizer(config)
    kept.load_state_dict(trainer.average.module.state_dict())
    return kept.eval(), trainer.recent()


def active_bits(config: VisionTokenizerConfig, step: int) -> int:
    """The budget trained at a step: switches are evenly spread over the first `switch_share` of the steps."""
    span = max(config.switch_share * config.steps / max(len(config.low_bits), 1), 1e-9)
    return config.budgets[min(int(step / span), len(config.low_bits))]


def draw_kept(config: VisionTokenizerConfig, count: int, bits: int, generator: torch.Generator) -> Kept:
    """What the decoder of each of `count` clips is told: usually all, sometimes fewer scales or a smaller budget."""
    scales = torch.full((count,), len(config.scales))
    fewer = torch.randint(1, len(config.scales) + 1, (count,), generator=generator)
    scales = torch.where(torch.rand(count, generator=generator) < config.drop_scales, fewer, scales)
    budgets = torch.tensor([budget for budget in config.budgets if budget <= bits])
    smaller = budgets[torch.randint(len(budgets), (count,), generator=generator)]
    told = torch.where(torch.rand(count, generator=generator) < config.drop_bits, smaller, torch.tensor(bits))
    return Kept(scales, told)


def schedule(step: int, steps: int) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine to a twentieth."""
    warm = max(steps // 20, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def vary(clips: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the clips (B,T,3,H,W) zoomed and shifted, with other colours, and with a part of another clip.

    The parts from other clips are cut as in CutMix (arXiv 1905.04899), so that few pictures give many.
    """
    count, size, device = len(clips), clips.shape[-1], clips.device
    number = torch.rand(count, 8, generator=generator)
    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(count)])
    chosen = (torch.rand(count, generator=generator) < share).to(device)
    number, order = number.to(device), order.to(device)
    zoom = 0.6 + 0.8 * number[:, 0]  # under 1: a part is enlarged
    shift = (number[:, 1:3] * 2 - 1) * (1 - zoom).abs()[:, None]
    none = torch.zeros_like(zoom)
    theta = torch.stack([zoom, none, shift[:, 0], none, zoom, shift[:, 1]], 1).view(count, 2, 3)
    grid = F.affine_grid(theta, [count, 1, size, size], align_corners=False)
    flat = clips.flatten(1, 2)  # (B, T*3, H, W)
    varied = F.grid_sample(flat, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    varied = varied.view_as(clips).gather(2, order[:, None, :, None, None].expand_as(clips))
    varied = ((varied - 0.5) * (0.6 + 0.6 * number[:, 3, None, None, None, None]) + 0.5).clamp(0, 1)
    line = torch.arange(size, device=device) / size
    low = number[:, 4:6, None] * 0.75
    inside = (line >= low) & (line < low + 0.25 + 0.5 * number[:, 6:8, None])  # (B, 2, size), rows and columns
    window = (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None, None]
    varied = torch.where(window, varied.roll(1, 0), varied)
    return torch.where(chosen[:, None, None, None, None], varied, clips)


class _Trainer:
    """One run: model, running mean, objective, critic, optimiser and generator."""

    def __init__(self, model: VisionTokenizer, pictures: Pictures, device: torch.device) -> None:
        self.config, self.device = model.config, device
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(self.config.average))
        self.pictures = Pictures(pictures.images.to(device), pictures.clips.to(device))
        self.frames = self.pictures.clips.flatten(0, 1)
        self.objective = Objective(self.config.losses, 2 * self.config.channels).to(device)
        parameters = [*self.model.parameters(), *(p for p in self.objective.parameters() if p.requires_grad)]
        self.optimizer = torch.optim.AdamW(parameters, lr=self.config.learning_rate, weight_decay=0.01)
        self.adversary: Adversary | None = None
        if self.config.losses.adversarial:
            self.adversary = Adversary(self.config.losses, self.config.channels, self.config.learning_rate / 5)
            self.adversary.critic.to(device)
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.history: list[dict[str, Tensor]] = []

    def run(self) -> None:
        """All steps."""
        self.model.train()
        steps = self.config.steps
        for step in progress(range(steps), "vision tokenizer", unit="steps", note=self._note):
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * schedule(step, steps)
            terms = self._step(step)
            self.history = [*self.history[-19:], {name: term.detach() for name, term in terms.items()}]
            if step % 10 == 0 or step == steps - 1:
                loss = sum(float(term.detach()) for term in terms.values())
                if not math.isfinite(loss):
                    raise TrainingDiverged(f"vision tokenizer: loss is {loss} at step {step}; lower its learning_rate")
                record(step, {"loss/vision_tokenizer": loss})

    def recent(self) -> dict[str, float]:
        """Mean of each term, and of their sum as `all`, over the last twenty steps."""
        names = self.history[-1]
        means = {name: sum(float(terms.get(name, 0.0)) for terms in self.history) / len(self.history) for name in names}
        return {"all": sum(means.values()), **means}

    def _note(self) -> str:
        return f"loss {self.recent()['all']:.4f}" if self.history else ""

    def _step(self, step: int) -> dict[str, Tensor]:
        """One update; the terms are means over images and, with equal weight, frames or clips."""
        bits = active_bits(self.config, step)
        sums: dict[str, Tensor] = {}
        seen: list[tuple[Tensor, Tensor]] = []
        for frames in self._draw(step):
            kept = draw_kept(self.config, len(frames), bits, self.generator)
            terms, restored = self.objective(self.model, frames, kept)
            seen.append((frames.flatten(0, 1), restored.flatten(0, 1)))
            for name, term in terms.items():
                sums[name] = sums[name] + term / 2 if name in sums else term / 2
        critic = self.adversary if step >= self.config.losses.adversarial_start * self.config.steps else None
        if critic is not None:
            real, fake = (torch.cat(parts).unsqueeze(1) for parts in zip(*seen, strict=True))
            critic.learn(real, fake)
            sums["adversarial"] = critic.term(fake, sum(sums.values(), torch.zeros(())), self.model.last_layer)
        self.optimizer.zero_grad()
        torch.stack(list(sums.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return sums

    def _draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Half a batch of images (B,1,3,H,W), and half of single frames or, in the last part, of clips (B,T,3,H,W)."""
        half = self.config.batch // 2
        images = self._pick(self.pictures.images, self.config.batch - half).unsqueeze(1)
        if step < round(self.config.steps * (1 - self.config.video_share)):
            others = self._pick(self.frames, half).unsqueeze(1)
        else:
            others = self._pick(self.pictures.clips, max(half // self.config.frames, 1))
        flipped = torch.rand(len(images), 1, 1, 1, 1, generator=self.generator).to(self.device) < 0.5
        images = torch.where(flipped, images.flip(-1), images)
        if not self.config.augment:
            return images, others
        share, generator = self.config.augment, self.generator
        return vary(images, share, generator), vary(others, share, generator)

    def _pick(self, items: Tensor, count: int) -> Tensor:
        rows = torch.randint(len(items), (count,), generator=self.generator).to(self.device)
        return items[rows].float() / 255
