"""From settings to encoders, views, optimizers and plans, with the table of view recipes in plain sight.

Data are opened in `build/data.py`, which stages call first; objectives are built in `build/objectives.py`.
"""

import os
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssl_ft import dist
from ssl_ft.artifact import InputContract
from ssl_ft.build.origins import weights_at
from ssl_ft.config import EncoderSettings, OptimSettings, PretrainSettings, ViewSettings
from ssl_ft.data.batches import ViewMaker
from ssl_ft.data.permutation import steps_per_epoch
from ssl_ft.data.views import ViewRecipe
from ssl_ft.errors import UserError
from ssl_ft.loop import LoopPlan
from ssl_ft.models.encoders import EncoderSpec, build_encoder, family, load_pretrained
from ssl_ft.models.fit import check_input
from ssl_ft.models.hub import trained_pooling
from ssl_ft.optim import build_optimizer, parameter_groups
from ssl_ft.schedules import epochs_to_steps, parse_duration, scaled_rate
from ssl_ft.seeding import derive_seed

# Ranges of each named recipe; sizes and blur in pixels are filled in by `view_recipe`.
VIEW_RECIPES: dict[str, ViewRecipe] = {
    "photos": ViewRecipe(size=224, scale=(0.2, 1.0), blur=0.5),
    "small_photos": ViewRecipe(size=32, scale=(0.2, 1.0)),
    "grey": ViewRecipe(size=28, scale=(0.4, 1.0), horizontal_flip=0.0, saturation=0.0, hue=0.0, grey=0.0),
    "aerial": ViewRecipe(
        size=224, scale=(0.2, 1.0), vertical_flip=0.5, quarter_turn=0.5, saturation=0.2, hue=0.05, blur=0.5
    ),
    "gentle": ViewRecipe(size=224, scale=(0.5, 1.0), jitter=0.0, grey=0.0),
}
DTYPES = {"float32": torch.float32, "bf16": torch.float32, "float64": torch.float64}


def choose_device(name: str, *, is_shared: bool = False) -> torch.device:
    """The device of this rank.

    Args:
        name: auto, cpu or cuda.
        is_shared: whether processes may share a GPU: those that train apart from one another.

    Raises:
        UserError: cuda asked for where there is none, or fewer GPUs than ranks on this machine.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device here; use device=cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    present, wanted = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if wanted > present and not is_shared:
        raise UserError(
            f"{wanted} ranks on this machine, and torch sees {present} CUDA device{'s' if present > 1 else ''}: each "
            f"needs one of its own; give devices={present} or device=cpu"
        )
    device = torch.device("cuda", dist.local_rank() % present)
    torch.cuda.set_device(device)
    return device


def encoder_spec(settings: EncoderSettings, *, channels: int, size: int) -> EncoderSpec:
    """The architecture for images of `channels` and `size`; weights of the hub keep the pooling of their training."""
    args = dict(settings.args)
    if settings.pretrained == "timm" and "global_pool" not in args and family(settings.name) == "vit":
        args["global_pool"] = trained_pooling(settings.name)
    return EncoderSpec(settings.name, channels, size, settings.stem_stride, settings.patch_size, args)


def new_encoder(settings: EncoderSettings, spec: EncoderSpec, *, seed: int) -> tuple[nn.Module, str]:
    """A fresh or pretrained encoder, and the sentence that says which."""
    encoder = build_encoder(spec, seed=derive_seed(seed, "weights") >> 1)
    check_input(encoder, spec)
    if settings.pretrained is None:
        return encoder, "the encoder starts from random weights"
    sentence = load_pretrained(encoder, spec, source=weights_at(settings.pretrained))
    if settings.pretrained == "timm" and "global_pool" in spec.args:
        sentence += f"; features are pooled by {spec.args['global_pool']}, as encoder.args.global_pool can change"
    return encoder, sentence


def view_recipe(settings: ViewSettings, *, size: int, channels: int) -> ViewRecipe:
    """The recipe named, or the one that fits the images, with single ranges replaced.

    Raises:
        UserError: colour changes asked for on images that have no colour.
    """
    name = settings.recipe or ("grey" if channels == 1 else "small_photos" if size <= 64 else "photos")
    base = VIEW_RECIPES[name]
    size = settings.size or size
    # Blur was published for 224 px; its sigma shrinks with the view.
    sigma = tuple(value * size / 224 for value in base.blur_sigma)
    if channels != 3:
        base = replace(base, saturation=0.0, hue=0.0, grey=0.0)
    ranges = settings.model_dump(exclude={"recipe", "size"})
    given = {key: value for key, value in ranges.items() if value is not None}
    asked = [key for key in ("saturation", "hue", "grey") if given.get(key)]
    if channels != 3 and asked:
        raise UserError(f"views.{asked[0]}={given[asked[0]]} needs 3 channels (RGB); these images have {channels}")
    return replace(base, **cast(dict[str, Any], {"size": size, "blur_sigma": sigma, **given}))


def label_views(settings: ViewSettings, contract: InputContract, *, seed: int) -> ViewMaker:
    """What makes the views of a training that starts from an encoder, for its input.

    Raises:
        UserError: as in `view_recipe`.
    """
    recipe = view_recipe(settings, size=contract.size, channels=contract.channels)
    return ViewMaker(recipe, contract.mean, contract.std, seed)


def build_views(settings: PretrainSettings, contract: InputContract) -> ViewMaker:
    """What makes the views of pretraining."""
    return ViewMaker(
        view_recipe(settings.views, size=contract.size, channels=contract.channels),
        contract.mean,
        contract.std,
        settings.seed,
        DTYPES[settings.precision],
        settings.channels_last,
    )


def optimizer_for(
    settings: OptimSettings, groups: list[dict[str, object]], *, batch_size: int
) -> torch.optim.Optimizer:
    """The optimizer at its peak learning rate."""
    return build_optimizer(
        settings.name,
        groups,
        rate=scaled_rate(settings.rate, rule=settings.rule, batch_size=batch_size),
        momentum=settings.momentum,
        betas=settings.betas,
    )


def pretrain_optimizer(settings: PretrainSettings, objective: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of everything in the objective."""
    groups = parameter_groups([(objective, 1.0)], weight_decay=settings.optim.weight_decay)
    return optimizer_for(settings.optim, groups, batch_size=settings.batch_size)


def running_average(settings: PretrainSettings, encoder: nn.Module) -> AveragedModel | None:
    """The running average of the encoder, where one is asked for."""
    if settings.optim.ema is None:
        return None
    return AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(settings.optim.ema), use_buffers=True)


def duration_in_steps(text: str, *, num_images: int, batch_size: int) -> int | None:
    """Steps of '20 epochs' or '300 steps'; None for minutes, which must be measured."""
    number, unit = parse_duration(text)
    if unit == "minutes":
        return None
    if unit == "steps":
        return max(1, round(number))
    return epochs_to_steps(number, steps_per_epoch=steps_per_epoch(num_images=num_images, batch_size=batch_size))


def pretrain_plan(settings: PretrainSettings, *, num_steps: int, num_images: int) -> LoopPlan:
    """How the loop steps."""
    optim = settings.optim

    def steps(text: str) -> int:
        return duration_in_steps(text, num_images=num_images, batch_size=settings.batch_size) or 0

    return LoopPlan(
        num_steps=num_steps,
        warmup_steps=round(optim.warmup * num_steps),
        rate=scaled_rate(optim.rate, rule=optim.rule, batch_size=settings.batch_size),
        final_share=optim.final_share,
        clip_norm=optim.clip_norm,
        accumulate=optim.accumulate,
        autocast=torch.bfloat16 if settings.precision == "bf16" else None,
        log_every=settings.log_every,
        eval_every=steps(settings.eval_every),
        save_every=steps(settings.save_every),
    )
