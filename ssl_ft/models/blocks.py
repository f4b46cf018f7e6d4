"""The residual blocks of an encoder, and computing their activations twice to keep fewer of them.

Sharing blocks out over ranks is in `sharded.py`, which takes them as its units too.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ssl_ft.errors import UserError


def blocks_of(encoder: nn.Module, *, setting: str) -> list[nn.Module]:
    """The blocks of a ViT, or those in the stages of a ResNet or ConvNeXt, in order.

    Raises:
        UserError: another family; the sentence names the `setting` that needs blocks.
    """
    stages: list[Any] = []
    if isinstance(encoder, VisionTransformer):
        stages = [encoder.blocks]
    elif isinstance(encoder, ResNet):
        stages = [encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4]
    elif isinstance(encoder, ConvNeXt):
        stages = [cast(Any, stage).blocks for stage in encoder.stages]
    blocks: list[nn.Module] = [block for stage in stages for block in stage]
    if not blocks:
        raise UserError(
            f"{setting} knows the blocks of ViT, ResNet and ConvNeXt encoders, not of {type(encoder).__name__}; "
            "leave it out, or take such an encoder"
        )
    return blocks


def recompute_blocks(encoder: nn.Module) -> None:
    """Keep only the input of each block for the backward pass, which computes the rest again (Chen et al. 2016).

    Changed in place; names of tensors stay. Dropout draws the same twice, batch norms count a batch once.
    """
    for block in blocks_of(encoder, setting="activation_checkpointing=true"):
        norms = [part for part in block.modules() if isinstance(part, _BatchNorm)]
        # A bound method, not a closure: a copy of the encoder must run its own block.
        plain = block.forward
        options: dict[str, Any] = {"context_fn": partial(_contexts, norms)} if norms else {}
        block.forward = partial(checkpoint, plain, use_reentrant=False, **options)


def _contexts(norms: list[_BatchNorm]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first computation and around the second."""
    return nullcontext(), _statistics_stay(norms)


@contextmanager
def _statistics_stay(norms: list[_BatchNorm]) -> Iterator[None]:
    """Normalise by the batch as ever, but leave running statistics and counts alone."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # The statistics are still handed in: the second pass must save as many tensors as the first.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
