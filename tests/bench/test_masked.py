"""The masked row: the unmasked side is the same computation with nothing hidden from the encoder."""

import pytest
import torch

from ssl_ft.bench.masked import masked_step, measure, unmasked_loss, unmasked_step
from ssl_ft.bench.pools import open_pool
from ssl_ft.bench.workload import build_training, one_batch
from ssl_ft.config import PretrainSettings
from ssl_ft.objectives.masked import imputation_loss


@pytest.fixture
def training():
    settings = PretrainSettings(objective="masked", encoder="test_vit", size=64, batch_size=4)
    return build_training(settings, open_pool(None, size=64, count=4), torch.device("cpu"))


def test_the_unmasked_side_is_the_imputer_with_nothing_hidden(training):
    masked, batch = training.objective, one_batch(training)
    images, mask = masked.views(batch, view=0), masked.mask(batch, view=0)
    prediction, _ = masked.imputer(images, torch.zeros_like(mask))
    torch.testing.assert_close(
        unmasked_loss(masked, batch), imputation_loss(prediction, masked.target(images), mask), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("prepare", [masked_step, unmasked_step])
def test_both_steps_train_encoder_and_decoder(training, prepare):
    before = {name: p.detach().clone() for name, p in training.objective.named_parameters()}
    prepare(training)()
    moved = {name for name, p in training.objective.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("imputer.encoder.blocks.0") for name in moved)
    assert any(name.startswith("imputer.decoder") for name in moved)


def test_row():
    (row,) = measure(rounds=2, encoder="test_vit", size=64, batch_size=2)
    assert "75% hidden" in row.name
    assert row.low <= row.ratio <= row.high
    assert (row.bar.relation, row.bar.value) == ("at most", 0.4)
