"""Tiny pretrainings on which promises are put to the proof: a few images, two objectives, a few steps of the real loop.

Built from the parts that every pretraining is built from. What is done with their numbers is the checks' business.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ssl_ft import dist
from ssl_ft.data.batches import ViewMaker, batches
from ssl_ft.data.source import Source
from ssl_ft.data.store import DecodeOptions, ImageStore
from ssl_ft.data.views import ViewRecipe
from ssl_ft.loop import LoopCalls, LoopPlan, run_steps
from ssl_ft.models.batchnorm import use_global_batch_norm
from ssl_ft.models.decoders import TokenDecoder
from ssl_ft.models.encoders import EncoderSpec, build_encoder, num_features
from ssl_ft.models.heads import Projector
from ssl_ft.objectives.masked import Imputer, Masked
from ssl_ft.objectives.nt_xent import nt_xent
from ssl_ft.objectives.simclr import SimCLR
from ssl_ft.optim import build_optimizer, parameter_groups
from ssl_ft.seeding import hash_int64

_SEED = 3
_SIDE = 20


@dataclass(frozen=True, eq=False)
class Steps:
    """What a few steps gave.

    Attributes:
        losses: of each step before its update, mean over ranks.
        gradient: float64 [P] on the CPU, of the last step, mean over ranks, all parameters in a row.
    """

    losses: list[float]
    gradient: Tensor


def noise(count: int, *, channels: int, side: int) -> Tensor:
    """uint8 [count, channels, side, side] from hashes alone: the same on every machine, library and version."""
    words = hash_int64(torch.arange(count), key=_SEED, columns=channels * side * side)
    return (words & 255).to(torch.uint8).view(count, channels, side, side)


def noise_store(count: int) -> ImageStore:
    """A pool of coarse coloured noise."""
    coarse = noise(count, channels=3, side=_SIDE // 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    images = coarse.permute(0, 2, 3, 1).contiguous().numpy()
    source = Source(
        kind="array",
        location="doctor",
        names=[f"noise {number}" for number in range(count)],
        read=lambda index: images[index],
        evidence=lambda index: images[index].tobytes(),
    )
    return ImageStore(source, DecodeOptions(3, _SIDE, workers=1), seed=_SEED, is_decoded=True)


def build_objective(name: str, device: torch.device, *, dtype: torch.dtype, channels: int = 3) -> nn.Module:
    """The objective with weights that are always the same; batch norm over all ranks where there are several."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        objective = OBJECTIVES[name](channels, dtype).to(device=device, dtype=dtype)
    return use_global_batch_norm(objective) if dist.world_size() > 1 else objective


def tiny_views(channels: int, dtype: torch.dtype, *, size: int) -> ViewMaker:
    """What makes views of that size for these trials."""
    return ViewMaker(ViewRecipe(size=size, blur=0.5), (0.5,) * channels, (0.25,) * channels, _SEED, dtype)


def _simclr(channels: int, dtype: torch.dtype) -> nn.Module:
    """A convnet with batch norm, which sees the batch as a whole twice over: in its norms and in its loss."""
    encoder = build_encoder(EncoderSpec("test_resnet", channels, 32), seed=_SEED)
    projector = Projector(num_features(encoder), num_hidden=32, num_out=16)
    return SimCLR(encoder, projector, views=tiny_views(channels, dtype, size=32), loss=nt_xent, temperature=0.2)


def _masked(channels: int, dtype: torch.dtype) -> nn.Module:
    """A ViT on visible patches alone."""
    args = {"depth": 2, "embed_dim": 64, "num_heads": 2, "class_token": False}
    encoder = build_encoder(EncoderSpec("vit_tiny_patch16_224", channels, 16, patch_size=4, args=args), seed=_SEED)
    decoder = TokenDecoder(64, width=32, depth=1, num_heads=1, num_patches=16, num_out=16 * channels)
    views = tiny_views(channels, dtype, size=16)
    views = replace(views, recipe=replace(views.recipe, jitter=0.0, grey=0.0, blur=0.0))
    return Masked(Imputer(encoder, decoder, patch=4), views=views, hidden_share=0.75, is_target_normalised=True)


OBJECTIVES: dict[str, Callable[[int, torch.dtype], nn.Module]] = {"simclr": _simclr, "masked": _masked}


def build_tiny_optimizer(name: str, objective: nn.Module) -> Optimizer:
    """AdamW or SGD over the objective at a learning rate that changes the loss visibly within a few steps."""
    groups = parameter_groups([(objective, 1.0)], weight_decay=0.05)
    return build_optimizer(name, groups, rate=0.01, momentum=0.9, betas=(0.9, 0.999))


def train(
    objective: nn.Module,
    optimizer: Optimizer,
    store: ImageStore,
    *,
    batch_size: int,
    steps: range,
    num_steps: int,
    device: torch.device,
    autocast: torch.dtype | None = None,
    average: AveragedModel | None = None,
) -> list[float]:
    """Losses of the `steps` of a plan of `num_steps`; torch's generator on the CPU is left as it was."""
    losses: list[float] = []
    calls = LoopCalls(
        log=lambda step, row: losses.append(row["loss"]),
        evaluate=lambda step: False,
        save=lambda step: None,
        should_stop=lambda: False,
    )
    plan = LoopPlan(num_steps, warmup_steps=1, rate=0.01, autocast=autocast, log_every=1, save_every=num_steps + 1)
    stream = batches(store, batch_size=batch_size, seed=_SEED, start_step=steps.start, num_steps=steps.stop, workers=0)
    with torch.random.fork_rng(devices=[]):
        run_steps(
            objective.train(), optimizer, stream, plan=plan, calls=calls, device=device,
            start_step=steps.start, seed=_SEED, average=average,
        )  # fmt: skip
    return losses


def take_steps(
    name: str,
    device: torch.device,
    *,
    dtype: torch.dtype,
    batch_size: int,
    num_steps: int,
    autocast: torch.dtype | None = None,
) -> Steps:
    """Losses and last gradient of the first steps of an objective on noise, on whatever ranks there are.

    SGD, for it does not hide a gradient of the wrong length as adaptive optimizers do.
    """
    objective = build_objective(name, device, dtype=dtype)
    losses = train(
        objective,
        build_tiny_optimizer("sgd", objective),
        noise_store(2 * batch_size),
        batch_size=batch_size,
        steps=range(num_steps),
        num_steps=num_steps,
        device=device,
        autocast=autocast,
    )
    gradients = [p.grad.flatten() for p in objective.parameters() if p.grad is not None]
    return Steps(losses, torch.cat(gradients).double().cpu())
