"""Tasks from settings: which do not go together, what is trained on, budgets of images in all, and what is told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssl_ft.artifact import InputContract
from ssl_ft.build.data import open_data, roles_of
from ssl_ft.build.labels import LabelledImages, LabelSplit, gap_notes, split_budget
from ssl_ft.build.tasks import build_label_order, build_objective, check_task, scale_of
from ssl_ft.config import DataSettings, FinetuneSettings
from ssl_ft.data.balanced import BalancedOrder
from ssl_ft.data.permutation import permute
from ssl_ft.errors import UserError
from ssl_ft.objectives.supervised import Supervised
from ssl_ft.objectives.targeted import Targeted
from ssl_ft.transfer.strategy import Prepared
from tests.pools import noise_images

CONTRACT = InputContract(12, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def arrays(folder: Path, **targets: list[float]) -> Path:
    path = folder / "set.npz"
    count = len(next(iter(targets.values())))
    np.savez(path, images=noise_images(count), **{key: np.array(value) for key, value in targets.items()})
    return path


def data_of(path: Path, task: str, *targets: str) -> DataSettings:
    return DataSettings.model_validate({"path": str(path), "task": task, "targets": list(targets)})


def finetune_of(**settings: object) -> FinetuneSettings:
    return FinetuneSettings.model_validate(settings)


def images_of(data: DataSettings) -> LabelledImages:
    source = open_data(data)
    return LabelledImages(source, data, np.arange(len(source)), Path("unused"))


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("regression", {"label_smoothing": 0.1}, "label_smoothing concerns classes and labels; data.task=regression"),
        ("regression", {"imbalance": {"weights": "inverse"}}, "imbalance.weights concerns classes and labels"),
        ("regression", {"imbalance": {"sampling": "balanced"}}, "imbalance.sampling concerns classes and labels"),
        ("multi_label", {"regression": {"loss": "mse"}}, "regression.loss concerns data.task=regression alone"),
        ("multi_label", {"strategy": "probe"}, "probe.head=exact solves for classes alone; .* use probe.head=trained"),
        ("regression", {"strategy": "probe_then_finetune"}, "for data.task=regression use probe.head=trained"),
        ("classes", {"strategy": "probe", "mix": {"mixup": 1}}, "mix.mixup concerns training in steps"),
        ("classes", {"strategy": "probe", "label_smoothing": 0.1}, "label_smoothing concerns training in steps"),
    ],
)
def test_settings_that_concern_another_task_are_refused(tmp_path, task, settings, message):
    data = data_of(tmp_path, task, *([] if task == "classes" else ["a"]))
    with pytest.raises(UserError, match=message):
        check_task(finetune_of(**settings), data)


def test_what_goes_together_passes(tmp_path):
    check_task(finetune_of(mix={"mixup": 0.2}, tta="flip"), data_of(tmp_path, "regression", "a"))
    check_task(finetune_of(strategy="probe", probe={"head": "trained"}), data_of(tmp_path, "multi_label", "a"))
    check_task(finetune_of(strategy="probe"), DataSettings())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["a"]}, "targets concerns other tasks"),
        ({"task": "regression"}, "needs the columns to learn"),
        ({"task": "regression", "targets": ["a"], "separator": ";"}, "concerns task=multi_label alone"),
        ({"task": "multi_label", "targets": ["a"], "separator": ""}, "separator must be a character"),
    ],
)
def test_data_settings_that_contradict_themselves(settings, message):
    with pytest.raises(ValueError, match=message):
        DataSettings.model_validate(settings)


def test_a_budget_counts_images_in_all_and_val_is_taken_from_it(tmp_path):
    data = data_of(arrays(tmp_path, age=list(np.arange(50.0))), "regression", "age")
    source = open_data(data)
    roles = roles_of(source, data)
    assert (len(roles.train), len(roles.test)) == (40, 10)
    split = split_budget(finetune_of(labels=20), source, roles)
    assert (len(split.train), len(split.val), len(split.test)) == (16, 4, 10)
    larger = split_budget(finetune_of(labels=30), source, roles)
    assert {*split.train, *split.val} < {*larger.train, *larger.val}
    with pytest.raises(UserError, match="There are 40 labelled images to draw from, fewer than the labels=41"):
        split_budget(finetune_of(labels=41), source, roles)


def test_a_budget_without_a_value_of_a_target_is_refused(tmp_path):
    rare = [np.nan] * 50
    rare[0:3] = [1.0, 2.0, 3.0]
    data = DataSettings.model_validate(
        {**data_of(arrays(tmp_path, age=list(np.arange(50.0)), rare=rare), "regression", "age", "rare").model_dump(),
         "test_share": 0.4}
    )  # fmt: skip
    source = open_data(data)
    everything = LabelSplit(np.arange(40), np.arange(0), np.arange(40, 50))
    with pytest.raises(UserError, match=r"labels=2 leaves to train on .* have no value of the target 'rare'"):
        split_budget(finetune_of(labels=2), source, everything)


def test_labels_that_are_not_learnt_are_told(tmp_path):
    data = data_of(arrays(tmp_path, cat=[0, 1, 0, 1], dog=[0, 0, 0, 1]), "multi_label", "cat", "dog")
    split = LabelSplit(np.array([0, 1]), np.arange(0), np.array([2, 3]))
    notes = gap_notes(split, images_of(data))
    assert notes == ["The target 'dog' has no positive (1) among the 2 training images: it is not learnt"]


def test_numbers_are_trained_on_standardised(tmp_path):
    images = images_of(data_of(arrays(tmp_path, age=[10.0, 20.0, 30.0, 1000.0]), "regression", "age"))
    train = np.array([0, 1, 2])
    objective = build_objective(finetune_of(), prepared(1), images, train, contract=CONTRACT)
    assert isinstance(objective, Targeted)
    scale = scale_of(images, train)
    assert scale is not None
    assert scale.mean.tolist() == [20.0]  # of those trained on alone
    assert objective.targets_NK[:, 0].tolist() == pytest.approx([-1.2247449, 0, 1.2247449])
    assert objective.name == "huber"
    squared = build_objective(finetune_of(regression={"loss": "mse"}), prepared(1), images, train, contract=CONTRACT)
    assert isinstance(squared, Targeted)
    assert squared.name == "squared_error"


def test_weights_of_labels_balance_positives_and_negatives(tmp_path):
    images = images_of(data_of(arrays(tmp_path, cat=[1, 0, 0, 0]), "multi_label", "cat"))
    objective = build_objective(
        finetune_of(imbalance={"weights": "inverse"}), prepared(1), images, np.arange(4), contract=CONTRACT
    )
    assert isinstance(objective, Targeted)
    zero, one = (objective.loss(torch.zeros(1, 1), torch.tensor([[t]])).item() for t in (0.0, 1.0))
    assert one / zero == pytest.approx(3)


def test_classes_are_weighed_and_mixed_where_asked(tmp_path):
    images = images_of(data_of(arrays(tmp_path, labels=[0, 0, 0, 1]), "classes"))
    plain = build_objective(finetune_of(), prepared(2), images, np.arange(4), contract=CONTRACT)
    assert isinstance(plain, Supervised)
    assert (plain.class_weights_K, plain.mixing) == (None, None)
    mixed = build_objective(finetune_of(mix={"cutmix": 1}), prepared(2), images, np.arange(4), contract=CONTRACT)
    assert isinstance(mixed, Supervised)
    assert mixed.class_weights_K is not None
    assert mixed.class_weights_K.tolist() == [1, 1]
    weighed = build_objective(
        finetune_of(imbalance={"weights": "inverse"}), prepared(2), images, np.arange(4), contract=CONTRACT
    )
    assert isinstance(weighed, Supervised)
    assert weighed.class_weights_K is not None
    assert weighed.class_weights_K.tolist() == pytest.approx([2 / 3, 2])


def test_balanced_sampling_is_an_order_of_its_own(tmp_path):
    images = images_of(data_of(arrays(tmp_path, labels=[0, 0, 0, 1]), "classes"))
    assert build_label_order(finetune_of(), images, np.arange(4)) is permute
    balanced = build_label_order(finetune_of(imbalance={"sampling": "balanced"}), images, np.arange(4))
    assert isinstance(balanced, BalancedOrder)
    found = balanced(torch.arange(40), num_items=4, key=0) % 4
    assert int((found == 3).sum()) == 20


def prepared(outputs: int) -> Prepared:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, outputs))
    return Prepared(model, [], merge=lambda: model)
