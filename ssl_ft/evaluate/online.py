"""Watching pretraining from training images alone: kNN and linear probe where they have labels, signs of collapse.

Nothing here chooses or changes the encoder; the final judgement is `judge.py`.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from ssl_ft.artifact import InputContract
from ssl_ft.evaluate.knn import knn_predict
from ssl_ft.evaluate.monitors import embedding_std, rank_me
from ssl_ft.evaluate.probe import DEFAULT_STRENGTH, fit_linear, standardise


class Watcher:
    """Measures an encoder on a fixed part of the training images; call it with the encoder.

    Args:
        images_NCHW: uint8 [N, C, size, size].
        labels_N: int64 [N], −1 = unlabelled; None where there are none.
        contract: the encoder's input.
        num_neighbours: k of the kNN.
        batch_size: images a forward pass.
        dtype: of the encoder's parameters.
    """

    def __init__(
        self,
        images_NCHW: Tensor,
        labels_N: Tensor | None,
        contract: InputContract,
        *,
        num_neighbours: int,
        batch_size: int,
        dtype: torch.dtype,
    ) -> None:
        self.images, self.contract = images_NCHW, contract
        self.batch_size, self.dtype = batch_size, dtype
        self.labelled = None if labels_N is None else torch.nonzero(labels_N >= 0).squeeze(1)
        self.labels = labels_N
        self.num_neighbours = num_neighbours
        if self.labels is not None and self.labelled is not None:
            enough = len(self.labels[self.labelled].unique()) > 1 and len(self.labelled) > 2 * num_neighbours
            self.labelled = self.labelled if enough else None

    @property
    def num_labels(self) -> int:
        """Labels of training images that are looked at, for watching only."""
        return 0 if self.labelled is None else len(self.labelled)

    def __call__(self, encoder: nn.Module) -> dict[str, float]:
        """`embedding_std`, `rank_me`; with labels `knn_accuracy` (leave one out) and `probe_accuracy` (two halves)."""
        features = self.features(encoder)
        row = {"embedding_std": float(embedding_std(features)), "rank_me": float(rank_me(features))}
        if self.labelled is None or self.labels is None:
            return row
        known, labels = features[self.labelled], self.labels[self.labelled]
        classes = int(labels.max()) + 1
        votes, _ = knn_predict(known, labels, known, k=self.num_neighbours, num_classes=classes, exclude_self=True)
        return row | {"knn_accuracy": (votes == labels).float().mean().item(), "probe_accuracy": _halves(known, labels)}

    @torch.no_grad()
    def features(self, encoder: nn.Module) -> Tensor:
        """float32 [N, D] on the CPU, the encoder in evaluation mode; its mode is restored."""
        was_training, device = encoder.training, next(encoder.parameters()).device
        encoder.eval()
        parts = []
        for block in self.images.split(self.batch_size):
            parts.append(encoder(self.contract.normalise(block.to(device)).to(self.dtype)).float().cpu())
        encoder.train(was_training)
        return torch.cat(parts)


def _halves(features: Tensor, labels: Tensor) -> float:
    """Accuracy on every second image of a probe fitted on the others."""
    values, targets = features.numpy(), labels.numpy()
    mean, scale = standardise(values)
    if len(np.unique(targets[::2])) < 2:
        return float("nan")
    probe = fit_linear(
        values[::2], targets[::2], strength=DEFAULT_STRENGTH, num_classes=int(targets.max()) + 1, mean=mean, scale=scale
    )
    return float((probe.predict_proba(values[1::2]).argmax(1) == targets[1::2]).mean())


@torch.no_grad()
def recalibrated(encoder: nn.Module, images_NCHW: Tensor, contract: InputContract, *, batch_size: int) -> nn.Module:
    """A copy of the encoder whose batch norms hold the statistics of whole images.

    A masked objective trains them on images with holes, which is not what the encoder will be used on (Li et al. 2017,
    "Revisiting batch normalization", re-estimates statistics for a new input in the same way).

    Args:
        encoder: left as it is.
        images_NCHW: uint8 [N, C, size, size] training images.
        contract: the encoder's input.
        batch_size: images a forward pass; a last smaller part is left out where there is a whole one.
    """
    copied = copy.deepcopy(encoder)
    norms = [part for part in copied.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return copied
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches below
    parameter = next(copied.parameters())
    copied.eval()
    for norm in norms:
        norm.train()  # norms alone: dropout would blur the statistics and draw from a shared generator
    blocks = [b for b in images_NCHW.split(batch_size) if len(b) == batch_size] or [images_NCHW]
    for block in blocks:
        copied(contract.normalise(block.to(parameter.device)).to(parameter.dtype))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return copied.train(encoder.training)
