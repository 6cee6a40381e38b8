"""Rotary positions; queries and keys normalised and rotated in one go against the same with autograd."""

import torch

from accordion.model.norm import rms_norm
from accordion.model.rope import queries_keys_values, rope_table, rotate


def test_text_positions_rotate_as_plain_rope_and_scores_depend_on_distances_only():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 1, 12, generator=g), torch.randn(1, 1, 1, 12, generator=g)

    def score(at: list[float], other: list[float]) -> torch.Tensor:
        tables = [rope_table(torch.tensor([[where]]), 12, 1e4) for where in (at, other)]
        return (rotate(q, tables[0]) * rotate(k, tables[1])).sum()

    torch.testing.assert_close(score([5, 5, 5], [2, 2, 2]), score([9, 9, 9], [6, 6, 6]))
    torch.testing.assert_close(score([5, 1.5, 3], [2, 2, 2]), score([6, 4.5, 5], [3, 5, 4]))
    assert not torch.isclose(score([5, 1, 1], [2, 1, 1]), score([2, 4, 1], [2, 1, 1]))
    angle = 5 * 1e4 ** (-torch.arange(6) / 6)
    torch.testing.assert_close(rope_table(torch.full((1, 1, 3), 5.0), 12, 1e4)[0].flatten(), angle.cos())


def test_queries_and_keys_and_their_gradients_are_those_of_norm_then_rotation():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 4, 6, generator=g, dtype=torch.float64, requires_grad=True)
    weights = [torch.rand(6, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2)]
    cos, sin = (table.double() for table in rope_table(torch.rand(2, 5, 3, generator=g) * 9, 6, 1e4))
    actual = queries_keys_values(x, *weights, (cos, sin))
    q, k, v = x.permute(2, 0, 3, 1, 4)
    expected = (rotate(rms_norm(q, weights[0]), (cos, sin)), rotate(rms_norm(k, weights[1]), (cos, sin)), v)
    torch.testing.assert_close(actual, expected)
    seeds = [torch.randn(part.shape, generator=g, dtype=torch.float64) for part in expected]
    given, wanted = (torch.autograd.grad(parts, (x, *weights), seeds) for parts in (actual, expected))
    torch.testing.assert_close(given, wanted)
    with torch.no_grad():
        torch.testing.assert_close(queries_keys_values(x, *weights, (cos, sin)), expected)
