"""From settings to objectives, with the table of their names in plain sight. Encoders and views: `build/parts.py`."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_ft import dist
from ssl_ft.build.parts import DTYPES
from ssl_ft.config import PretrainSettings
from ssl_ft.data.batches import ViewMaker
from ssl_ft.data.masks import sample_mask
from ssl_ft.errors import UserError
from ssl_ft.models.batchnorm import has_batch_statistics, use_global_batch_norm
from ssl_ft.models.blocks import recompute_blocks
from ssl_ft.models.decoders import MapDecoder, TokenDecoder
from ssl_ft.models.encoders import feature_map, is_vit, num_features
from ssl_ft.models.heads import Projector
from ssl_ft.models.reach import freeze_unreached
from ssl_ft.models.visible import check_visible
from ssl_ft.objectives.classified import Classified
from ssl_ft.objectives.joint import Joint, SharedJoint
from ssl_ft.objectives.masked import Imputer, Masked
from ssl_ft.objectives.nt_xent import dcl, nt_xent
from ssl_ft.objectives.rotation import NUM_TURNS, Rotation
from ssl_ft.objectives.simclr import ContrastiveLoss, SimCLR
from ssl_ft.seeding import derive_seed

CONTRASTIVE_LOSSES: dict[str, ContrastiveLoss] = {"simclr": nt_xent, "dcl": dcl}
# The last argument are the labels of the pool, which `supervised` alone looks at.
OBJECTIVES: dict[str, Callable[[PretrainSettings, nn.Module, ViewMaker, Tensor | None], nn.Module]] = {
    "simclr": lambda settings, encoder, views, _: _simclr(settings, encoder, views, loss=nt_xent),
    "dcl": lambda settings, encoder, views, _: _simclr(settings, encoder, views, loss=dcl),
    "masked": lambda settings, encoder, views, _: _masked_alone(settings, encoder, views),
    "joint": lambda settings, encoder, views, _: _joint(settings, encoder, views),
    "rotation": lambda _, encoder, views, __: _rotation(encoder, views),
    "supervised": lambda _, encoder, views, labels: _supervised(encoder, views, labels),
}


def build_objective(
    settings: PretrainSettings,
    encoder: nn.Module,
    views: ViewMaker,
    device: torch.device,
    *,
    labels: Tensor | None = None,
) -> nn.Module:
    """The objective on its device, in its precision, with global batch norm where there are several ranks.

    Args:
        settings: which, and how.
        encoder: what is trained.
        views: makes the views.
        device: where to compute.
        labels: int64 [N], class of each image of the pool, where it has labels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "heads") >> 1)
        objective = OBJECTIVES[settings.objective](settings, encoder, views, labels)
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


def _masked_alone(settings: PretrainSettings, encoder: nn.Module, views: ViewMaker) -> Masked:
    """Masked imputation with nothing beside it: what lies behind the feature map, as a ConvNeXt's last norm, is frozen.

    In the joint objective the contrast trains that too.
    """
    masked = _masked(settings, encoder, views)
    imputer, size = masked.imputer.eval(), views.recipe.size
    mask = sample_mask(
        torch.zeros(1, dtype=torch.int64),
        num_patches=masked.num_patches,
        hidden_share=masked.hidden_share,
        seed=0,
        epoch=0,
        view=0,
    )
    prediction, _ = imputer(torch.zeros(1, len(views.mean), size, size), mask)
    freeze_unreached(imputer, prediction)
    imputer.train()
    return masked


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


def _rotation(encoder: nn.Module, views: ViewMaker) -> Rotation:
    turned = {"quarter_turn": views.recipe.quarter_turn, "vertical_flip": views.recipe.vertical_flip}
    given = " and ".join(f"views.{key}={value}" for key, value in turned.items() if value > 0)
    if given:
        # With the left-right flip, an upside-down one is half a turn.
        raise UserError(
            f"objective=rotation with {given}: views that are turned at random leave no turn to be told; set "
            "views.quarter_turn=0 and views.vertical_flip=0, or choose other views="
        )
    return Rotation(encoder, nn.Linear(num_features(encoder), NUM_TURNS), views=views)


def _supervised(encoder: nn.Module, views: ViewMaker, labels: Tensor | None) -> Classified:
    assert labels is not None, "a pool to train on labels of has labels"
    return Classified(encoder, nn.Linear(num_features(encoder), int(labels.max()) + 1), labels, views=views)
