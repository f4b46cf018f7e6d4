"""Fine-tuning: learns a tiny set, keeps what was best on val, stops in time, and random labels stay at chance."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_ft.artifact import InputContract
from ssl_ft.data.batches import ViewMaker
from ssl_ft.data.views import ViewRecipe
from ssl_ft.errors import UserError
from ssl_ft.loop import LoopPlan
from ssl_ft.objectives.supervised import Supervised
from ssl_ft.optim import build_optimizer, parameter_groups
from ssl_ft.transfer.finetune import Fitted, ValSet, finetune, score
from ssl_ft.transfer.strategy import Phase, Prepared
from tests.pools import store_of
from tests.transfer.starts import chance

SIDE = 8
CONTRACT = InputContract(SIDE, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
RECIPE = ViewRecipe(size=SIDE, scale=(0.8, 1.0), jitter=0.0, grey=0.0)
CPU = torch.device("cpu")


class Classifier(nn.Module):
    """A small convnet with batch norm and dropout, whose mode matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Linear(12, 3)
        self.drop = nn.Dropout(0.1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.norm(self.conv(images)).relu().mean((2, 3))))
        return logits


def labelled(count: int, *, seed: int, is_shuffled: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, S, S, 3] whose strongest colour is their class, unless the labels are shuffled."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 3
    images = generator.integers(0, 120, (count, SIDE, SIDE, 3)).astype(np.uint8)
    images[np.arange(count), :, :, labels] += 60
    return images, generator.permutation(labels) if is_shuffled else labels


def val_of(images: np.ndarray, labels: np.ndarray) -> ValSet:
    return ValSet(images.transpose(0, 3, 1, 2).copy(), labels)


@pytest.fixture(autouse=True)
def _small_val_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """These sets are tiny; what too small a val does is told by a test of its own."""
    monkeypatch.setattr("ssl_ft.transfer.finetune.LEAST_TO_CHOOSE", 1)


NO_VAL = ValSet(np.empty((0, 3, SIDE, SIDE), np.uint8), np.empty(0, np.int64))


def fit(
    train: tuple[np.ndarray, np.ndarray],
    val: ValSet,
    *,
    steps: int = 60,
    patience: int = 100,
    every: int = 5,
    patient_until: int = 0,
    begins: float | None = None,
    encoder: nn.Module | None = None,
    **at: int,
) -> tuple[Fitted, Supervised, list[tuple[int, dict[str, float]]]]:
    views = ViewMaker(RECIPE, CONTRACT.mean, CONTRACT.std, seed=0)
    objective = Supervised(encoder or Classifier(), torch.from_numpy(train[1]), views=views, label_smoothing=0.0)
    groups = parameter_groups([(objective, 1.0)], weight_decay=0.0)
    adam = build_optimizer("adamw", groups, rate=0.02, momentum=0.9, betas=(0.9, 0.99))
    plan = LoopPlan(steps, 5, 0.02, log_every=10, eval_every=every, save_every=steps)
    rows: list[tuple[int, dict[str, float]]] = []
    calls: Iterator[int] = iter(range(1, 10**9))
    phases = () if begins is None else (Phase(begins, tuple(objective.encoder.conv.parameters())),)
    prepared = Prepared(objective.encoder, groups, merge=lambda: objective.encoder, phases=phases)
    fitted = finetune(
        objective, adam, store_of(train[0]), val, prepared=prepared,
        contract=CONTRACT, plan=plan, batch_size=at.get("batch_size", 12), patience=patience,
        patient_until=patient_until, device=CPU, seed=0, should_stop=lambda: next(calls) >= at.get("stop", 10**9),
        on_row=lambda step, row: rows.append((step, row)),
    )  # fmt: skip
    return fitted, objective, rows


def test_a_tiny_separable_set_is_learnt_and_carries_over_to_val_and_test():
    val, test = (val_of(*labelled(count, seed=seed)) for count, seed in ((24, 1), (60, 2)))
    fitted, objective, rows = fit(labelled(36, seed=0), val, steps=80)
    assert fitted.val_accuracy == 1.0
    assert score(objective.encoder, test, CONTRACT, device=CPU)[0] >= 0.95
    train_losses = [row["loss"] for _, row in rows if "loss" in row]
    assert train_losses[-1] < 0.3 < train_losses[0]


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[tuple[float, float]]) -> list[dict[str, Tensor]]:
    """Let val say `scores` one after the other; gives the weights at each."""
    seen: list[dict[str, Tensor]] = []

    def say(model: nn.Module, *unused: object, **unused_too: object) -> tuple[float, float]:
        model.eval()
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return scores[len(seen) - 1]

    monkeypatch.setattr("ssl_ft.transfer.finetune.score", say)
    return seen


def assert_holds(model: nn.Module, weights: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.4, 1.0), (0.9, 0.8), (0.6, 0.1), (0.7, 0.2)], 1),  # accuracy decides,
        ([(0.5, 1.0), (0.5, 0.7), (0.5, 0.9), (0.4, 0.1)], 1),  # then the loss,
        ([(0.5, 0.7), (0.5, 0.7), (0.4, 0.9), (0.4, 0.8)], 0),  # then the earlier
        ([(0.1, 2.0), (0.2, 2.0), (0.3, 2.0), (0.4, 2.0)], 3),
    ],
)
def test_the_weights_best_on_val_are_kept(monkeypatch, scores, best):
    seen = scripted(monkeypatch, scores)
    fitted, objective, _ = fit(labelled(36, seed=0), val_of(*labelled(6, seed=1)), steps=20)
    assert (fitted.step, fitted.val_accuracy) == (5 * (best + 1), scores[best][0])
    assert_holds(objective.encoder, seen[best])
    assert best == 3 or not torch.equal(seen[best]["conv.weight"], seen[3]["conv.weight"])


def test_the_score_of_what_is_kept_is_the_one_reported():
    val = val_of(*labelled(24, seed=1, is_shuffled=True))  # cannot be learnt, so the best is somewhere on the way
    fitted, objective, rows = fit(labelled(36, seed=0), val)
    assert score(objective.encoder, val, CONTRACT, device=CPU)[0] == fitted.val_accuracy
    told = {step: row["val_accuracy"] for step, row in rows if "val_accuracy" in row}
    assert fitted.val_accuracy == told[fitted.step] == max(told.values())
    assert sorted(told) == list(range(5, 61, 5))


def test_it_stops_after_so_many_evaluations_without_a_better_one(monkeypatch):
    seen = scripted(monkeypatch, [(0.5, 1.0), (0.6, 1.0), (0.6, 1.0), (0.5, 0.1), (0.9, 0.1)])
    fitted, objective, rows = fit(labelled(36, seed=0), val_of(*labelled(6, seed=1)), steps=50, patience=2)
    assert len(seen) == 4
    assert fitted.step == 10
    assert max(step for step, _ in rows) == 20
    assert_holds(objective.encoder, seen[1])


@pytest.mark.parametrize(
    ("settled", "stops"),
    [({}, 15), ({"patient_until": 20}, 30), ({"begins": 0.5}, 35), ({"begins": 0.2, "patient_until": 30}, 40)],
)
def test_it_does_not_stop_before_the_rate_has_risen_and_all_moves(monkeypatch, settled, stops):
    """The first look was lucky: at step 5, where warm-up ends."""
    scripted(monkeypatch, [(0.9, 1.0)] + [(0.5, 1.0)] * 9)
    fitted, _, rows = fit(labelled(36, seed=0), val_of(*labelled(6, seed=1)), steps=50, patience=2, **settled)
    assert max(step for step, _ in rows) == stops
    assert fitted.step == 5


def test_too_small_a_val_chooses_nothing(monkeypatch):
    monkeypatch.setattr("ssl_ft.transfer.finetune.LEAST_TO_CHOOSE", 7)
    seen = scripted(monkeypatch, [(0.9, 0.1)] + [(0.5, 1.0)] * 9)
    fitted, objective, _ = fit(labelled(36, seed=0), val_of(*labelled(6, seed=1)), steps=50, patience=2)
    assert (fitted.step, fitted.val_accuracy, len(seen)) == (50, 0.5, 10)
    assert_holds(objective.encoder, seen[-1])


def test_one_image_has_no_spread(tmp_path):
    with pytest.raises(UserError, match=r"batch_size=1: batch norms that are trained"):
        fit(labelled(3, seed=0), NO_VAL, steps=2, batch_size=1)


def test_a_better_score_starts_the_count_anew(monkeypatch):
    falls, rises = (0.5, 1.0), (0.6, 1.0)
    seen = scripted(monkeypatch, [falls, falls, rises, falls, (0.7, 1.0), falls, falls, falls])
    fitted, _, _ = fit(labelled(36, seed=0), val_of(*labelled(6, seed=1)), steps=50, patience=2)
    assert fitted.step == 25
    assert len(seen) == 7


def test_without_val_labels_the_last_weights_are_kept_and_nothing_stops_early():
    fitted, _, rows = fit(labelled(36, seed=0), NO_VAL, steps=40, patience=1)
    assert fitted == Fitted(40, None)
    assert not any("val_accuracy" in row for _, row in rows)
    assert rows[-1][0] == 40


def test_looking_at_val_changes_nothing_in_training():
    """Its mode, its dropout and its batch norms are as if nobody had looked."""

    def losses(val: ValSet) -> list[float]:
        _, _, rows = fit(labelled(36, seed=0), val, steps=20, every=1)
        return [row["loss"] for _, row in rows if "loss" in row]

    assert len(losses(NO_VAL)) == 2
    assert losses(val_of(*labelled(6, seed=1))) == losses(NO_VAL)


def held_out_scores(*, leaks: str = "") -> tuple[float, float]:
    """Accuracy on val, the best of 30 looks, and on test with the last weights; labels are random throughout.

    `leaks` names the part whose images are trained on as well, which a network of this width then knows by heart.
    """
    parts = {name: labelled(n, seed=k, is_shuffled=True) for k, (name, n) in enumerate(SIZES.items())}
    seen = [parts["train"], *([parts[leaks]] if leaks else [])]
    train = np.concatenate([images for images, _ in seen]), np.concatenate([labels for _, labels in seen])

    def wide() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 64), nn.ReLU(), nn.Linear(64, 3))

    fitted, _, _ = fit(train, val_of(*parts["val"]), steps=150, encoder=wide())
    _, last, _ = fit(train, NO_VAL, steps=150, encoder=wide())
    assert fitted.val_accuracy is not None
    return fitted.val_accuracy, score(last.encoder, val_of(*parts["test"]), CONTRACT, device=CPU)[0]


SIZES = {"train": 12, "val": 45, "test": 45}


def test_random_labels_stay_at_chance_unless_they_leak():
    """The alarm, and that it rings: with val or test among the images trained on, the same bounds are left."""
    most_val, (least, most) = chance(SIZES["val"], looks=30)[1], chance(SIZES["test"])
    val, test = held_out_scores()
    assert least <= val <= most_val
    assert least <= test <= most
    assert held_out_scores(leaks="val")[0] > most_val
    assert held_out_scores(leaks="test")[1] > most


def test_a_wish_to_stop_ends_it():
    fitted, _, rows = fit(labelled(36, seed=0), val_of(*labelled(6, seed=1)), steps=50, stop=12)
    assert max(step for step, _ in rows) == 10
    assert fitted.step in (5, 10)


def test_the_score_is_accuracy_and_cross_entropy_in_evaluation():
    model, val = Classifier().train(), val_of(*labelled(9, seed=3))
    accuracy, loss = score(model, val, CONTRACT, device=CPU)
    with torch.no_grad():
        logits = model.eval()(CONTRACT.normalise(torch.from_numpy(val.pixels)))
    expected = -logits.double().log_softmax(1)[torch.arange(9), torch.from_numpy(val.labels)].mean().item()
    assert accuracy == pytest.approx((logits.argmax(1).numpy() == val.labels).mean())
    assert loss == pytest.approx(expected, rel=1e-5)
