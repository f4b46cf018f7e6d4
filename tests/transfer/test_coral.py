"""CORAL against a slow reference in float64, values and gradients, and its limits."""

import pytest
import torch

from ssl_ft.transfer.coral import coral


def slow_coral(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Equations 1 to 3 of Deep CORAL as they are printed, entry by entry."""

    def covariance(rows: torch.Tensor) -> torch.Tensor:
        ones = torch.ones(1, len(rows), dtype=rows.dtype)
        return (rows.T @ rows - (ones @ rows).T @ (ones @ rows) / len(rows)) / (len(rows) - 1)

    one, other, width = covariance(source), covariance(target), source.shape[1]
    total = sum((one[i, j] - other[i, j]) ** 2 for i in range(width) for j in range(width))
    return torch.as_tensor(total / (4 * width * width))


@pytest.mark.parametrize(("n", "m", "d"), [(2, 3, 1), (5, 4, 3), (16, 9, 7)])
def test_as_the_reference(n, m, d):
    generator = torch.Generator().manual_seed(n)
    pair = [torch.randn(k, d, generator=generator, dtype=torch.float64, requires_grad=True) for k in (n, m)]
    fast, slow = coral(*pair), slow_coral(*pair)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-9)
    for one, other in zip(torch.autograd.grad(fast, pair), torch.autograd.grad(slow, pair), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    single = coral(*(side.detach().float() for side in pair))
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(fast.item(), rel=1e-4)


def test_limits():
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert coral(rows, rows.flip(0)).item() == pytest.approx(0, abs=1e-20)
    assert coral(rows, rows + 3.0).item() == pytest.approx(0, abs=1e-20)  # means play no part
    alone = torch.tensor([[1.0], [3.0]], dtype=torch.float64)  # a variance of 2 against none
    assert coral(alone, torch.zeros(5, 1, dtype=torch.float64)).item() == pytest.approx(4 / 4)


def test_a_product_of_matrices_is_not_rounded_in_mixed_precision():
    generator = torch.Generator().manual_seed(3)
    pair = [torch.randn(32, 16, generator=generator) + 5 for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = coral(*pair)
    assert torch.equal(mixed, coral(*pair))
