"""Masked imputation: predict the hidden patches of an image from the visible ones.

Shape suffixes: B images, P patches, K values of a patch. Masks and patches are cut in `data/masks.py`.
"""

from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_ft.data.batches import Batch, ViewMaker
from ssl_ft.data.masks import hide, num_hidden, patchify, sample_mask
from ssl_ft.models.decoders import MapDecoder, TokenDecoder
from ssl_ft.models.encoders import feature_map, is_vit, pool_map
from ssl_ft.models.visible import visible_tokens
from ssl_ft.objectives.parts import LossParts


def imputation_loss(prediction_BPK: Tensor, patches_BPK: Tensor, mask_BP: Tensor) -> Tensor:
    """Mean squared error over the hidden patches alone (He et al. 2022, section 3).

    Every image hides the same number of patches, so the mean over ranks of this is the loss of the joined batch.

    Args:
        prediction_BPK: [B, P, K].
        patches_BPK: [B, P, K] targets.
        mask_BP: bool [B, P], True = hidden.

    Returns:
        Scalar, float32 or float64; the mean over images, hidden patches and values.
    """
    wide = prediction_BPK if prediction_BPK.dtype == torch.float64 else prediction_BPK.float()
    errors_BP = (wide - patches_BPK).square().mean(2)
    return (errors_BP * mask_BP).sum() / mask_BP.sum()


def normalise_patches(patches_BPK: Tensor) -> Tensor:
    """Each patch less its mean, over its standard deviation: unbiased variance + 1e-6, as the MAE authors do."""
    mean = patches_BPK.mean(2, keepdim=True)
    variance = patches_BPK.var(2, keepdim=True)
    return (patches_BPK - mean) / (variance + 1e-6).sqrt()


class Imputer(nn.Module):
    """Encoder and decoder that together predict every patch from the visible ones.

    A ViT runs on visible patches alone; any other encoder sees the image with hidden patches set to 0.

    Args:
        encoder: timm module.
        decoder: `TokenDecoder` for a ViT, else `MapDecoder`.
        patch: side of a patch in pixels.
    """

    def __init__(self, encoder: nn.Module, decoder: TokenDecoder | MapDecoder, *, patch: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.patch = encoder, decoder, patch

    def forward(self, images_BCHW: Tensor, mask_BP: Tensor, *, num_hidden: int | None = None) -> tuple[Tensor, Tensor]:
        """Predictions [B, P, K] and the features [B, D] of the visible part; `num_hidden` as in `visible_tokens`."""
        if is_vit(self.encoder):
            vit = cast(VisionTransformer, self.encoder)
            tokens, places = visible_tokens(vit, images_BCHW, mask_BP, num_hidden=num_hidden)
            return self.decoder(tokens, places), tokens.mean(1)
        features = feature_map(self.encoder, hide(images_BCHW, mask_BP, patch=self.patch))
        return patchify(self.decoder(features), patch=self.patch), pool_map(self.encoder, features)


class Masked(nn.Module):
    """Masked imputation of one view.

    Args:
        imputer: predicts the patches.
        views: makes the view.
        hidden_share: share of patches hidden.
        is_target_normalised: normalise each target patch by itself.
    """

    def __init__(self, imputer: Imputer, *, views: ViewMaker, hidden_share: float, is_target_normalised: bool) -> None:
        super().__init__()
        self.imputer, self.views = imputer, views
        self.hidden_share, self.is_target_normalised = hidden_share, is_target_normalised

    @property
    def encoder(self) -> nn.Module:
        """What is kept after pretraining."""
        return self.imputer.encoder

    @property
    def num_patches(self) -> int:
        """P of a view."""
        return (self.views.recipe.size // self.imputer.patch) ** 2

    @property
    def num_hidden(self) -> int:
        """How many of them are hidden in every image."""
        return num_hidden(self.num_patches, hidden_share=self.hidden_share)

    def mask(self, batch: Batch, *, view: int) -> Tensor:
        """The masks bool [B, P] of a view of each image."""
        return sample_mask(
            batch.indices_B,
            num_patches=self.num_patches,
            hidden_share=self.hidden_share,
            seed=self.views.seed,
            epoch=batch.epoch,
            view=view,
        )

    def target(self, images_BCHW: Tensor) -> Tensor:
        """What the decoder should say, [B, P, K]."""
        patches = patchify(images_BCHW, patch=self.imputer.patch)
        return normalise_patches(patches) if self.is_target_normalised else patches

    def forward(self, batch: Batch) -> LossParts:
        """Loss of one batch."""
        images, mask = self.views(batch, view=0), self.mask(batch, view=0)
        prediction, _ = self.imputer(images, mask, num_hidden=self.num_hidden)
        total = imputation_loss(prediction, self.target(images), mask)
        return LossParts(total, {"imputation": total.detach()})
