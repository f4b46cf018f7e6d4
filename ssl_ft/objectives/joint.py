"""Contrast and imputation together, with one encoder; and how far their gradients agree.

`Joint` contrasts full views and imputes a masked copy of the first. `SharedJoint` encodes each of two views once,
from its visible patches, and feeds both terms from that.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssl_ft import dist
from ssl_ft.data.batches import Batch
from ssl_ft.objectives.masked import Masked, imputation_loss
from ssl_ft.objectives.parts import LossParts
from ssl_ft.objectives.simclr import ContrastiveLoss, SimCLR, contrast


class Joint(nn.Module):
    """Both objectives side by side: total = contrast + weight · imputation. Two full passes and a masked one.

    Args:
        simclr: the contrastive objective.
        masked: the imputation, whose encoder is the same module and whose views follow its own recipe.
        weight: of the imputation; it does not depend on the number of ranks.
    """

    def __init__(self, simclr: SimCLR, masked: Masked, *, weight: float) -> None:
        super().__init__()
        assert simclr.encoder is masked.encoder, "both terms must train one encoder"
        self.simclr, self.masked, self.weight = simclr, masked, weight

    @property
    def encoder(self) -> nn.Module:
        """What is kept after pretraining."""
        return self.simclr.encoder

    def forward(self, batch: Batch) -> LossParts:
        """Loss of one batch. The masked pass comes first, so that running statistics end on full views."""
        imputed = self.masked(batch).total
        contrasted = self.simclr(batch).total
        return _joined(contrasted, imputed, weight=self.weight)


class SharedJoint(nn.Module):
    """Both objectives on one pass: two views, each encoded from its visible patches alone.

    Args:
        masked: the imputation; its imputer gives the features too, its views are used for both terms.
        projector: [B, D] -> [B, E].
        loss: `nt_xent` or `dcl`.
        temperature: τ.
        weight: of the imputation.
    """

    def __init__(
        self,
        masked: Masked,
        projector: nn.Module,
        *,
        loss: ContrastiveLoss,
        temperature: float,
        weight: float,
    ) -> None:
        super().__init__()
        self.masked, self.projector = masked, projector
        self.loss, self.temperature, self.weight = loss, temperature, weight

    @property
    def encoder(self) -> nn.Module:
        """What is kept after pretraining."""
        return self.masked.encoder

    def forward(self, batch: Batch) -> LossParts:
        """Loss of one batch."""
        images = torch.cat([self.masked.views(batch, view=view) for view in (0, 1)])
        mask = torch.cat([self.masked.mask(batch, view=view) for view in (0, 1)])
        prediction, features = self.masked.imputer(images, mask, num_hidden=self.masked.num_hidden)
        imputed = imputation_loss(prediction, self.masked.target(images), mask)
        contrasted = contrast(self.projector(features), loss=self.loss, temperature=self.temperature)
        return _joined(contrasted, imputed, weight=self.weight)


def _joined(contrasted: Tensor, imputed: Tensor, *, weight: float) -> LossParts:
    parts = {"contrast": contrasted.detach(), "imputation": imputed.detach()}
    terms = {"contrast": contrasted, "imputation": weight * imputed}
    return LossParts(contrasted + weight * imputed, parts, terms)


def gradient_agreement(terms: dict[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, float]:
    """Norm of each term's gradient and the cosine between the first two, averaged over ranks before measuring.

    Args:
        terms: scalars with graphs; the graphs are kept.
        parameters: what to differentiate by; those a term does not reach count as 0.

    Returns:
        `gradient_norm_<term>` for each term and `gradient_cosine`, Python floats.
    """
    flat = []
    for term in terms.values():
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        flat.append(torch.cat([g.reshape(-1) for g in dist.average_gradients(filled)]).double())
    norms = {f"gradient_norm_{name}": g.norm().item() for name, g in zip(terms, flat, strict=True)}
    cosine = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0).item()
    return {**norms, "gradient_cosine": cosine}
