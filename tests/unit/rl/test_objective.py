"""The objective against numbers worked out by hand, and against the properties the papers claim."""

import math

import pytest
import torch

from accordion.rl.objective import group_advantages, gspo_token_ratio, policy_loss, sequence_ratio, train_infer_mask

LN2 = math.log(2)


def test_advantages_are_normalised_within_each_group_and_equal_groups_are_dropped():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    advantages, informative = group_advantages(rewards)
    # group 1: mean 1/2, deviation 1/2; group 3: mean 1/4, deviation sqrt(3)/4
    assert advantages[0].tolist() == pytest.approx([1, -1, -1, 1])
    assert advantages[1].tolist() == [0, 0, 0, 0]
    assert advantages[2].tolist() == pytest.approx([math.sqrt(3), *[-1 / math.sqrt(3)] * 3])
    assert informative.tolist() == [True, False, True]


def test_the_sequence_ratio_is_the_geometric_mean_over_the_sampled_tokens():
    new = torch.tensor([[-1.0, -1.0, -9.0]])
    old = torch.tensor([[-1.0 - LN2, -1.0 - 3 * LN2, 5.0]])  # token ratios 2 and 8; the third was not sampled
    present = torch.tensor([[True, True, False]])
    assert sequence_ratio(new, old, present).item() == pytest.approx(4.0)  # sqrt(2 * 8)


def test_gspo_token_has_the_sequence_ratio_in_value_and_a_gradient_at_each_token():
    new = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    old = torch.tensor([[-1.0 - LN2, -2.0 - 3 * LN2]])
    present = torch.ones(1, 2, dtype=torch.bool)
    ratio = gspo_token_ratio(new, old, present)
    assert ratio.tolist() == [pytest.approx([4.0, 4.0])]
    ratio.sum().backward()
    assert new.grad.tolist() == [pytest.approx([4.0, 4.0])]  # d s_ij / d log pi_ij = s_i


def test_the_mask_keeps_ratios_inside_the_bounds_and_zeroes_the_rest():
    old = torch.tensor([[0.0, 0.0, 0.0]])
    infer = torch.tensor([[-math.log(1.5), math.log(3.0), -math.log(2.5)]])  # ratios 1.5, 1/3, 2.5
    assert train_infer_mask(old, infer, (0.5, 2.0)).tolist() == [pytest.approx([1.5, 0.0, 0.0])]


def worked_example(objective: str, new: torch.Tensor):
    """Two rollouts of two tokens: token ratios new/old (1.5, 1.5) and (2, 0.5); advantages +1 and -1;
    train/infer ratios 1 but for one token of the first rollout at 3, outside (0.5, 2)."""
    old = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]])
    infer = old - torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    present = torch.ones(2, 2, dtype=torch.bool)
    return policy_loss(
        new, old, infer, present, torch.tensor([1.0, -1.0]), objective=objective, clip=0.2, mask=(0.5, 2.0)
    )


def worked_logs() -> torch.Tensor:
    log15 = math.log(1.5)
    return torch.tensor([[-1 + log15, -1 + log15], [-1 + LN2, -1 - LN2]], requires_grad=True)


def test_misc_by_hand():
    new = worked_logs()
    result = worked_example("misc", new)
    # rollout 1: s = 1.5, clipped to 1.2, tokens (1.2, masked): mean 0.6. rollout 2: s = 1: mean -1.
    assert result.loss.item() == pytest.approx(-(0.6 - 1.0) / 2)
    assert result.mask_fraction == pytest.approx(1 / 4)
    assert result.clip_fraction == pytest.approx(2 / 4)
    assert (result.gap, result.gap_max) == pytest.approx((math.log(3) / 4, math.log(3)))
    result.loss.backward()
    # a clipped or masked token gives no gradient; in rollout 2 each gets -A s / (G |y|) = 1 / 4
    assert new.grad.tolist() == [pytest.approx([0.0, 0.0]), pytest.approx([0.25, 0.25])]


def test_grpo_by_hand():
    result = worked_example("grpo", worked_logs())
    # rollout 1: (1.2, masked): 0.6. rollout 2, A = -1: min(-2, -1.2) = -2 and min(-0.5, -0.8) = -0.8: mean -1.4
    assert result.loss.item() == pytest.approx(-(0.6 - 1.4) / 2)


def test_absent_tokens_change_nothing_whatever_they_hold():
    old = torch.tensor([[-1.0, float("nan")]])
    new = torch.tensor([[-1.0, float("nan")]], requires_grad=True)
    present = torch.tensor([[True, False]])
    result = policy_loss(new, old, old, present, torch.tensor([2.0]), clip=0.2, mask=(0.5, 2.0))
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-2.0)
    assert new.grad.tolist() == [[-2.0, 0.0]]


def test_on_policy_the_gradient_is_the_length_normalised_policy_gradient():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 5, requires_grad=True)
    tokens = torch.randint(5, (3, 4, 1))
    present = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    advantages = torch.tensor([1.0, -0.5, 2.0])
    new = torch.log_softmax(logits, -1).gather(2, tokens).squeeze(2)
    result = policy_loss(new, new.detach(), new.detach(), present, advantages, clip=0.2, mask=(0.5, 2.0))
    (gradient,) = torch.autograd.grad(result.loss, logits, retain_graph=True)
    plain = -(advantages * (new * present).sum(1) / present.sum(1)).mean()
    (expected,) = torch.autograd.grad(plain, logits)
    torch.testing.assert_close(gradient, expected)
