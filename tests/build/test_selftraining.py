"""The first teacher of self-training: its guesses know nothing of the val labels that judge the students."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ssl_ft.build.selftraining import Unlabelled, train_rounds
from ssl_ft.build.transfer import Trained
from ssl_ft.config import SelftrainSettings
from tests.transfer.starts import CPU, images_of, split_of, start_of, train


@pytest.fixture
def teach(tmp_path) -> Callable[..., Trained]:
    """The teacher of 18 train and 12 val labels, the latter rolled by `turn` classes; no guess is ever sure enough."""
    start, pool = start_of("resnet"), images_of(tmp_path / "pool", seed=1)

    def first_teacher(turn: int, **more: object) -> Trained:
        images, split = images_of(tmp_path), split_of(18, 12)
        images.labels[split.val] = (images.labels[split.val] + turn) % 3
        settings = SelftrainSettings.model_validate(
            {"teacher": "probe", "threshold": 1.0, "rounds": 1, "min_steps": 2, "epochs": 1, "batch_size": 8, **more}
        )
        teacher, found = train_rounds(
            settings, start, images, split, Unlabelled(pool, np.arange(9)), device=CPU, should_stop=lambda: False,
            on_row=lambda step, row: None, on_round=lambda one: None,
        )  # fmt: skip
        assert found.best is teacher
        return teacher

    return first_teacher


def test_a_probe_that_teaches_has_seen_train_labels_alone(teach, tmp_path):
    one, other = teach(0), teach(1)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, other.model.state_dict()[name], rtol=0.0, atol=0.0)
    assert (one.num_train, one.num_val) == (18, 12)
    assert one.val_accuracy is not None
    assert other.val_accuracy is not None
    assert one.val_accuracy != other.val_accuracy, "val is what it is judged by"
    alone = train(
        SelftrainSettings(strategy="full").model_copy(update={"strategy": "probe"}), start_of("resnet"),
        images_of(tmp_path), split_of(18, 0),
    )  # fmt: skip
    torch.testing.assert_close(one.model.get_classifier().weight, alone.model.get_classifier().weight)


def test_a_probe_trained_in_steps_teaches_as_such(teach):
    stepped = teach(0, strategy="probe_then_finetune", probe={"head": "trained"})
    assert stepped.num_steps == 2
    assert stepped.val_accuracy is not None
