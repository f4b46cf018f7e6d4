"""From settings to what draws features of source and target together while a strategy trains: CORAL or a critic.

Formulas are in `transfer/coral.py` and `transfer/adversary.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ssl_ft.build.draft import Start
from ssl_ft.build.labels import LabelledImages
from ssl_ft.build.unlabelled_views import unlabelled_views
from ssl_ft.config import AdaptSettings
from ssl_ft.errors import UserError
from ssl_ft.models.encoders import num_features
from ssl_ft.optim import parameter_groups
from ssl_ft.seeding import derive_seed
from ssl_ft.transfer.adversary import Critic, domain_loss, reversal_strength
from ssl_ft.transfer.aligned import Alignment, AlignPenalty
from ssl_ft.transfer.coral import coral
from ssl_ft.transfer.strategy import Prepared


def alignment(
    settings: AdaptSettings, start: Start, target: LabelledImages, *, num_steps: int, device: torch.device
) -> Callable[[Prepared], Prepared]:
    """What `coral` or `adversarial` adds to a strategy; `num_steps` is the length of the schedule.

    No label of the target is looked at.

    Raises:
        UserError: a step has fewer than two images of the target.
    """
    num_images = min(settings.batch_size, len(target.source))
    if num_images < 2:
        raise UserError(
            f"method={settings.method} compares two images of the target a step at least, and has {num_images}: raise "
            "batch_size, or name more images with target="
        )

    def extend(prepared: Prepared) -> Prepared:
        critic: Critic | None = None
        align: Alignment = partial(_coral_terms, settings.coral_weight)
        groups = prepared.groups
        if settings.method == "adversarial":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(settings.seed, "critic") >> 1)
                critic = Critic(num_features(start.encoder)).to(device)
            align = partial(_critic_terms, critic, settings.critic_weight, num_steps)
            groups = [*groups, *parameter_groups([(critic, 1.0)], weight_decay=settings.optim.weight_decay)]
        next_views = unlabelled_views(
            settings, target, np.arange(len(target.source)), contract=start.contract, purpose="target", device=device
        )
        penalty = AlignPenalty(prepared.model, next_views=next_views, align=align, critic=critic)

        def merge() -> torch.nn.Module:
            penalty.release()
            return prepared.merge()

        return replace(prepared, groups=groups, penalty=penalty, merge=merge)

    return extend


def _coral_terms(weight: float, source: Tensor, target: Tensor, step: int) -> dict[str, Tensor]:
    # In units of the source's own spread, and times D: ‖Cₛ − Cₜ‖² sums D² entries, of which for most features those on
    # the diagonal count. Else the weight would mean another thing for each encoder.
    spread = source.detach().float().var(0).mean().sqrt().clamp(min=1e-6)
    return {"coral": weight * source.shape[1] * coral(source / spread, target / spread)}


def _critic_terms(
    critic: Critic, weight: float, num_steps: int, source: Tensor, target: Tensor, step: int
) -> dict[str, Tensor]:
    strength = reversal_strength(min(1.0, step / num_steps))
    return {"domain": weight * domain_loss(critic, source, target, strength=strength)}
