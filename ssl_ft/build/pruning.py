"""compress by method=prune: single weights are set to zero and stay so. Whole channels: `narrowing.py`."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_ft.build.compressing import Compressed, Work
from ssl_ft.build.narrowing import prune_widths
from ssl_ft.build.recovery import compressed, judged_copy, plan_recovery, recover
from ssl_ft.build.shipping import check_can_ship
from ssl_ft.build.transfer import Trained
from ssl_ft.compress.importance import parameter_scores
from ssl_ft.compress.prune_weights import cubic_share, lowest_masks, prunable_weights, zero
from ssl_ft.config.prune import PruneSettings
from ssl_ft.errors import UserError
from ssl_ft.transfer.strategy import Prepared


def prune(work: Work) -> Compressed:
    """The pruned model, trained again on the labels that may be used.

    Raises:
        UserError: layers that cannot be cut, a target that cannot be met, or a name in prune.keep that is none.
    """
    settings = work.settings.prune or PruneSettings()
    check_names(work.model, settings.keep)
    check_can_ship(work.model, work.card.contract)
    return _prune_weights(work, settings) if settings.kind == "weights" else prune_widths(work, settings)


def check_names(model: nn.Module, keep: tuple[str, ...]) -> None:
    """Refuse names of modules that the model has not.

    Raises:
        UserError: as said.
    """
    names = [name for name, _ in model.named_modules() if name]
    for name in keep:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            hint = f"close names: {', '.join(near)}" if near else f"the first of them: {', '.join(names[:3])}"
            raise UserError(f"prune.keep={name}: this {type(model).__name__} has no module of that name; {hint}")


def _prune_weights(work: Work, settings: PruneSettings) -> Compressed:
    """Weights set to zero by their score, all layers ranked together or each by itself, and kept at zero."""
    assert settings.sparsity is not None, "checked with the settings"
    model, trained, masks = work.model, list[Trained](), dict[str, Tensor]()
    plan = plan_recovery(work, settings)
    for each in plan.rounds:
        own = judged_copy(work, model, settings)
        scores = parameter_scores(own, importance=settings.importance)
        names = prunable_weights(own, keep=settings.keep)
        share = cubic_share(each.number, num_steps=settings.steps, final=settings.sparsity)
        masks = lowest_masks({name: scores[name] for name in names}, share=share, scope=settings.scope or "global")
        zero(own, masks)
        trained.append(recover(plan, own, work.card.spec, each=each, extend=_keeping(masks)))
        model = trained[-1].model
        if work.should_stop():
            break
    gone, count = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
    what = (
        f"{gone:,} of {count:,} weights of convolutions and linear layers before the head are zero "
        f"({gone / count:.4f}); it is as large and as fast as before"
    )
    return compressed(work, trained, work.card, what=what)


def _keeping(masks: Mapping[str, Tensor]) -> Callable[[Prepared], Prepared]:
    """Lets a training set the masked weights to zero after each of its steps."""

    def extend(prepared: Prepared) -> Prepared:
        assert prepared.after_step is None, "strategy full does nothing after a step"

        def after_step(optimizer: torch.optim.Optimizer) -> None:
            zero(prepared.model, masks)

        return replace(prepared, after_step=after_step)

    return extend
