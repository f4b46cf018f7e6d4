"""Collapse monitors at points where their value is known in closed form, and against plain NumPy."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_ft.evaluate.monitors import alignment, embedding_std, rank_me, uniformity


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("num_dims", [1, 4, 33])
def test_signed_axes_have_full_spread_and_one_direction_none(num_dims: int) -> None:
    axes = torch.cat([torch.eye(num_dims), -torch.eye(num_dims)])
    assert embedding_std(axes) == pytest.approx(1.0, abs=1e-12)
    one_direction = torch.rand(50, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(1, num_dims)
    assert embedding_std(one_direction + 0.1) == pytest.approx(0.0, abs=1e-6)


def test_spread_of_a_gaussian_is_near_one_whatever_its_norms() -> None:
    z = _normal(4000, 16)
    assert embedding_std(z) == pytest.approx(1.0, abs=0.01)
    assert embedding_std(z * torch.arange(1, 4001)[:, None]) == pytest.approx(embedding_std(z), abs=1e-12)


@pytest.mark.parametrize("num_dims", [1, 5, 64])
def test_rank_of_orthogonal_rows_is_their_number(num_dims: int) -> None:
    assert rank_me(3.0 * torch.eye(num_dims)) == pytest.approx(num_dims, abs=1e-9)
    assert rank_me(torch.eye(num_dims).repeat(7, 1)) == pytest.approx(num_dims, abs=1e-9)


def test_rank_of_one_direction_is_one_and_of_nothing_zero() -> None:
    assert rank_me(_normal(100, 1) @ _normal(1, 32, seed=1)) == pytest.approx(1.0, abs=1e-6)
    assert rank_me(torch.zeros(10, 4)) == 0.0


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (12, 12)])
def test_rank_equals_the_paper(shape: tuple[int, int]) -> None:
    z = _normal(*shape)
    # Singular values from the eigenvalues of the Gram matrix: another route than the code's.
    values = np.sqrt(np.linalg.eigvalsh((z @ z.T if shape[0] < shape[1] else z.T @ z).numpy()))
    shares = values / values.sum()
    assert rank_me(z) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), abs=1e-9)


def test_alignment_at_same_opposite_and_orthogonal_views() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert alignment(z, 5 * z) == pytest.approx(0.0, abs=1e-12)
    assert alignment(z, -z) == pytest.approx(4.0, abs=1e-12)
    assert alignment(z, z.flip(0)) == pytest.approx(2.0, abs=1e-12)


def test_uniformity_equals_loops_and_its_limits() -> None:
    z = _normal(15, 3)
    unit = [row / np.sqrt((row**2).sum()) for row in z.numpy()]
    pairs = [math.exp(-2 * ((a - b) ** 2).sum()) for a, b in itertools.combinations(unit, 2)]
    assert uniformity(z) == pytest.approx(math.log(np.mean(pairs)), abs=1e-9)
    assert uniformity(torch.ones(9, 3)) == pytest.approx(0.0, abs=1e-9)
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8.0, abs=1e-9)


def test_a_diverged_embedding_reads_nan_rather_than_raising() -> None:
    z = _normal(10, 4)
    z[3, 2] = torch.inf
    values = [embedding_std(z), rank_me(z), alignment(z, z), uniformity(z)]
    assert all(math.isnan(value) for value in values)


def test_gradients_and_half_precision_do_not_matter() -> None:
    z = _normal(20, 8).float().requires_grad_()
    assert rank_me(z) == rank_me(z.detach())
    assert rank_me(torch.eye(8, dtype=torch.bfloat16)) == pytest.approx(8.0, abs=1e-9)
