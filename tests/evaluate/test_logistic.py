"""The solver of many logistic regressions against scikit-learn, one problem at a time; shapes of trouble."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssl_ft.evaluate import logistic, logistic_objective
from ssl_ft.evaluate.logistic import Solutions, log_losses, solve
from ssl_ft.evaluate.logistic_objective import design_of

STRENGTHS = (10.0, 1.0, 0.1, 1e-2, 1e-4)


def rows_of(
    seed: int, *, num_rows: int, num_features: int, num_classes: int, distance: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Features float32, labels, and a scale that is not that of the rows."""
    generator = np.random.default_rng(seed)
    labels = np.r_[np.arange(num_classes), generator.integers(num_classes, size=num_rows - num_classes)]
    centres = distance * generator.standard_normal((num_classes, num_features))
    mixing = np.eye(num_features) + 0.3 * generator.standard_normal((num_features, num_features))
    features = (centres[labels] + generator.standard_normal((num_rows, num_features))) @ mixing + 2.0
    scale = generator.uniform(0.5, 3.0, num_features)
    return tuple(torch.from_numpy(part) for part in (features.astype(np.float32), labels, scale))


def solved(
    rows: tuple[Tensor, ...], strengths: tuple[float, ...] = STRENGTHS, tolerance: float = 1e-10, **changed: object
) -> Solutions:
    features, labels, scale = rows
    tolerance = torch.full((len(strengths),), tolerance, dtype=torch.float64)
    settings = {"num_classes": int(labels.max()) + 1, "tolerance": tolerance} | changed
    return solve(design_of(features, scale), labels, strengths=torch.tensor(strengths).double(), **settings)


def standard(rows: tuple[Tensor, ...]) -> np.ndarray:
    features, _, scale = rows
    return ((features.double() - features.double().mean(dim=0)) / scale).numpy()


def shares(found: Solutions, number: int, values: np.ndarray) -> np.ndarray:
    return softmax(values @ found.weights[number].T.numpy() + found.bias[number].numpy(), axis=1)


def assert_same_up_to_tolerance(
    left: Solutions, here: int, right: Solutions, there: int, rows: tuple[Tensor, ...]
) -> None:
    values = standard(rows)
    np.testing.assert_allclose(shares(left, here, values), shares(right, there, values), atol=1e-7)
    # The gradient's tolerance over the weakest strength.
    torch.testing.assert_close(left.weights[here], right.weights[there], rtol=0, atol=1e-6)


def reference(values: np.ndarray, labels: np.ndarray, strength: float, tolerance: float = 1e-10) -> LogisticRegression:
    # With two classes scikit-learn fits one column w for [−w/2, +w/2], whose squared norm is half of w's.
    factor = 2 if len(np.unique(labels)) == 2 else 1
    model = LogisticRegression(
        C=factor / (strength * len(labels)), solver="newton-cholesky", tol=tolerance, max_iter=500
    )  # fmt: skip
    return model.fit(values, labels)


@pytest.fixture(params=["double", "single then double"])
def either_precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(logistic, "_SINGLE_WORTH", 2**60 if request.param == "double" else 0)
    # Rows in several blocks, and in one case made at each step.
    monkeypatch.setattr(logistic_objective, "_MAX_DOUBLE", 2**25 if request.param == "double" else 0)
    monkeypatch.setattr(logistic_objective, "_MAX_BLOCK", dict.fromkeys((torch.float32, torch.float64), 1))
    return request.param


@pytest.mark.parametrize(
    ("num_rows", "num_features", "num_classes"), [(300, 12, 4), (40, 90, 3), (50, 50, 2), (7, 60, 5), (30, 1, 3)]
)
def test_equals_scikit_learn(either_precision: str, num_rows: int, num_features: int, num_classes: int) -> None:
    rows = rows_of(0, num_rows=num_rows, num_features=num_features, num_classes=num_classes)
    found, values = solved(rows), standard(rows)
    for number, strength in enumerate(STRENGTHS):
        model = reference(values, rows[1].numpy(), strength)
        np.testing.assert_allclose(shares(found, number, values), model.predict_proba(values), atol=1e-7)
        weights = model.coef_ if num_classes > 2 else model.coef_ * [[-0.5], [0.5]]
        np.testing.assert_allclose(found.weights[number].numpy(), weights, atol=1e-6)


def test_gradient_of_the_stated_objective_vanishes(either_precision: str) -> None:
    rows = rows_of(1, num_rows=200, num_features=20, num_classes=6)
    found, values = solved(rows), standard(rows)
    for number, strength in enumerate(STRENGTHS):
        errors = shares(found, number, values) - np.eye(6)[rows[1].numpy()]
        assert np.abs(errors.T @ values / 200 + strength * found.weights[number].numpy()).max() < 1e-8
        assert np.abs(errors.mean(axis=0)).max() < 1e-9


@pytest.mark.parametrize("num_features", [5, 70])
def test_separable_classes_at_a_tiny_strength(either_precision: str, num_features: int) -> None:
    """The weights grow until the loss is as small as the penalty; from there scikit-learn agrees."""
    rows = rows_of(2, num_rows=60, num_features=num_features, num_classes=3, distance=6.0)
    found, values = solved(rows, (1e-6,)), standard(rows)
    model = reference(values, rows[1].numpy(), 1e-6, tolerance=1e-9)
    np.testing.assert_allclose(shares(found, 0, values), model.predict_proba(values), atol=1e-6)
    assert (shares(found, 0, values).argmax(axis=1) == rows[1].numpy()).all()


def test_kept_rows_alone_count_and_a_class_may_be_missing_among_them(either_precision: str) -> None:
    rows = rows_of(3, num_rows=120, num_features=30, num_classes=4)
    labels, values = rows[1].numpy(), standard(rows)
    kept = np.random.default_rng(0).uniform(size=(3, 120)) < 0.6
    kept[1] &= labels != 2
    kept[2] = labels < 2
    strengths = (0.1, 0.01, 1e-3)
    found = solved(rows, strengths, kept=torch.from_numpy(kept))
    for number, (mask, strength) in enumerate(zip(kept, strengths, strict=True)):
        model = reference(values[mask], labels[mask], strength)
        expected = np.zeros((120, 4))
        expected[:, model.classes_] = model.predict_proba(values)
        np.testing.assert_allclose(shares(found, number, values), expected, atol=5e-7)
        absent = np.setdiff1d(np.arange(4), model.classes_)
        assert (found.bias[number, absent] == -torch.inf).all()
        assert (found.weights[number, absent] == 0).all()


def test_constant_feature_gets_no_weight(either_precision: str) -> None:
    features, labels, scale = rows_of(4, num_rows=80, num_features=6, num_classes=3)
    features[:, 2] = 7.0
    rows = (features, labels, scale)
    found, values = solved(rows), standard(rows)
    for number, strength in enumerate(STRENGTHS):
        expected = reference(values, labels.numpy(), strength).predict_proba(values)
        np.testing.assert_allclose(shares(found, number, values), expected, atol=1e-7)
    assert found.weights[..., 2].abs().max() < 1e-9


@pytest.mark.parametrize("num_features", [8, 150])
def test_together_is_one_at_a_time_in_any_order(
    either_precision: str, num_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(5, num_rows=100, num_features=num_features, num_classes=3)
    kept = torch.rand(5, 100, generator=torch.Generator().manual_seed(0)) < 0.8
    together = solved(rows, kept=kept)
    for number, strength in enumerate(STRENGTHS):
        alone = solved(rows, (strength,), kept=kept[number : number + 1])
        assert_same_up_to_tolerance(together, number, alone, 0, rows)
    order = [3, 0, 4, 2, 1]
    shuffled = solved(rows, tuple(STRENGTHS[number] for number in order), kept=kept[order])
    for place, number in enumerate(order):
        assert_same_up_to_tolerance(shuffled, place, together, number, rows)
    monkeypatch.setattr(logistic, "_MAX_UNKNOWNS", 1)  # every problem on its own, for lack of memory
    parted = solved(rows, kept=kept)
    for number in range(len(STRENGTHS)):
        assert_same_up_to_tolerance(parted, number, together, number, rows)


def test_float32_alone_where_the_tolerance_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "_SINGLE_WORTH", 0)
    rows = rows_of(6, num_rows=400, num_features=20, num_classes=4)
    rough, values = solved(rows, tolerance=1e-4), standard(rows)
    for number, strength in enumerate(STRENGTHS):
        errors = shares(rough, number, values) - np.eye(4)[rows[1].numpy()]
        gradient = errors.T @ (values - values.mean(axis=0)) / 400 + strength * rough.weights[number].numpy()
        # Largest entry along the axes: at most √20 times that here.
        assert np.abs(gradient).max() < 4.5e-4


def test_features_too_large_for_float32_are_finished_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "_SINGLE_WORTH", 0)
    features, labels, scale = rows_of(7, num_rows=60, num_features=5, num_classes=3)
    rows = (1e5 * features, labels, scale)
    found, values = solved(rows, (1e6, 1e8)), standard(rows)
    for number, strength in enumerate((1e6, 1e8)):
        expected = reference(values, labels.numpy(), strength).predict_proba(values)
        np.testing.assert_allclose(shares(found, number, values), expected, atol=1e-7)


def test_log_losses_by_hand() -> None:
    rows = rows_of(8, num_rows=50, num_features=4, num_classes=3)
    found, values, labels = solved(rows), standard(rows), rows[1]
    losses = log_losses(found.weights, found.bias, torch.from_numpy(values), labels)
    for number in range(len(STRENGTHS)):
        logits = values @ found.weights[number].T.numpy() + found.bias[number].numpy()
        expected = -log_softmax(logits, axis=1)[np.arange(50), labels.numpy()].sum()
        assert losses[number].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_features", [6, 80])
def test_float64_features_are_taken_as_they_are_and_left_so(either_precision: str, num_features: int) -> None:
    """Differences that float32 does not see decide between the classes."""
    features, labels, scale = rows_of(9, num_rows=70, num_features=num_features, num_classes=3)
    fine = 1.0 + 1e-9 * features.double()
    before = fine.clone()
    found = solved((fine, labels, 1e-9 * scale))
    assert torch.equal(fine, before)
    values = ((fine - fine.mean(dim=0)) / (1e-9 * scale)).numpy()
    expected = reference(values, labels.numpy(), 0.1).predict_proba(values)
    np.testing.assert_allclose(shares(found, STRENGTHS.index(0.1), values), expected, atol=1e-7)
