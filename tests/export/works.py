"""A tiny classifier with labelled images, as compress works on it, for tests of files and audits."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ssl_ft.artifact import InputContract, ModelCard, save_model
from ssl_ft.build.compressing import Work
from ssl_ft.build.data import open_data, roles_of
from ssl_ft.build.labels import LabelledImages, LabelSplit
from ssl_ft.config import CompressSettings, DataSettings, FinetuneSettings
from ssl_ft.handover import record_roles
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.result import Parent
from ssl_ft.runlog import RunFolder

SPEC = EncoderSpec("test_resnet", 3, 32)
CONTRACT = InputContract(32, 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
NAMES = {"classes": ("ant", "bee", "cat"), "multi_label": ("dog", "eel"), "regression": ("size",)}
NONE = np.empty(0, np.int64)


def make_model(task: str = "classes", *, seed: int = 0) -> tuple[nn.Module, ModelCard]:
    """A classifier with random weights whose outputs differ from image to image."""
    model = build_encoder(SPEC, seed=seed)
    model.reset_classifier(len(NAMES[task]))  # type: ignore[operator]
    generator = torch.Generator().manual_seed(seed)
    head = model.get_classifier()  # type: ignore[operator]
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
        head.bias.zero_()
    classes, targets = (NAMES[task], ()) if task == "classes" else ((), NAMES[task])
    return model.eval(), ModelCard("classifier", SPEC, CONTRACT, classes, {"licence": "none"}, task, targets)


def write_data(path: Path, *, task: str = "classes", count: int = 60) -> DataSettings:
    """An `.npz` of structured noise, two thirds for training, one for test."""
    generator = np.random.default_rng(1)
    coarse = generator.integers(0, 256, (count, 5, 5, 3))
    pixels = (coarse.repeat(8, axis=1).repeat(8, axis=2) + generator.integers(-20, 20, (count, 40, 40, 3))).clip(0, 255)
    arrays: dict[str, Any] = {"images": pixels.astype(np.uint8)}
    arrays["split"] = np.where(np.arange(count) % 3 == 2, "test", "train")
    if task == "classes":
        arrays["labels"] = generator.integers(0, 3, count)
    else:
        for name in NAMES[task]:
            bright = pixels.mean((1, 2, 3)) + generator.normal(0, 2, count)
            arrays[name] = bright if task == "regression" else (generator.random(count) < 0.5).astype(np.int64)
    np.savez(path, **arrays)
    more = {} if task == "classes" else {"task": task, "targets": NAMES[task]}
    return DataSettings.model_validate({"path": str(path), "workers": 1, **more})


def make_work(place: Path, *, task: str = "classes", parent: Path | None = None) -> Work:
    """A run folder `place/run` over a model folder `place/parent/classifier`, or that of the run `parent`."""
    place.mkdir(exist_ok=True)
    model, card = make_model(task)
    folder = (parent or place / "parent") / "classifier"
    digest = save_model(folder, model, card)
    data = write_data(place / "data.npz", task=task)
    source = open_data(data)
    roles = roles_of(source, data)
    settings = CompressSettings.model_validate({"model": str(folder), "seed": 3})
    run = RunFolder(place / "run", stage="compress", settings=settings.model_dump(mode="json"))
    record_roles(run, source, train=roles.train, val=NONE, test=roles.test)
    run.parents.append(Parent(path=str(folder), sha256=digest, kind="classifier"))
    return Work(
        settings,
        FinetuneSettings(labels=5),
        model,
        card,
        LabelledImages(source, data, roles.train, run.path),
        LabelSplit(roles.train, NONE, roles.test),
        torch.device("cpu"),
        run,
        lambda: False,
        lambda step, row: None,
    )
