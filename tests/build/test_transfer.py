"""Training a classifier as a function: refits of a schedule, settings a strategy does not read, what is recorded."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ssl_ft.build.draft import Start
from ssl_ft.build.labels import LabelSplit
from ssl_ft.config import FinetuneSettings
from ssl_ft.errors import UserError
from ssl_ft.peak import PeakMemory
from tests.transfer.starts import CPU, images_of, settings_of, split_of, start_of, train


@pytest.fixture(scope="module")
def start() -> Start:
    return start_of("vit")


def test_a_refit_does_exactly_so_many_steps_of_the_same_schedule(start, tmp_path):
    rows: dict[str, dict[int, dict[str, float]]] = {"whole": {}, "refit": {}}
    settings, images = settings_of("full", min_steps=12), images_of(tmp_path)
    chosen = train(
        settings, start, images, split_of(16, 6), on_row=lambda s, row: rows["whole"].setdefault(s, {}).update(row)
    )
    assert chosen.num_steps == 12
    refit = train(
        settings_of("full", min_steps=1), start, images, split_of(22, 0), stop_at=5, num_steps=chosen.num_steps,
        on_row=lambda s, row: rows["refit"].setdefault(s, {}).update(row),
    )  # fmt: skip
    assert (refit.step, refit.num_steps, refit.val_accuracy) == (5, 12, None)
    assert sorted(rows["refit"]) == [1, 2, 3, 4, 5]
    assert [rows["refit"][s]["lr"] for s in range(1, 6)] == [rows["whole"][s]["lr"] for s in range(1, 6)]


def test_the_step_told_is_that_of_the_weights_kept(start, tmp_path):
    settings, images = settings_of("full", min_steps=8), images_of(tmp_path)
    chosen = train(settings, start, images, split_of(16, 6))
    again = train(settings, start, images, split_of(16, 0), stop_at=chosen.step)
    for name, value in chosen.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=0.0, atol=0.0)


def test_the_solved_heads_score_on_val_is_of_a_fit_without_val(start, tmp_path):
    """With val labels of no sense, a fit on them would still tell them better than chance."""
    images = images_of(tmp_path, count=60)
    labels = images.labels
    labels[30:] = (labels[30:] + 1) % 3
    trained = train(settings_of("probe"), start, images, split_of(30, 30))
    alone = train(settings_of("probe"), start, images, split_of(30, 0))
    pixels = start.contract.normalise(torch.from_numpy(images.inputs(np.arange(30, 60), start.contract).pixels))
    with torch.no_grad():
        right = (alone.model(pixels).argmax(1).numpy() == labels[30:]).mean()
    assert trained.val_accuracy == pytest.approx(right)
    assert alone.val_accuracy is None


@pytest.mark.parametrize("strategy", ["probe", "full"])
def test_outputs_that_will_be_taken_off_play_no_part_on_val(start, tmp_path, strategy):
    images = images_of(tmp_path, count=60)
    own = np.flatnonzero(images.labels[30:] < 2) + 30
    split = LabelSplit(np.arange(30), own, own[:0])
    trained = train(settings_of(strategy), start, images, split, num_outputs=2)
    judged = trained if strategy == "full" else train(settings_of(strategy), start, images, split_of(30, 0))
    pixels = start.contract.normalise(torch.from_numpy(images.inputs(own, start.contract).pixels))
    with torch.no_grad():
        logits = judged.model(pixels)[:, :2]
    truth = torch.from_numpy(images.labels[own])
    assert trained.val_accuracy == pytest.approx((logits.argmax(1) == truth).double().mean().item())
    assert trained.val_loss == pytest.approx(torch.nn.functional.cross_entropy(logits, truth).item(), rel=1e-4)


def test_what_training_took_is_told(start, tmp_path):
    trained = train(settings_of("full", min_steps=2), start, images_of(tmp_path), split_of(16, 6))
    assert trained.num_trained == sum(p.numel() for p in trained.model.parameters())
    assert (trained.num_train, trained.num_val) == (16, 6)
    assert 0 < trained.seconds < 600
    assert 50 < trained.peak_memory_mb < 20_000
    assert not trained.model.training


def test_nothing_to_train_on_is_refused(start, tmp_path):
    with pytest.raises(UserError, match="leaves nothing to train on"):
        train(settings_of("full"), start, images_of(tmp_path), split_of(0, 6))


def test_peak_memory_starts_anew():
    block = torch.ones(64, 2**20)  # 256 MiB
    before = PeakMemory(CPU).mb()
    del block
    after = PeakMemory(CPU)
    assert after.mb() < before + 1
    block = torch.ones(128, 2**20)
    assert after.mb() > before + 200
    del block


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"strategy": "full", "partial": {"layers": 2}}, "partial belongs to strategy=partial; strategy=full does not"),
        ({"strategy": "l2sp", "distance": {}}, "distance belongs to strategy=feature_distance; strategy=l2sp"),
        ({"probe": {"head": "trained"}}, "probe belongs to strategy=probe or probe_then_finetune; strategy=full"),
        ({"strategy": "scratch", "gradual": {}}, "gradual belongs to strategy=gradual; strategy=scratch"),
        ({"strategy": "full", "l2sp": {}}, "l2sp belongs to strategy=l2sp; strategy=full"),
        ({"strategy": "full", "layer_decay": {}}, "layer_decay belongs to strategy=layer_decay; strategy=full"),
        ({"strategy": "scratch", "batch_norm": "source"}, "strategy=scratch has no source"),
        ({"strategy": "probe", "batch_norm": "batch"}, "no batch norm moves in strategy=probe"),
        ({"strategy": "l2sp", "optim": {"name": "lars"}}, "optim=lars with strategy=l2sp"),
        ({"strategy": "layer_decay", "layer_decay": {"decay": 1.5}}, "less than or equal to 1"),
        ({"strategy": "partial", "partial": {"layers": 0}}, "greater than or equal to 1"),
        ({"strategy": "no"}, "Input should be 'scratch'"),
    ],
)
def test_settings_that_do_not_fit_the_strategy_are_refused(tree, message):
    with pytest.raises(ValidationError, match=message):
        FinetuneSettings.model_validate(tree)


def test_settings_written_down_can_be_read_again():
    settings = settings_of("l2sp", l2sp={"weight": 3.0})
    assert FinetuneSettings.model_validate({**settings.model_dump(mode="json"), "optim": {}}).l2sp == settings.l2sp


def test_views_of_a_size_the_encoder_does_not_take_are_refused(tmp_path):
    start, images = start_of("vit"), images_of(tmp_path)
    settings = settings_of("full", views={"recipe": "gentle", "size": 24})
    with pytest.raises(UserError, match=r"views.size=24"):
        train(settings, start, images, split_of(15, 6))
