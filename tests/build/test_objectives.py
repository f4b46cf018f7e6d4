"""Defaults that depend on the images, and what an objective trains."""

import pytest
import torch

from ssl_ft.build.objectives import _default_patch, build_objective
from ssl_ft.config import PretrainSettings
from ssl_ft.data.batches import ViewMaker
from ssl_ft.data.views import ViewRecipe
from ssl_ft.models.encoders import EncoderSpec, build_encoder


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (16, 2), (28, 4), (30, 3), (32, 4), (48, 6), (96, 12), (224, 28)])
def test_the_default_patch_divides_the_image_and_is_near_an_eighth_of_it(size, patch):
    assert _default_patch(size) == patch


@pytest.mark.parametrize("size", range(4, 225))
def test_no_size_has_a_default_patch_that_is_refused(size):
    patch = _default_patch(size)
    assert size % patch == 0
    assert patch < size


@pytest.mark.parametrize(("objective", "frozen"), [("masked", ["head.norm.bias", "head.norm.weight"]), ("joint", [])])
def test_what_no_imputation_reaches_is_frozen_unless_the_contrast_trains_it(objective, frozen):
    arguments = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
    spec = EncoderSpec("convnext_atto", 3, 32, stem_stride=2, args=arguments)
    settings = PretrainSettings.model_validate({"objective": objective, "device": "cpu"})
    encoder = build_encoder(spec, seed=0)
    views = ViewMaker(ViewRecipe(32), (0.5,) * 3, (0.5,) * 3, 0)
    build_objective(settings, encoder, views, torch.device("cpu"))
    assert sorted(name for name, p in encoder.named_parameters() if not p.requires_grad) == frozen
    assert all(module.training for module in encoder.modules())
