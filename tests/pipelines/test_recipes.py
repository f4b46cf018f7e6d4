"""Recipes that come along: each one builds, and the published hyper-parameters arrive where training reads them."""

import pytest

from ssl_ft.build.parts import pretrain_plan
from ssl_ft.build.pretraining import assemble, open_pool
from ssl_ft.config import PretrainSettings
from ssl_ft.data.permutation import steps_per_epoch
from ssl_ft.recipe import load_settings, recipe_names
from ssl_ft.runlog import RunFolder

IMAGENET, CIFAR, IMAGENETTE = 1_281_167, 50_000, 9_469
# Name: images, peak rate, its warm-up and length in epochs, weight decay, as their sources give them.
PUBLISHED = {
    "cifar10-resnet18": (CIFAR, 2.0, 10, 1000, 1e-4),
    "imagenette128": (IMAGENETTE, 0.06, 0, 800, 5e-4),
    "imagenet-resnet50-simclr": (IMAGENET, 4.8, 10, 100, 1e-6),
    "imagenet-vit-s-simclr": (IMAGENET, 2.4e-3, 40, 300, 0.1),
    "imagenet-vit-b-masked": (IMAGENET, 2.4e-3, 40, 1600, 0.05),
}


def pretrain_settings(name: str, *overrides: str) -> PretrainSettings:
    return load_settings(PretrainSettings, recipe=name, overrides=overrides)


@pytest.mark.parametrize("name", [name for name in recipe_names() if not name.startswith(("compare-", "tune-"))])
def test_a_recipe_builds(name, photos, tmp_path):
    settings = pretrain_settings(
        name, f"data.path={photos}", "data.test_split=test", "batch_size=8", "duration=2 steps", "eval_images=8",
        "device=cpu",
    )  # fmt: skip
    run = RunFolder(tmp_path / "run", stage="pretrain", settings=settings.model_dump(mode="json"))
    work, spec, contract = assemble(settings, open_pool(settings), run)
    assert spec.name == settings.encoder.name
    assert contract.size == settings.size or settings.size is None
    assert work.plan.num_steps == 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_arrive_in_the_plan(name):
    num_images, rate, warmup, epochs, weight_decay = PUBLISHED[name]
    settings = pretrain_settings(name)
    per_epoch = steps_per_epoch(num_images=num_images, batch_size=settings.batch_size)
    plan = pretrain_plan(settings, num_steps=epochs * per_epoch, num_images=num_images)
    assert settings.duration == f"{epochs} epochs"
    assert plan.rate == pytest.approx(rate)
    assert plan.warmup_steps / per_epoch == pytest.approx(warmup, abs=0.02)
    assert settings.optim.weight_decay == weight_decay
