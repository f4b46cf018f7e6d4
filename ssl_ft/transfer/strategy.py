"""What a strategy of fine-tuning hands to training: which weights move how fast and from when, and what stays.

Which strategy prepares what is the table `STRATEGIES` in `build/strategies.py`; the steps are in `finetune.py`.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_ft.errors import UserError
from ssl_ft.models.timm_model import as_timm
from ssl_ft.optim import parameter_groups


@dataclass(frozen=True, eq=False)
class Phase:
    """Parameters that begin to move only some way into training.

    Attributes:
        start: share of the steps, in (0, 1), that are over when they begin.
        parameters: which; each is in a group of the optimizer too.
    """

    start: float
    parameters: tuple[nn.Parameter, ...]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A classifier made ready to be trained by a strategy.

    Attributes:
        model: images [B, C, S, S] -> logits [B, K]; may contain adapters.
        groups: of the optimizer, as `optim.parameter_groups` makes them; none where nothing is left to train.
        merge: the plain timm module with everything merged, for scoring, saving and export.
        frozen: modules kept in evaluation mode besides those none of whose parameters move, such as batch norms
            that are to keep the statistics of the source.
        phases: what begins to move later.
        penalty: from the views [B, C, S, S] of a step, after the model has seen them, weighted terms by name that are
            added to the loss.
        after_step: called with the optimizer after each step.
        num_fitted: parameters fitted outside of the training steps.
    """

    model: nn.Module
    groups: list[dict[str, object]]
    merge: Callable[[], nn.Module]
    frozen: tuple[nn.Module, ...] = ()
    phases: tuple[Phase, ...] = ()
    penalty: Callable[[Tensor], dict[str, Tensor]] | None = None
    after_step: Callable[[Optimizer], None] | None = None
    num_fitted: int = 0

    def trained(self) -> list[nn.Parameter]:
        """The parameters of all groups."""
        return [p for group in self.groups for p in group["params"]]  # type: ignore[attr-defined]


def scaled_groups(
    model: nn.Module, scales: Mapping[str, float], *, weight_decay: float, undecayed: Set[str] = frozenset()
) -> list[dict[str, object]]:
    """Groups of the optimizer with a rate for each parameter.

    Args:
        model: its parameters that require gradients are grouped.
        scales: factor on the learning rate by parameter name; all that are grouped must be there.
        weight_decay: for matrices and filters.
        undecayed: names of parameters that do not decay all the same.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    split: list[dict[str, object]] = []
    for group in parameter_groups([(model, 1.0)], weight_decay=weight_decay):
        members: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for p in group["params"]:  # type: ignore[attr-defined]
            name = names[id(p)]
            members.setdefault((scales[name], name in undecayed), []).append(p)
        for (scale, is_undecayed), params in members.items():
            own = {**group, "params": params, "scale": scale}
            split.append(own | {"weight_decay": 0.0} if is_undecayed else own)
    return split


def head_of(model: nn.Module) -> nn.Linear:
    """The last layer of a timm classifier.

    Raises:
        UserError: it is not one linear layer.
    """
    head = as_timm(model).get_classifier()
    if not isinstance(head, nn.Linear):
        raise UserError(
            f"the head of {type(model).__name__} is {type(head).__name__}, not one linear layer; fine-tuning knows "
            "linear heads alone, take another encoder"
        )
    return head


def head_names(model: nn.Module) -> set[str]:
    """Names of the head's parameters."""
    own = {id(p) for p in head_of(model).parameters()}
    return {name for name, p in model.named_parameters() if id(p) in own}


def move_only(model: nn.Module, names: set[str]) -> None:
    """Let the named parameters require gradients and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def still_modules(model: nn.Module) -> list[nn.Module]:
    """The largest modules none of whose parameters requires a gradient.

    A module without parameters belongs to what it lies in: dropout inside a frozen block is still, dropout before a
    trained head is not.
    """
    own = list(model.parameters())
    if own and not any(p.requires_grad for p in own):
        return [model]
    return [still for child in model.children() for still in still_modules(child)]


def set_modes(prepared: Prepared) -> None:
    """Training mode for what moves, evaluation mode for what does not: its batch norms neither use nor change a batch's
    statistics.
    """
    prepared.model.train()
    for module in (*still_modules(prepared.model), *prepared.frozen):
        module.eval()


def begin_step(prepared: Prepared, step: int, *, num_steps: int) -> None:
    """Before a 0-based step: let the parameters of the phases that have begun require gradients, and set modes.

    Where no phase begins it does nothing but at step 0.
    """
    starts = {first_step(phase, num_steps=num_steps) for phase in prepared.phases}
    if step and step not in starts:
        return
    for phase in prepared.phases:
        for parameter in phase.parameters:
            parameter.requires_grad_(step >= first_step(phase, num_steps=num_steps))
    set_modes(prepared)


def first_step(phase: Phase, *, num_steps: int) -> int:
    """The 0-based step of `num_steps` at which a phase begins."""
    return round(phase.start * num_steps)


@torch.no_grad()
def snapshot(prepared: Prepared) -> list[Tensor]:
    """Copies of all that training can change."""
    return [tensor.detach().clone() for tensor in _changeable(prepared)]


@torch.no_grad()
def restore(prepared: Prepared, copies: list[Tensor]) -> None:
    """Put a `snapshot` back."""
    for tensor, kept in zip(_changeable(prepared), copies, strict=True):
        tensor.copy_(kept)


def _changeable(prepared: Prepared) -> list[Tensor]:
    return [*prepared.trained(), *prepared.model.buffers()]
