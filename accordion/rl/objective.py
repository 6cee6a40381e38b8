"""The policy objective: GSPO's sequence-level ratio with a token-level train/infer mask (MISC), and GRPO.

Three policies meet here, as log-probabilities of the same sampled tokens:
    infer   as the rollout engine computed them while sampling      log pi_infer(y_ij; theta_old)
    old     the same weights in the trainer                         log pi_train(y_ij; theta_old)
    new     the weights being trained                               log pi_train(y_ij; theta)
Shapes: R rollouts, T answer positions; `present` (R, T) marks the tokens each rollout really sampled.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Objective = Literal["misc", "grpo"]


@dataclass(frozen=True)
class PolicyLoss:
    """The loss to minimise, and what happened inside it."""

    loss: Tensor
    mask_fraction: float  # share of sampled tokens the train/infer mask dropped
    clip_fraction: float  # share of sampled tokens whose ratio was clipped
    gap: float  # mean |log pi_train(old) - log pi_infer| a token, nats
    gap_max: float


def group_advantages(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Group-normalised advantages, A_i = (r_i - mean(r)) / std(r) (GRPO, arXiv 2402.03300, section 4.1.2;
    used unchanged by GSPO, arXiv 2507.18071, equation 6).

    Args:
        rewards: (queries, G).

    Returns:
        advantages (queries, G), and informative (queries,) bool: False where all rewards of a group are
        equal. Such a group has no preferred rollout; its advantages are 0 and callers leave it out.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = rewards.std(dim=1, keepdim=True, unbiased=False)
    informative = (rewards != rewards[:, :1]).any(dim=1)
    advantages = torch.where(informative[:, None], centred / deviation.clamp_min(1e-6), torch.zeros_like(rewards))
    return advantages, informative


def sequence_ratio(new: Tensor, old: Tensor, present: Tensor) -> Tensor:
    """GSPO's importance ratio s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|) (arXiv 2507.18071, equation 7).

    Returns:
        (R,), differentiable in `new`.
    """
    return torch.exp(_sequence_mean(new - old, present))


def gspo_token_ratio(new: Tensor, old: Tensor, present: Tensor) -> Tensor:
    """GSPO-token: s_ij = sg(s_i) * pi_ij / sg(pi_ij) (arXiv 2507.18071, equations 13 and 14).

    In value it is s_i at every token; its gradient at token j flows through that token alone.

    Returns:
        (R, T).
    """
    ratio = sequence_ratio(new, old, present).detach()
    return ratio[:, None] * torch.exp(new - new.detach())


def train_infer_mask(old: Tensor, infer: Tensor, bounds: tuple[float, float]) -> Tensor:
    """M(k) = k where alpha <= k <= beta, else 0, with k_ij = pi_train(y_ij; theta_old) / pi_infer(y_ij; theta_old)
    (IcePop's token-level mask, as MISC takes it: arXiv 2602.04705, section 4).

    Returns:
        (R, T), a constant weight.
    """
    ratio = torch.exp(old - infer).detach()
    alpha, beta = bounds
    return torch.where((ratio >= alpha) & (ratio <= beta), ratio, torch.zeros_like(ratio))


def policy_loss(
    new: Tensor,
    old: Tensor,
    infer: Tensor,
    present: Tensor,
    advantages: Tensor,
    *,
    objective: Objective = "misc",
    clip: float,
    mask: tuple[float, float],
) -> PolicyLoss:
    """Minus the MISC objective (arXiv 2602.04705, section 4):

        J = mean_i mean_j M(k_ij) * min(s_ij A_i, clip(s_ij, 1 - eps, 1 + eps) A_i)

    `grpo` replaces s_ij by the token's own ratio pi_ij / pi_old_ij (arXiv 2402.03300, equation 3, without
    the KL term) and keeps the mask.

    Args:
        new, old, infer: (R, T) log-probabilities of the sampled tokens; gradients flow through `new` only.
        present: (R, T) bool, at least one token in each row.
        advantages: (R,).
        clip: eps.
        mask: (alpha, beta).
    """
    zero = torch.zeros_like(new)
    new, old, infer = (torch.where(present, x, zero) for x in (new, old.detach(), infer.detach()))
    ratio = gspo_token_ratio(new, old, present) if objective == "misc" else torch.exp(new - old)  # (R, T)
    weight = train_infer_mask(old, infer, mask)  # (R, T)
    gain = advantages[:, None]
    surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    loss = -_sequence_mean(weight * surrogate, present).mean()
    with torch.no_grad():
        tokens = present.sum()
        outside = torch.where(gain >= 0, ratio > 1 + clip, ratio < 1 - clip)
        difference = (old - infer).abs()
        return PolicyLoss(
            loss=loss,
            mask_fraction=float(((weight == 0) & present).sum() / tokens),
            clip_fraction=float((outside & present).sum() / tokens),
            gap=float(difference.sum() / tokens),
            gap_max=float(difference.max()),
        )


def _sequence_mean(values: Tensor, present: Tensor) -> Tensor:
    """(R, T) -> (R,): mean over the tokens of each rollout."""
    return (values * present).sum(dim=1) / present.sum(dim=1)
