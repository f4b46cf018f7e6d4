"""From settings to encoders, views, objectives, optimizers and plans, with the tables of names in plain sight.

Data are opened in `build/data.py`, which stages call first.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssl_ft import dist
from ssl_ft.artifact import InputContract
from ssl_ft.config import EncoderSettings, OptimSettings, PretrainSettings, ViewSettings
from ssl_ft.data.batches import ViewMaker
from ssl_ft.data.permutation import steps_per_epoch
from ssl_ft.data.views import ViewRecipe
from ssl_ft.errors import UserError
from ssl_ft.loop import LoopPlan
from ssl_ft.models.batchnorm import has_batch_statistics, use_global_batch_norm
from ssl_ft.models.blocks import recompute_blocks
from ssl_ft.models.decoders import MapDecoder, TokenDecoder
from ssl_ft.models.encoders import EncoderSpec, build_encoder, feature_map, is_vit, load_pretrained, num_features
from ssl_ft.models.fit import check_input
from ssl_ft.models.heads import Projector
from ssl_ft.models.visible import check_visible
from ssl_ft.objectives.joint import Joint, SharedJoint
from ssl_ft.objectives.masked import Imputer, Masked
from ssl_ft.objectives.nt_xent import dcl, nt_xent
from ssl_ft.objectives.simclr import ContrastiveLoss, SimCLR
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
CONTRASTIVE_LOSSES: dict[str, ContrastiveLoss] = {"simclr": nt_xent, "dcl": dcl}
OBJECTIVES: dict[str, Callable[[PretrainSettings, nn.Module, ViewMaker], nn.Module]] = {
    "simclr": lambda settings, encoder, views: _simclr(settings, encoder, views, loss=nt_xent),
    "dcl": lambda settings, encoder, views: _simclr(settings, encoder, views, loss=dcl),
    "masked": lambda settings, encoder, views: _masked(settings, encoder, views),
    "joint": lambda settings, encoder, views: _joint(settings, encoder, views),
}
DTYPES = {"float32": torch.float32, "bf16": torch.float32, "float64": torch.float64}


def choose_device(name: str) -> torch.device:
    """The device of this rank.

    Raises:
        UserError: cuda asked for where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device here; use device=cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", dist.local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def encoder_spec(settings: EncoderSettings, *, channels: int, size: int) -> EncoderSpec:
    """The architecture for images of `channels` and `size`."""
    return EncoderSpec(settings.name, channels, size, settings.stem_stride, settings.patch_size, dict(settings.args))


def new_encoder(settings: EncoderSettings, spec: EncoderSpec, *, seed: int) -> tuple[nn.Module, str]:
    """A fresh or pretrained encoder, and the sentence that says which."""
    encoder = build_encoder(spec, seed=derive_seed(seed, "weights") >> 1)
    check_input(encoder, spec)
    if settings.pretrained is None:
        return encoder, "the encoder starts from random weights"
    return encoder, load_pretrained(encoder, spec, source=settings.pretrained)


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


def build_objective(
    settings: PretrainSettings, encoder: nn.Module, views: ViewMaker, device: torch.device
) -> nn.Module:
    """The objective on its device, in its precision, with global batch norm where there are several ranks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "heads") >> 1)
        objective = OBJECTIVES[settings.objective](settings, encoder, views)
    objective = objective.to(device=device, dtype=DTYPES[settings.precision])
    if settings.channels_last:
        objective = objective.to(memory_format=torch.channels_last)
    objective = use_global_batch_norm(objective) if dist.world_size() > 1 else objective
    if settings.activation_checkpointing:
        recompute_blocks(encoder)
    return objective


def _projector(settings: PretrainSettings, encoder: nn.Module) -> Projector:
    width = num_features(encoder)
    return Projector(
        width, num_hidden=settings.contrast.projector_hidden or width, num_out=settings.contrast.projector_out
    )


def _simclr(settings: PretrainSettings, encoder: nn.Module, views: ViewMaker, *, loss: ContrastiveLoss) -> SimCLR:
    if settings.optim.accumulate > 1 and has_batch_statistics(encoder):
        raise UserError(
            f"optim.accumulate={settings.optim.accumulate} with encoder.name={settings.encoder.name!r}: its batch norm "
            "would see one part at a time, which is another encoder than the full batch's; use an encoder with layer "
            "norm (a ViT or ConvNeXt), more devices, or optim.accumulate=1"
        )
    projector = _projector(settings, encoder)
    return SimCLR(encoder, projector, views=views, loss=loss, temperature=settings.contrast.temperature)


def _masked(settings: PretrainSettings, encoder: nn.Module, views: ViewMaker) -> Masked:
    masked, size = settings.masked, views.recipe.size
    key = "size" if settings.views.size is None else "views.size"
    decoder: TokenDecoder | MapDecoder
    if is_vit(encoder):
        check_visible(encoder)
        own = int(encoder.patch_embed.patch_size[0])  # type: ignore[union-attr, index]
        patch = masked.patch or own
        if patch != own:
            raise UserError(f"masked.patch={patch} must be the ViT's own patch_size, {own}; leave it out")
        if masked.decoder_width % 32:
            raise UserError(f"masked.decoder_width={masked.decoder_width} must be a multiple of 32 for a ViT's decoder")
        decoder = TokenDecoder(
            num_features(encoder),
            width=masked.decoder_width,
            depth=masked.decoder_depth,
            num_heads=max(1, masked.decoder_width // 32),
            num_patches=(size // patch) ** 2,
            num_out=patch * patch * len(views.mean),
        )
    else:
        patch = masked.patch or _default_patch(size)
        with torch.no_grad():
            _, width, side, _ = feature_map(encoder.eval(), torch.zeros(1, len(views.mean), size, size)).shape
        encoder.train()
        if size % side:
            raise UserError(
                f"{key}={size} gives {encoder.__class__.__name__} a feature map of {side} x {side} cells, which does "
                f"not divide the image evenly; use a size that is a multiple of {2 ** round(math.log2(size / side))}"
            )
        decoder = MapDecoder(width, width=masked.decoder_width, cell=size // side, channels=len(views.mean))
    if size % patch:
        raise UserError(f"{key}={size} must be a multiple of masked.patch={patch}")
    if size == patch:
        raise UserError(
            f"{key}={size} is a single patch of masked.patch={patch}: choose smaller patches or larger images"
        )
    if patch * patch * len(views.mean) == 1 and masked.normalise_target:
        raise UserError(
            f"masked.patch={patch} of one channel is a single value, which normalising makes 0; choose a larger "
            "masked.patch, or set masked.normalise_target=false"
        )
    # Colours of a hidden patch are to be read off the visible ones, so they must not change at random.
    recipe = replace(views.recipe, jitter=0.0, grey=0.0, blur=0.0)
    return Masked(
        Imputer(encoder, decoder, patch=patch),
        views=replace(views, recipe=recipe),
        hidden_share=masked.hidden_share,
        is_target_normalised=masked.normalise_target,
    )


def _default_patch(size: int) -> int:
    """Of the sides that divide `size`, the one nearest an eighth of it; 2 or more, as one grey pixel is no target."""
    divisors = (side for side in range(2, size // 2 + 1) if size % side == 0)
    return min(divisors, key=lambda side: abs(side - size / 8), default=1)


def _joint(settings: PretrainSettings, encoder: nn.Module, views: ViewMaker) -> Joint | SharedJoint:
    loss, weight = CONTRASTIVE_LOSSES[settings.joint.loss], settings.joint.weight
    masked = _masked(settings, encoder, views)
    if settings.joint.form == "plain":
        return Joint(_simclr(settings, encoder, views, loss=loss), masked, weight=weight)
    # One pass serves both terms, so it needs the views of the contrast, colour changes included.
    masked.views = views
    return SharedJoint(
        masked,
        _projector(settings, encoder),
        loss=loss,
        temperature=settings.contrast.temperature,
        weight=weight,
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
