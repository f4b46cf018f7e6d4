"""compress by method=prune: channels, units and heads taken out until a target is met, with training between."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_ft.build.compressing import Compressed, Work
from ssl_ft.build.recovery import compressed, judged_copy, plan_recovery, recover
from ssl_ft.build.transfer import Trained
from ssl_ft.compress.latency import latency_share, open_call
from ssl_ft.compress.macs import count_macs
from ssl_ft.compress.prune_search import Found, find_share
from ssl_ft.compress.prune_weights import cubic_share
from ssl_ft.compress.prune_widths import Shears, Sizes, find_widths, narrow, planned_sizes
from ssl_ft.config.prune import PruneSettings
from ssl_ft.errors import UserError
from ssl_ft.models.encoders import num_features, with_cut

# How near a target counts as met, as a share of what is to stay. Latency is measured, and no better known than that.
_TOLERANCES = {"sparsity": 0.05, "macs": 0.02, "latency": 0.05}
# With no target named.
_DEFAULT_MACS = 0.5

Goal = Literal["sparsity", "macs", "latency"]


@dataclass(frozen=True, eq=False)
class _Plan:
    """What does not change from round to round.

    Attributes:
        goal: what is aimed at, and `target`, the share that goes (sparsity) or stays in the end.
        shears: how.
        example: an input.
        full: parts of each width of the model given.
        cost: of a model, as a share of the given one's; sparsity costs nothing.
    """

    goal: Goal
    target: float
    shears: Shears
    example: Tensor
    full: Sizes
    cost: Callable[[nn.Module], float]


def prune_widths(work: Work, settings: PruneSettings) -> Compressed:
    """The model with narrower layers, trained again, and the card of its new architecture.

    Raises:
        UserError: layers that cannot be cut, or a target that cannot be met.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan = _plan(work, settings, Path(folder))
        model, spec, trained = work.model, work.card.spec, list[Trained]()
        recovery = plan_recovery(work, settings)
        for each in recovery.rounds:
            gone = plan.target if plan.goal == "sparsity" else 1 - plan.target
            share = cubic_share(each.number, num_steps=settings.steps, final=gone)
            own = judged_copy(work, model, settings)
            found = _find(own, share, plan, is_last=each.number == settings.steps)
            own = narrow(own, found.sizes, shears=plan.shears, example=plan.example)
            spec = with_cut(work.card.spec, own)
            trained.append(recover(recovery, own, spec, each=each))
            model = trained[-1].model
            if work.should_stop():
                break
    what = _words(work, model, found, plan, settings)
    return compressed(work, trained, replace(work.card, spec=spec), what=what)


def _plan(work: Work, settings: PruneSettings, folder: Path) -> _Plan:
    shears, contract = shears_of(settings), work.card.contract
    example = torch.zeros(1, contract.channels, contract.size, contract.size)
    widths, left_whole = find_widths(judged_copy(work, work.model, settings), shears, example=example)
    for layer in left_whole:
        work.run.note(f"left whole: {layer}")
    full = {width.name: len(width.scores) for width in widths}
    goal, target = goal_of(settings)
    cost = {"sparsity": _nothing, "macs": _macs_share, "latency": _latency_share}[goal](work, folder)
    return _Plan(goal, target, shears, example, full, cost)


def shears_of(settings: PruneSettings) -> Shears:
    """How layers are made narrower."""
    return Shears(
        "units" if settings.kind == "units" else "channels", settings.importance, settings.scope or "local",
        settings.stream, settings.heads, settings.keep, settings.round_to,
    )  # fmt: skip


def goal_of(settings: PruneSettings) -> tuple[Goal, float]:
    """What is aimed at, and the share that goes (sparsity) or stays (macs, latency)."""
    if settings.sparsity is not None:
        return "sparsity", settings.sparsity
    if settings.latency is not None:
        return "latency", settings.latency
    return "macs", _DEFAULT_MACS if settings.macs is None else settings.macs


def _nothing(work: Work, folder: Path) -> Callable[[nn.Module], float]:
    return lambda model: 0.0


def _macs_share(work: Work, folder: Path) -> Callable[[nn.Module], float]:
    contract = work.card.contract
    whole = count_macs(work.model, channels=contract.channels, size=contract.size)
    return lambda model: count_macs(model, channels=contract.channels, size=contract.size) / whole


def _latency_share(work: Work, folder: Path) -> Callable[[nn.Module], float]:
    contract, num_threads = work.card.contract, work.settings.threads or 1

    def open_own(model: nn.Module, name: str) -> Callable[[], object]:
        return open_call(model, folder / name, channels=contract.channels, size=contract.size, num_threads=num_threads)

    whole = open_own(work.model, "whole.onnx")
    return lambda model: latency_share(open_own(model, "cut.onnx"), whole)


def _find(model: nn.Module, share: float, plan: _Plan, *, is_last: bool) -> Found:
    """The widths by which the share of a round goes: of the parts, or of what the model costs.

    Rounds before the last only lead there: they take the nearest that coarse widths have, and nothing that the last
    could not make any multiple of.

    Raises:
        UserError: no widths of the last round meet the target.
    """
    shears, target, tolerance = plan.shears, 1 - share, _TOLERANCES[plan.goal]
    widths, _ = find_widths(model, shears, example=plan.example)
    rounding = [shears.round_to]
    if is_last:
        rounding += [to for to in (4, 2, 1) if to < shears.round_to]

    def sizes_by(gone: float, round_to: int) -> Sizes:
        own = replace(shears, round_to=round_to)
        return planned_sizes(widths, gone, full=plan.full, shears=own, is_up=not is_last)

    if plan.goal == "sparsity":
        return _nearest_sparsity(sizes_by, share, plan, rounding)

    def cost(sizes: Sizes) -> float:
        return plan.cost(narrow(model, sizes, shears=shears, example=plan.example))

    floor = 0.0 if is_last else plan.target
    found = find_share(sizes_by, cost=cost, target=target, tolerance=tolerance, rounding=rounding, floor=floor)
    if is_last and abs(found.cost - target) > tolerance * target:
        raise UserError(
            f"prune.{plan.goal}={plan.target}: no widths meet {target:.4g} of the model's to {tolerance:.0%}; the "
            f"nearest is {found.cost:.4g}. Layers that stay whole have their part in it: name less in prune.keep, or "
            "aim elsewhere"
        )
    return found


def _nearest_sparsity(sizes_by: Callable[[float, int], Sizes], share: float, plan: _Plan, rounding: list[int]) -> Found:
    """Widths of the share, in the coarsest multiples that leave about as much as it says, else in the finest.

    Raises:
        UserError: the model has no layer that loses anything by it.
    """
    whole = sum(plan.full.values())
    for round_to in rounding:
        sizes = sizes_by(share, round_to)
        left = sum(sizes.values()) / whole
        if sizes != plan.full and abs(left - (1 - share)) <= _TOLERANCES["sparsity"] * (1 - share):
            break
    if round_to == 1 and sizes == plan.full:
        raise UserError(f"prune.sparsity={plan.target}: no layer is wide enough to lose anything by it; raise it")
    return Found(sizes, left, share, round_to)


def _words(work: Work, model: nn.Module, found: Found, plan: _Plan, settings: PruneSettings) -> str:
    """What the pruned model is, in numbers."""
    macs = _macs_share(work, Path())(model)
    before, after = (sum(p.numel() for p in each.parameters()) for each in (work.model, model))
    left = sum(found.sizes.values()) / sum(plan.full.values())
    words = (
        f"{settings.kind}, {left:.3f} of them left, in multiples of {found.round_to} where a layer has more; "
        f"{after:,} of {before:,} parameters, {num_features(model)} features, {macs:.4f} of the multiply-accumulates"
    )
    if plan.goal == "latency":
        threads = work.settings.threads or 1
        words += f", {found.cost:.3f} of the time an image takes in ONNX Runtime ({threads} thread(s), batch of 1)"
    return words
