"""A tiny pretraining built from settings, for tests that compare its numbers; runs on whatever ranks there are."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_ft import dist
from ssl_ft.build.pretraining import assemble, open_pool
from ssl_ft.config import PretrainSettings
from ssl_ft.data.batches import batches
from ssl_ft.loop import LoopCalls, run_steps
from ssl_ft.runlog import RunFolder

CONVNET: dict[str, Any] = {"encoder": {"name": "test_resnet"}, "size": 32}
VIT: dict[str, Any] = {
    "encoder": {
        "name": "vit_tiny_patch16_224",
        "patch_size": 4,
        "args": {"depth": 2, "embed_dim": 64, "num_heads": 2, "class_token": False},
    },
    "size": 16,
    "masked": {"decoder_width": 32, "decoder_depth": 1},
}
CONVNEXT: dict[str, Any] = {
    "encoder": {"name": "convnext_atto", "stem_stride": 2, "args": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}},
    "size": 32,
}
HALF = {"hidden_share": 0.5}
# Every objective, on a convnet with batch norm and on a ViT, in both joint forms.
CASES: dict[str, dict[str, Any]] = {
    "simclr-convnet": {**CONVNET, "objective": "simclr"},
    "dcl-convnet": {**CONVNET, "objective": "dcl"},
    "masked-convnet": {**CONVNET, "objective": "masked"},
    "joint-convnet": {**CONVNET, "objective": "joint"},
    # Larger and less hidden, for its encoder sees no whole image: batch norm would divide by next to nothing.
    "shared-convnet": {**CONVNET, "size": 64, "objective": "joint", "joint": {"form": "shared"}, "masked": HALF},
    "rotation-convnet": {**CONVNET, "objective": "rotation"},
    "supervised-convnet": {**CONVNET, "objective": "supervised"},
    "simclr-vit": {**VIT, "objective": "simclr"},
    "masked-vit": {**VIT, "objective": "masked"},
    "joint-vit": {**VIT, "objective": "joint"},
    "shared-vit": {**VIT, "objective": "joint", "joint": {"form": "shared"}},
    "rotation-vit": {**VIT, "objective": "rotation"},
    "supervised-vit": {**VIT, "objective": "supervised"},
}
# A norm behind the feature map, which the imputation does not reach: compared between ranks, without golden curves.
MORE_CASES: dict[str, dict[str, Any]] = {
    "masked-convnext": {**CONVNEXT, "objective": "masked"},
    "joint-convnext": {**CONVNEXT, "objective": "joint"},
    "shared-convnext": {**CONVNEXT, "objective": "joint", "joint": {"form": "shared"}},
}


def write_images(folder: Path, *, count: int = 48) -> Path:
    """An array of coloured noise with structure, 20 x 20 RGB; and beside it `labelled.npz`, the same with labels."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 5, 5, 3))
    images = coarse.repeat(4, axis=1).repeat(4, axis=2) + generator.integers(-20, 20, (count, 20, 20, 3))
    path, pixels = folder / "images.npy", images.clip(0, 255).astype(np.uint8)
    np.save(path, pixels)
    labels = generator.integers(0, 3, count)
    np.savez(folder / "labelled.npz", images=pixels, labels=labels, split=np.full(count, "train"))
    return path


def settings_of(case: str, images: Path, **more: Any) -> PretrainSettings:
    """Settings of a case: 10 logged steps of 16 images, of the labelled ones where labels are learnt from."""
    own = {**CASES, **MORE_CASES}[case]
    if own["objective"] == "supervised":
        images = images.with_name("labelled.npz")
    tree: dict[str, Any] = {
        "data": {"path": str(images), "workers": 1},
        "duration": "10 steps",
        "batch_size": 16,
        "eval_images": 16,
        "log_every": 1,
        "save_every": "5 steps",
        "eval_every": "100 steps",
        "device": "cpu",
        "threads": 1,  # on a busy machine two threads mostly wait for each other
        "optim": {"rate": 1e-3, "warmup": 0.3},
    }
    return PretrainSettings.model_validate({**tree, **own, **more})


def losses_and_gradient(cases: list[str], images: Path, out: Path, precision: str, num_steps: int) -> dict[str, Any]:
    """For each case the losses of its steps and the gradient of the first, as lists and arrays."""
    results = {}
    for case in cases:
        # In float32 a high rate magnifies rounding from step to step; what is compared is the ranks, not that.
        rate = 1e-3 if precision == "float64" else 3e-4
        settings = settings_of(case, images, precision=precision, optim={"rate": rate, "warmup": 0.3})
        run = RunFolder(
            out / f"{case}-{precision}-{dist.world_size()}", stage="pretrain", settings=settings.model_dump(mode="json")
        )
        work, _, _ = assemble(settings, open_pool(settings), run)
        results[case] = {"gradient": _first_gradient(work), "losses": _losses(work, num_steps)}
    return results


def steps_of_minutes(images: Path, out: Path) -> int:
    """Steps that a run of a hundredth of a minute is given, as each rank has it."""
    settings = settings_of("simclr-vit", images, duration="0.01 minutes")
    plain = settings.model_dump(mode="json")
    run = RunFolder(out / f"minutes-{dist.world_size()}", stage="pretrain", settings=plain)
    with run:
        work, _, _ = assemble(settings, open_pool(settings), run)
    return work.plan.num_steps


def _first_gradient(work: Any) -> np.ndarray:
    before = {k: v.clone() for k, v in work.objective.state_dict().items()}
    train_steps(work, num_steps=1, rate=0.0)
    gradient = torch.cat([p.grad.flatten() for p in work.objective.parameters() if p.grad is not None])
    work.objective.load_state_dict(before)
    work.optimizer.state.clear()
    return np.asarray(gradient.double().numpy())


def _losses(work: Any, num_steps: int) -> list[float]:
    return [row["loss"] for row in train_steps(work, num_steps=num_steps, rate=work.plan.rate)]


def train_steps(work: Any, *, num_steps: int, rate: float) -> list[dict[str, float]]:
    from dataclasses import replace

    rows: list[dict[str, float]] = []
    calls = LoopCalls(lambda step, row: rows.append(row), lambda step: False, lambda step: None, lambda: False)
    stream = batches(
        work.store, batch_size=work.batch_size, seed=work.seed, start_step=0, num_steps=num_steps, workers=0
    )
    # The first steps of a run of 200: at a tenth of its length a run would still be at its warm-up's peak, where
    # rounding alone sets float32 runs apart.
    plan = replace(work.plan, num_steps=200, warmup_steps=40, rate=rate)
    run_steps(
        work.objective.train(), work.optimizer, stream, plan=plan, calls=calls, device=work.device, start_step=0, seed=0
    )
    return rows
