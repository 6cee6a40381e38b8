"""RMS normalisation: the hand-written gradients against autograd's."""

import torch
import torch.nn.functional as F

from accordion.model.norm import EPSILON, RmsNorm, rms_norm


def test_values_and_gradients_equal_autograd_of_the_plain_formula():
    g = torch.Generator().manual_seed(0)
    base = torch.randn(2, 3, 5, 4, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, generator=g, dtype=torch.float64, requires_grad=True)
    for x in (base, base.transpose(1, 2)):  # contiguous or not
        seed = torch.randn(x.shape, generator=g, dtype=torch.float64)
        expected = F.rms_norm(x, (4,), weight, EPSILON)
        actual = rms_norm(x, weight)
        torch.testing.assert_close(actual, expected)
        wanted = torch.autograd.grad((expected * seed).sum(), (base, weight))
        given = torch.autograd.grad((actual * seed).sum(), (base, weight))
        torch.testing.assert_close(given, wanted)


def test_zeros_stay_zeros_with_finite_gradients_and_inference_agrees():
    norm, x = RmsNorm(4), torch.zeros(2, 4, requires_grad=True)
    norm(x).sum().backward()
    assert torch.isfinite(x.grad).all() and norm(x).abs().sum() == 0
    y = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = norm(y)
    torch.testing.assert_close(norm(y), plain)
