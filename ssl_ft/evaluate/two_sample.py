"""Do two sets of images come from one source? Tests on features whose false alarms are exact, arrays in, numbers out.

Two tests ask how far the sets lie apart, the maximum mean discrepancy and the Fréchet distance, both against
permutations; a third, whether a classifier tells them apart. Not here: what the features are of, and what several
tests say together (`shift.py`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import hypergeom
from torch import Tensor

from ssl_ft.evaluate.probe import fit_linear, standardise
from ssl_ft.seeding import derive_seed

Floats = NDArray[np.float64]

# Leading axes the tests look along: more of them cost power where a set has a few hundred images, and the Fréchet
# distance, which needs the eigenvalues of a matrix for each permutation, seconds.
MOST_COMPONENTS = 64
_FRECHET_COMPONENTS = 32
# Below this many images a set has no covariance worth the name, and half of it trains no classifier.
FEWEST_IMAGES = 20
# The penalty of the classifier on components of variance 1.
_STRENGTH = 0.1
# Permutations worked on at a time; their covariances take 8 · 32² bytes each.
_BLOCK = 256


@dataclass(frozen=True)
class Outcome:
    """What one test found.

    Attributes:
        name: "classifier", "mmd" or "frechet".
        value: balanced accuracy, squared discrepancy, or distance.
        null: the same for two parts of one set of these sizes: 0.5, or the mean over permutations.
        p_value: probability of such a value where both sets come from one source; never below what is exact.
    """

    name: str
    value: float
    null: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Pooled:
    """All images of both sets, as the tests take them. Labels play no part, so every split of them shares it.

    Attributes:
        components: float64 [N, K], coordinates along the leading axes, centred, with a total variance of 1.
        kernel: float64 [N, N], RBF kernel with the median distance as its width, and a diagonal of 0.
        leading: float64 [N, L], the first of them, for the Fréchet distance.
        products: float64 [N, L (L + 1) / 2], products of each pair of those.
    """

    components: Tensor
    kernel: Tensor
    leading: Tensor
    products: Tensor


def mmd_squared(x: Floats, y: Floats, *, width: float) -> float:
    """The unbiased squared maximum mean discrepancy, k(a, b) = exp(−‖a − b‖² / (2 · width²)).

    Gretton et al. 2012, "A kernel two-sample test", equation 3; about 0 for two parts of one set, and then as often
    below it.

    Args:
        x: float64 [N, D], two rows at least.
        y: float64 [M, D], two rows at least.
        width: of the kernel, > 0.
    """
    both = torch.from_numpy(np.concatenate([x, y]))
    # About a common origin: distances are taken by way of squares, in which a large mean would drown them.
    kernel = _kernel(both - both.mean(0), squared_width=width**2)
    is_y = torch.arange(len(x) + len(y)) >= len(x)
    return float(_discrepancies(kernel, is_y.double().unsqueeze(1))[0])


def frechet_distance(x: Floats, y: Floats) -> float:
    """‖m₁ − m₂‖² + tr(C₁ + C₂ − 2 (C₁ C₂)^½) of the normal distributions with the sets' means and covariances.

    Dowson and Landau 1982, equation 16; covariances divide by N − 1. Few rows make it larger: compare it with what
    two parts of one set give.

    Args:
        x: float64 [N, D], two rows at least.
        y: float64 [M, D], two rows at least.
    """
    both = torch.from_numpy(np.concatenate([x, y]))
    is_y = (torch.arange(len(both)) >= len(x)).double().unsqueeze(1)
    # About a common origin, or large means would drown the covariances.
    centred = both - both.mean(0)
    return float(_distances(centred, _products(centred), is_y)[0])


def pool(features: NDArray[np.floating[Any]], *, most_components: int = MOST_COMPONENTS) -> Pooled:
    """Prepare features float [N, D] of both sets together, finite numbers."""
    values = torch.from_numpy(np.asarray(features, np.float64))
    values = values - values.mean(0)
    # The smaller of the two products of the features with themselves tells the axes.
    if values.shape[1] <= values.shape[0]:
        _, axes = torch.linalg.eigh(values.T @ values)
        components = values @ axes.flip(1)[:, :most_components]
    else:
        squares, sides = torch.linalg.eigh(values @ values.T)
        components = (sides * squares.clamp(min=0).sqrt()).flip(1)[:, :most_components]
    spread = components.square().sum(1).mean().sqrt()
    components = components / spread if spread > 0 else components
    distances = torch.pdist(components).square()
    median = float(distances.median()) if len(distances) else 1.0
    leading = components[:, :_FRECHET_COMPONENTS].contiguous()
    return Pooled(components, _kernel(components, squared_width=median or 1.0), leading, _products(leading))


def compare(pooled: Pooled, is_second: NDArray[np.bool_], *, num_permutations: int, seed: int) -> list[Outcome]:
    """Test whether the second set comes from where the first does: classifier, MMD and Fréchet distance.

    A p-value of the latter two is the share of permutations, the data's own among them, that reach the value: exact,
    whatever the features' distribution and size.

    Args:
        pooled: both sets together, N images.
        is_second: bool [N], which belong to the second; `FEWEST_IMAGES` of each at least.
        num_permutations: random splits of the N images into sets of these sizes; p-values go down to
            1 / (num_permutations + 1).
        seed: of permutations and folds.
    """
    assert min(is_second.sum(), (~is_second).sum()) >= FEWEST_IMAGES, "too few images to test"
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "permutations")))
    order = generator.random((len(is_second), num_permutations)).argsort(axis=0)
    # The data's own split is the first column: what it is compared with is computed alike, to the last bit.
    splits = torch.from_numpy(np.concatenate([is_second[:, None], is_second[order]], axis=1).astype(np.float64))
    found = {
        "mmd": torch.cat([_discrepancies(pooled.kernel, part) for part in splits.split(_BLOCK, dim=1)]),
        "frechet": torch.cat(
            [_distances(pooled.leading, pooled.products, part) for part in splits.split(_BLOCK, dim=1)]
        ),
    }
    results = [classifier_test(pooled.components.numpy(), is_second, seed=seed)]
    for name, values in found.items():
        own, null = values[0], values[1:]
        p_value = (1 + int((null >= own).sum())) / (1 + num_permutations)
        results.append(Outcome(name, float(own), float(null.mean()), p_value))
    return results


def classifier_test(features: Floats, is_second: NDArray[np.bool_], *, seed: int) -> Outcome:
    """Balanced accuracy of a cross-fitted logistic regression in telling the sets apart, and how surprising it is.

    After Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests", with two folds: each half is judged by
    the classifier of the other. Given that classifier, which images of the half it calls right is under the null
    hypothesis a draw without replacement, so each half has Fisher's exact p-value. The two depend on each other,
    since each half trains the other's judge: twice the smaller one holds whatever their dependence.

    Args:
        features: float64 [N, D].
        is_second: bool [N].
        seed: of the folds.
    """
    labels, fold_of = is_second.astype(np.int64), _halves(is_second, seed=seed)
    called = np.zeros(len(labels), bool)
    p_values = []
    for fold in (0, 1):
        judged, learnt = fold_of == fold, fold_of != fold
        mean, scale = standardise(features[learnt])
        fitted = fit_linear(features[learnt], labels[learnt], strength=_STRENGTH, num_classes=2, mean=mean, scale=scale)
        # Sets of unequal size: a class is not called for being common.
        common = labels[learnt].mean()
        called[judged] = fitted.predict_proba(features[judged])[:, 1] > common
        num_second, num_called = int(labels[judged].sum()), int(called[judged].sum())
        num_right = int((called & is_second)[judged].sum())
        p_values.append(float(hypergeom.sf(num_right - 1, int(judged.sum()), num_second, num_called)))
    accuracy = (called[is_second].mean() + (~called)[~is_second].mean()) / 2
    return Outcome("classifier", float(accuracy), 0.5, min(1.0, 2 * min(p_values)))


def _halves(is_second: NDArray[np.bool_], *, seed: int) -> NDArray[np.int64]:
    """A random half of each set, int64 [N] of 0 and 1."""
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "halves")))
    fold_of = np.empty(len(is_second), np.int64)
    for is_mine in (is_second, ~is_second):
        fold_of[generator.permutation(np.flatnonzero(is_mine))] = np.arange(is_mine.sum()) % 2
    return fold_of


def _kernel(values: Tensor, *, squared_width: float) -> Tensor:
    kernel = torch.exp(-torch.cdist(values, values).square() / (2 * squared_width))
    return kernel.fill_diagonal_(0.0)


def _discrepancies(kernel: Tensor, splits: Tensor) -> Tensor:
    """Squared discrepancies float64 [P] of splits float64 [N, P] of 0 and 1, from a kernel with a diagonal of 0."""
    second = splits.sum(0)
    first = len(splits) - second
    rows = kernel.sum(1)
    inside = (splits * (kernel @ splits)).sum(0)
    across = rows @ splits - inside
    rest = rows.sum() - 2 * across - inside
    return inside / (second * (second - 1)) + rest / (first * (first - 1)) - 2 * across / (first * second)


def _products(values: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(values.shape[1], values.shape[1])
    return values[:, rows] * values[:, columns]


def _distances(values: Tensor, products: Tensor, splits: Tensor) -> Tensor:
    """Fréchet distances float64 [P] of splits float64 [N, P] of 0 and 1."""
    means, covariances = [], []
    for members in (splits, 1 - splits):
        count = members.sum(0).unsqueeze(1)
        mean = members.T @ values / count
        seconds = _symmetric(members.T @ products, values.shape[1])
        covariances.append(
            (seconds - count.unsqueeze(2) * mean.unsqueeze(2) * mean.unsqueeze(1)) / (count - 1).unsqueeze(2)
        )
        means.append(mean)
    squares, axes = torch.linalg.eigh(covariances[0])
    root = (axes * squares.clamp(min=0).sqrt().unsqueeze(1)) @ axes.mT
    # The eigenvalues of C₁ C₂ are those of the symmetric C₁^½ C₂ C₁^½.
    shared = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum(1)
    traces = sum(c.diagonal(dim1=1, dim2=2).sum(1) for c in covariances)
    distances: Tensor = (means[0] - means[1]).square().sum(1) + traces - 2 * shared
    return distances


def _symmetric(upper: Tensor, size: int) -> Tensor:
    """[P, size, size] from the upper triangles [P, size (size + 1) / 2]."""
    rows, columns = torch.triu_indices(size, size)
    full = upper.new_empty(len(upper), size, size)
    full[:, rows, columns] = upper
    full[:, columns, rows] = upper
    return full
