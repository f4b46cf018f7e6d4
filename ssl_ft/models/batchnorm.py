"""Batch norm over the global batch on any device, so that W ranks normalise as one process would.

Torch's SyncBatchNorm needs CUDA; here the statistics are summed by collectives that carry gradients.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_ft import dist


class GlobalBatchNorm(_BatchNorm):
    """Batch norm whose mean and variance are those of the joined batch of all ranks (Ioffe & Szegedy 2015).

    Parameters, buffers and evaluation are those of `nn.BatchNorm*d`, state dict included.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2, f"batch norm needs [B, C, …], got {tuple(input.shape)}"

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, …]; while training with statistics of all ranks, which must all call it."""
        if not self.training or dist.world_size() == 1:
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        x = input if input.dtype == torch.float64 else input.float()
        # Sums in float64 round the same whichever ranks the images are on; in float32 their error, magnified where
        # a channel varies little, would set the ranks' first steps apart.
        count = dist.sum_with_gradient(x.new_full((1,), x.numel() / x.shape[1], dtype=torch.float64))
        mean = dist.sum_with_gradient(x.sum(axes, dtype=torch.float64)) / count
        centred = x - mean.to(x.dtype).view(shape)
        variance = dist.sum_with_gradient(centred.square().sum(axes, dtype=torch.float64)) / count
        self._update_running(mean.detach(), (variance * count / (count - 1)).detach())
        scale = (variance + self.eps).rsqrt().to(x.dtype)
        if self.affine:
            scale = scale * self.weight
        out = centred * scale.view(shape)
        if self.affine:
            out = out + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), momentum)


class GlobalBatchNormAct(GlobalBatchNorm):
    """The same, followed by the drop and activation that timm fuses into its BatchNormAct2d."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, …] over all ranks, then drop and activate."""
        out: Tensor = self.act(self.drop(super().forward(input)))
        return out


def use_global_batch_norm(module: nn.Module) -> nn.Module:
    """The module with every batch norm replaced by its global form; names, parameters and buffers are kept."""
    if isinstance(module, GlobalBatchNorm) or not isinstance(module, _BatchNorm):
        for name, child in module.named_children():
            setattr(module, name, use_global_batch_norm(child))
        return module
    has_act = hasattr(module, "act") and hasattr(module, "drop")
    new = (GlobalBatchNormAct if has_act else GlobalBatchNorm)(
        module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
    )
    if has_act:
        cast(GlobalBatchNormAct, new).drop = cast(nn.Module, module.drop)
        cast(GlobalBatchNormAct, new).act = cast(nn.Module, module.act)
    if module.affine:
        new.weight, new.bias = module.weight, module.bias
    new.running_mean, new.running_var = module.running_mean, module.running_var
    new.num_batches_tracked = module.num_batches_tracked
    new.train(module.training)
    return new


def has_batch_statistics(module: nn.Module) -> bool:
    """Whether any part's training-mode result for one image depends on the others in its batch."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())
