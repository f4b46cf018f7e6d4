"""Structured pruning: which channels, neurons, heads and dimensions of heads go, and taking them out of a model.

What a model has of them is found in `prune_transformer.py` (explicit rules) and `prune_graph.py` (torch-pruning). Here
they are chosen by score and share. The share that meets a cost is sought in `prune_search.py`.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_ft.compress.importance import Importance
from ssl_ft.errors import UserError
from ssl_ft.models.cuts import correct_features

# In a global ranking no layer loses more than this: one that is left with next to nothing stops all that comes after.
_MOST_OF_A_LAYER = 0.9


@dataclass(frozen=True, eq=False)
class Width:
    """Alike parts of a model of which some can be taken out: the channels of a layer, the heads of a block.

    Attributes:
        name: of the layer, or of several that can only be cut together.
        scores: float64 [n], lowest goes first.
        take: takes out the parts of the given numbers, in place; called once.
        is_rounded: whether what stays is to be a multiple, for speed.
    """

    name: str
    scores: Tensor
    take: Callable[[list[int]], None]
    is_rounded: bool = True


@dataclass(frozen=True)
class Shears:
    """How a model is made narrower.

    Attributes:
        kind: units cuts the hidden neurons of MLPs; channels cuts channels of convolutions, and in a ViT the heads and
            the hidden neurons.
        importance: what a part counts by.
        scope: local takes the same share of each layer, global ranks the parts of all.
        stream: whether the channels of residual streams go too; None: where no layer norm runs over them.
        heads: of a ViT, whether every head loses dimensions or some go whole.
        keep: names of modules that stay whole.
        round_to: what stays of a layer is a multiple of this, where the layer has more.
    """

    kind: Literal["units", "channels"]
    importance: Importance = "magnitude"
    scope: Literal["global", "local"] = "local"
    stream: bool | None = None
    heads: Literal["dims", "whole"] = "dims"
    keep: tuple[str, ...] = ()
    round_to: int = 8


Sizes = dict[str, int]
"""By name of each width, how many of its parts stay."""


def narrow(model: nn.Module, sizes: Mapping[str, int], *, shears: Shears, example: Tensor) -> nn.Module:
    """A copy of the model of whose parts those that count least are gone.

    Args:
        model: a timm classifier with a linear head; for taylor with gradients.
        sizes: what is to be left of each width, as `planned_sizes` tells.
        shears: how.
        example: [1, C, S, S], an input.

    Raises:
        UserError: the model does not run when it is cut.
    """
    own = copy.deepcopy(model).eval()
    for copied, given in zip(own.parameters(), model.parameters(), strict=True):
        copied.grad = given.grad  # a deep copy leaves gradients behind
    for width in find_widths(own, shears, example=example)[0]:
        order = width.scores.sort(stable=True).indices
        gone = order[: len(width.scores) - sizes[width.name]]
        if len(gone):
            width.take(sorted(gone.tolist()))
    _check_runs(own, example, shears)
    correct_features(own, example=example)
    for parameter in own.parameters():
        parameter.grad = None
    return own


def find_widths(model: nn.Module, shears: Shears, *, example: Tensor) -> tuple[list[Width], tuple[str, ...]]:
    """What can be cut of a model, and what cannot with the reasons.

    Raises:
        UserError: nothing can be cut.
    """
    from timm.models.vision_transformer import VisionTransformer

    from ssl_ft.compress.prune_graph import graph_widths
    from ssl_ft.compress.prune_transformer import attention_widths, hidden_widths

    if shears.kind == "channels" and not isinstance(model, VisionTransformer):
        _refuse_heads(model, shears)
        widths, left = graph_widths(model, shears, example=example)
    else:
        widths, left = hidden_widths(model, shears)
        if shears.kind == "channels":
            _refuse_stream(model, shears)
            more, also_left = attention_widths(model, shears)
            widths, left = widths + more, (*left, *also_left)
    if not widths:
        named = f" Left whole: {'; '.join(left)}." if left else ""
        other = "take prune.kind=channels" if shears.kind == "units" else "take prune.kind=weights"
        what = "MLP, a pair of linear layers with neurons between," if shears.kind == "units" else "layer"
        raise UserError(
            f"prune.kind={shears.kind}: this {type(model).__name__} has no {what} that can be cut.{named} "
            f"Name less in prune.keep, or {other}"
        )
    return widths, left


def _refuse_heads(model: nn.Module, shears: Shears) -> None:
    if shears.heads == "whole":
        raise UserError(f"prune.heads=whole: a {type(model).__name__} has no heads of attention; leave it out")


def _refuse_stream(model: nn.Module, shears: Shears) -> None:
    if shears.stream:
        raise UserError(
            f"prune.stream=true: the tokens of a {type(model).__name__} run through a layer norm before every layer, "
            "and with fewer channels each would compute something else; leave it out"
        )


def rounded(count: float, *, size: int, to: int, is_up: bool = False) -> int:
    """Of `size` parts, how many stay where `count` should: the nearest multiple of `to`, or the next above; never none.

    A layer that has no more than `to` of them is not rounded.
    """
    unit = 1 if size <= to else to
    steps = math.ceil(count / unit - 1e-9) if is_up else int(count / unit + 0.5)
    return min(size, max(unit, steps * unit))


def planned_sizes(
    widths: list[Width], share: float, *, full: Mapping[str, int], shears: Shears, is_up: bool = False
) -> Sizes:
    """How many parts of each width stay.

    Args:
        widths: of the model as it is.
        share: in [0, 1), of the parts the model had when it was whole that are gone afterwards.
        full: how many those were, of each width.
        shears: local takes the share of each width; global takes the lowest scores of all together.
        is_up: round what stays up, so that it can still become what any larger share leaves.
    """
    if shears.scope == "local":
        counts = {width.name: (1 - share) * full[width.name] for width in widths}
    else:
        counts = _ranked(widths, share, full=full)
    sizes = Sizes()
    for width in widths:
        to = shears.round_to if width.is_rounded else 1
        planned = rounded(counts[width.name], size=full[width.name], to=to, is_up=is_up)
        sizes[width.name] = min(len(width.scores), planned)
    return sizes


def _ranked(widths: list[Width], share: float, *, full: Mapping[str, int]) -> dict[str, float]:
    """Parts left of each width where those of all widths are ranked together."""
    scores = torch.cat([width.scores for width in widths])
    owner = torch.cat([torch.full((len(width.scores),), i) for i, width in enumerate(widths)])
    left = [len(width.scores) for width in widths]
    least = [max(1, round((1 - _MOST_OF_A_LAYER) * full[width.name])) for width in widths]
    to_go = sum(left) - round((1 - share) * sum(full[width.name] for width in widths))
    for number in owner[scores.sort(stable=True).indices].tolist():
        if to_go <= 0:
            break
        if left[number] > least[number]:
            left[number] -= 1
            to_go -= 1
    return {width.name: float(count) for width, count in zip(widths, left, strict=True)}


def joint_scores(parts: list[Tensor], *, importance: Importance) -> Tensor:
    """One score from those of several tensors that lose the same parts.

    Magnitudes are taken by each tensor's mean first, so that none outweighs the others by its scale; what a loss
    changes by has one unit everywhere and is added up.

    Args:
        parts: of each tensor, float64 [n], not negative.
        importance: what they are.
    """
    if importance == "taylor":
        return torch.stack(parts).sum(0)
    return torch.stack([part / mean if (mean := part.mean()) > 0 else part for part in parts]).mean(0)


def _check_runs(model: nn.Module, example: Tensor, shears: Shears) -> None:
    try:
        with torch.no_grad():
            model(example)
    except (RuntimeError, ValueError, IndexError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"prune.kind={shears.kind}: the layers of this {type(model).__name__} do not fit together any more when "
            f"they are cut ({first}). Name those that must stay whole in prune.keep, or take prune.kind=weights"
        ) from error
