"""Compiling the networks of an objective in place, tried out before training and given up where it does not work.

What is evaluated and handed over is a copy, and copies are plain.
"""

from typing import Any

import torch
from torch import nn

from ssl_ft import dist
from ssl_ft.backward import backward
from ssl_ft.objectives.classified import Classified
from ssl_ft.objectives.masked import Masked
from ssl_ft.objectives.rotation import Rotation
from ssl_ft.objectives.simclr import SimCLR

# CUDA graphs are prepared in the first step, recorded in the second and replayed from the third on.
_TRIALS = {"default": 1, "reduce-overhead": 3}


def compile_networks(
    objective: nn.Module, batch: Any, *, is_graphed: bool, autocast: torch.dtype | None, accumulate: int
) -> str:
    """Let `torch.compile` have the encoder with projector or decoder; weights, buffers and names stay as they are.

    Args:
        objective: SimCLR, Masked, Rotation or Classified, on its device, not yet wrapped for several ranks.
        batch: this rank's images of some step, on that device; all steps must have the same shapes.
        is_graphed: also record CUDA graphs.
        autocast: as in training.
        accumulate: as in training.

    Returns:
        A sentence that says whether training is compiled.
    """
    networks = _networks(objective)
    before = [(buffer, buffer.clone()) for buffer in objective.buffers()]
    mode = "reduce-overhead" if is_graphed else "default"
    for network in networks:
        network.compile(mode=mode, dynamic=False)
    problem = ""
    try:
        for _ in range(_TRIALS[mode]):
            backward(
                objective,
                objective,
                batch,
                accumulate=accumulate,
                autocast=autocast,
                is_measured=False,
                reseed=lambda part: None,
            )
    except Exception as error:  # compilers raise what they like; without them the step is the same, only slower
        problem = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"
    objective.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, value in before:
            buffer.copy_(value)
    if not dist.any_rank(bool(problem)):
        return f"the step is compiled ({mode})"
    for network in networks:
        network._compiled_call_impl = None  # what Module.compile set; torch has no public way back
    return f"the step could not be compiled ({problem or 'another rank could not'}), so it runs as it is"


def _networks(objective: nn.Module) -> list[nn.Module]:
    """The parts that hold nearly all of the arithmetic and are called as modules."""
    if isinstance(objective, Masked):
        return [objective.imputer]
    if isinstance(objective, (Rotation, Classified)):
        return [objective.encoder]
    assert isinstance(objective, SimCLR), "settings refuse to compile other objectives"
    return [objective.encoder, objective.projector]
