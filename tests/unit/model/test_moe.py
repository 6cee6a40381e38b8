"""Experts: grouped computation and its gradients against a plain loop, routing, balancing."""

import pytest
import torch
import torch.nn.functional as F

from accordion.model.experts import dense_experts, run_experts
from accordion.model.experts_in_turn import chunks_of
from accordion.model.moe import MoE


def reference(x, gates, weight_in, weight_out, choice):
    """Token by token, expert by expert."""
    rows = []
    for token in range(len(x)):
        total = torch.zeros_like(x[token])
        for slot, expert in enumerate(choice[token].tolist()):
            if expert < len(weight_in):
                gate, up = (x[token] @ weight_in[expert]).chunk(2)
                total = total + gates[token, slot] * ((F.silu(gate) * up) @ weight_out[expert])
        rows.append(total)
    return torch.stack(rows)


def grouped(*inputs):
    return run_experts(*inputs)[0]


@pytest.mark.parametrize("run", [grouped, dense_experts])
def test_experts_and_their_gradients_equal_the_plain_loop(run):
    g = torch.Generator().manual_seed(0)
    x, gates = torch.randn(11, 4, generator=g), torch.rand(11, 3, generator=g)
    weight_in, weight_out = torch.randn(5, 4, 6, generator=g), torch.randn(5, 3, 4, generator=g)
    choice = torch.rand(11, 4, generator=g).topk(3).indices  # expert 4 is never chosen
    choice[2:6, 1:] = 5  # these rows use one expert only
    gates = gates.masked_fill(choice == 5, 0.0)
    inputs = [t.double().requires_grad_() for t in (x, gates, weight_in, weight_out)]
    expected, actual = reference(*inputs, choice), run(*inputs, choice)
    torch.testing.assert_close(actual, expected)
    seed = torch.randn(11, 4, generator=g).double()
    wanted = torch.autograd.grad((expected * seed).sum(), inputs)
    given = torch.autograd.grad((actual * seed).sum(), inputs)
    for name, mine, theirs in zip(("x", "gates", "in", "out"), given, wanted, strict=True):
        if name == "gates":  # the gradient of a gate that is not computed is of no use to anyone
            mine, theirs = mine[choice < 5], theirs[choice < 5]
        torch.testing.assert_close(mine, theirs, msg=name)


def test_one_grouped_product_in_bfloat16_is_near_the_separate_ones_and_idle_experts_learn_nothing():
    g = torch.Generator().manual_seed(0)
    x, gates = torch.randn(40, 16, generator=g), torch.rand(40, 3, generator=g)
    weight_in, weight_out = torch.randn(5, 16, 32, generator=g) / 4, torch.randn(5, 16, 16, generator=g) / 4
    choice = torch.rand(40, 4, generator=g).topk(3).indices  # expert 4 is never chosen
    choice[2:6, 1:] = 5
    gates = gates.masked_fill(choice == 5, 0.0)
    inputs = [t.requires_grad_() for t in (x, gates, weight_in, weight_out)]
    plain, counts = run_experts(*inputs, choice)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = run_experts(*inputs, choice)
    assert mixed.dtype == torch.float32 and counts.tolist()[4] == 0 and counts.sum() == (choice < 5).sum()
    assert torch.linalg.vector_norm(mixed - plain) < 0.02 * torch.linalg.vector_norm(plain)
    seed = torch.randn(40, 16, generator=g)
    for mine, theirs in zip(
        torch.autograd.grad((mixed * seed).sum(), inputs),
        torch.autograd.grad((plain * seed).sum(), inputs),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        if mine.ndim == 3:  # of the weights: an expert that nobody chose learns nothing
            assert not mine[4].any() and not theirs[4].any()
        if mine.shape == gates.shape:
            mine, theirs = mine[choice < 5], theirs[choice < 5]
        assert torch.linalg.vector_norm(mine - theirs) < 0.03 * torch.linalg.vector_norm(theirs)


def test_chunks_hold_every_assignment_once():
    counts = [0, 100, 40, 0, 300, 1, 0]
    chunks = chunks_of(counts)
    rows = [
        (expert, chunk.rows.start + span.start, chunk.rows.start + span.stop)
        for chunk in chunks
        for expert, span in chunk.members
    ]
    assert rows == [(1, 0, 100), (2, 100, 140), (4, 140, 440), (5, 440, 441)]
    assert [(chunk.rows.start, chunk.rows.stop) for chunk in chunks] == [(0, 140), (140, 440), (440, 441)]
    assert chunks_of([0, 0]) == []


def test_many_chunks_give_what_all_experts_for_all_tokens_give():
    g = torch.Generator().manual_seed(0)
    x, gates = torch.randn(500, 8, generator=g), torch.rand(500, 3, generator=g)
    weight_in, weight_out = torch.randn(9, 8, 12, generator=g), torch.randn(9, 6, 8, generator=g)
    choice = torch.rand(500, 9, generator=g).topk(3).indices
    inputs = [t.double().requires_grad_() for t in (x, gates, weight_in, weight_out)]
    seed = torch.randn(500, 8, generator=g).double()
    for mine, theirs in zip(
        torch.autograd.grad((run_experts(*inputs, choice)[0] * seed).sum(), inputs),
        torch.autograd.grad((dense_experts(*inputs, choice) * seed).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_forgotten_gradients_lend_their_memory_and_kept_ones_add_up():
    layer, x = moe().train(), torch.randn(20, 8, generator=torch.Generator().manual_seed(2))

    def learn() -> tuple[int, torch.Tensor]:
        layer(x, None, None)[0].square().sum().backward()
        return layer.expert_in.grad.data_ptr(), layer.expert_in.grad.clone()

    memory, first = learn()
    layer.forget_gradients()
    assert layer.expert_in.grad is None and layer.expert_out.grad is None
    again, second = learn()
    assert again == memory and torch.equal(first, second)
    torch.testing.assert_close(learn()[1], 2 * first)


def moe(experts=6, top_k=2) -> MoE:
    layer = MoE(8, experts, top_k, 4, 4)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(0, 0.5, generator=g)
    return layer


def test_the_bias_selects_but_does_not_weigh():
    layer, x = moe(), torch.randn(20, 8, generator=torch.Generator().manual_seed(2))
    layer.bias[3] = 10.0
    choice, gates = layer.route(x, None, None)
    assert (choice[:, 0] == 3).all()
    scores = torch.sigmoid(x @ layer.router.t()).gather(1, choice)
    torch.testing.assert_close(gates, scores / scores.sum(1, keepdim=True))


def test_masked_experts_are_never_chosen_and_rows_have_their_own_top_k():
    layer, x = moe(), torch.randn(20, 8, generator=torch.Generator().manual_seed(2))
    eligible = torch.ones(20, 6, dtype=torch.bool)
    eligible[:10, 3:] = False
    top_k = torch.tensor([1, 2] * 10)
    choice, gates = layer.route(x, eligible, top_k)
    assert set(choice[:10].flatten().tolist()) <= {0, 1, 2, 6}
    assert ((choice < 6).sum(1) == top_k).all() and torch.allclose(gates.sum(1), torch.ones(20))


def test_balancing_evens_the_load_and_spares_experts_that_were_not_eligible():
    layer, x = moe().train(), torch.randn(400, 8, generator=torch.Generator().manual_seed(2))
    layer.bias[0] = 0.5
    layer(x, None, None)
    uneven = layer.load.max() / layer.expected.max()
    for _ in range(300):
        layer.balance(0.01)
        layer(x, None, None)
    assert layer.expected.eq(400 * 2 / 6).all()
    assert layer.load.max() / layer.expected.max() < 1.15 < uneven
    layer.balance(0.0)
    before = layer.bias.clone()
    eligible = torch.zeros(400, 6, dtype=torch.bool)
    eligible[:, :3] = True
    layer(x, eligible, torch.ones(400, dtype=torch.long))
    assert layer.expected.tolist() == pytest.approx([400 / 3] * 3 + [0] * 3)
    layer.balance(0.01)
    assert torch.equal(layer.bias[3:], before[3:]) and (layer.bias[:3] != before[:3]).any()


def test_evaluation_counts_nothing():
    layer = moe().eval()
    layer(torch.randn(5, 8), None, None)
    assert layer.load.sum() == 0
