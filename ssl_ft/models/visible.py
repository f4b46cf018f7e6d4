"""A ViT's forward pass on visible patches alone: hidden patches never enter a block.

Shape suffixes: B images, P patches, L visible patches, D features.
"""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ssl_ft.errors import UserError


def check_visible(encoder: VisionTransformer) -> None:
    """Refuse ViTs whose blocks depend on where in the full grid a token stands.

    Raises:
        UserError: rotary or relative positions, or patch dropout of the encoder's own.
    """
    if getattr(encoder, "rope", None) is not None or not hasattr(encoder, "pos_embed"):
        raise UserError(
            f"{type(encoder).__name__} places tokens inside its blocks (rotary positions), which a pass over visible "
            "patches does not support; use a plain vit_* of timm"
        )


def visible_tokens(
    encoder: VisionTransformer, images_BCHW: Tensor, mask_BP: Tensor, *, num_hidden: int | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens of the visible patches, computed without the hidden ones (He et al. 2022, section 3).

    Args:
        encoder: timm's VisionTransformer.
        images_BCHW: [B, C, H, W] normalised images.
        mask_BP: bool [B, P], True = hidden; the same number hidden in every image.
        num_hidden: that number; None counts, for which the host waits until a GPU has the mask.

    Returns:
        [B, L, D] tokens in order of their patches, after the last norm, and int64 [B, L] their patch numbers.
    """
    tokens = encoder._pos_embed(encoder.patch_embed(images_BCHW))
    num_prefix = encoder.num_prefix_tokens
    places_BL = visible_places(mask_BP, num_hidden=num_hidden)
    prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
    patches = patches.gather(1, places_BL.unsqueeze(2).expand(-1, -1, patches.shape[2]))
    tokens = encoder.norm_pre(torch.cat([prefix, patches], dim=1))
    tokens = encoder.blocks(tokens)
    # With average pooling timm moves the last norm behind the pool; tokens need one too, and it must be trained.
    tokens = encoder.fc_norm(encoder.norm(tokens))
    return tokens[:, num_prefix:], places_BL


def visible_places(mask_BP: Tensor, *, num_hidden: int | None = None) -> Tensor:
    """int64 [B, L]: the visible patches' numbers, ascending; every image must hide the same number, `num_hidden`."""
    num_visible = mask_BP.shape[1] - (int(mask_BP[0].sum()) if num_hidden is None else num_hidden)
    return mask_BP.to(torch.int8).argsort(dim=1, stable=True)[:, :num_visible]
