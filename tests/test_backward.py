"""Cached gradients: those of the full batch, dropout and projector's batch norm included, on one rank and on two."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_ft import dist
from ssl_ft.data.batches import Batch
from ssl_ft.loop import LoopCalls, LoopPlan, run_steps
from ssl_ft.models.batchnorm import use_global_batch_norm
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.models.heads import Projector
from ssl_ft.objectives.nt_xent import nt_xent
from ssl_ft.objectives.simclr import SimCLR
from ssl_ft.optim import build_optimizer, parameter_groups
from tests.pools import batch_of, view_maker
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")
PLAIN = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def simclr(args: dict[str, Any]) -> SimCLR:
    spec = EncoderSpec("vit_tiny_patch16_224", 3, 16, patch_size=4, args=args)
    encoder = build_encoder(spec, seed=0)
    torch.manual_seed(1)
    projector = Projector(32, num_hidden=32, num_out=16)
    return SimCLR(encoder, projector, views=view_maker(16), loss=nt_xent, temperature=0.2).double()


def one_step(parts: int, args: dict[str, Any], batch: Batch) -> tuple[Tensor, float, dict[str, Tensor]]:
    """Gradient, loss and state after one step."""
    objective, rows = use_global_batch_norm(simclr(args)), []
    sgd = build_optimizer(
        "sgd", parameter_groups([(objective, 1.0)], weight_decay=0.0), rate=0.1, momentum=0.0, betas=(0.9, 0.99)
    )
    run_steps(
        objective,
        sgd,
        [batch],
        plan=LoopPlan(num_steps=1, warmup_steps=0, rate=0.1, accumulate=parts, log_every=1),
        calls=LoopCalls(lambda _, row: rows.append(row), lambda _: False, lambda _: None, lambda: False),
        device=CPU,
        start_step=0,
        seed=3,
    )
    gradient = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
    return gradient, rows[0]["loss"], objective.state_dict()


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_cached_gradient_is_that_of_the_full_batch(parts):
    batch = batch_of(8, side=16)
    gradient, loss, state = one_step(parts, PLAIN, batch)
    full_gradient, full_loss, full_state = one_step(1, PLAIN, batch)
    assert loss == pytest.approx(full_loss, rel=1e-12)
    torch.testing.assert_close(gradient, full_gradient, rtol=1e-9, atol=1e-12)
    for name, value in full_state.items():  # the projector's batch norm counts one batch, not one a part
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-12)


def test_dropout_draws_the_same_in_both_passes():
    """Were the second pass to draw anew, its gradient would belong to other features than those the loss saw."""
    args = PLAIN | {"proj_drop_rate": 0.5, "drop_path_rate": 0.3}
    batch, objective = batch_of(8, side=16), simclr(args)
    drawn: list[Tensor] = []
    objective.encoder.register_forward_hook(lambda module, inputs, output: drawn.append(output.detach().clone()))
    sgd = build_optimizer(
        "sgd", parameter_groups([(objective, 1.0)], weight_decay=0.0), rate=0.1, momentum=0.0, betas=(0.9, 0.99)
    )
    plan = LoopPlan(num_steps=1, warmup_steps=0, rate=0.1, accumulate=2)
    calls = LoopCalls(lambda *_: None, lambda _: False, lambda _: None, lambda: False)
    run_steps(objective, sgd, [batch], plan=plan, calls=calls, device=CPU, start_step=0, seed=3)
    first, second, first_again, second_again = drawn
    torch.testing.assert_close(first, first_again, rtol=0, atol=0)
    torch.testing.assert_close(second, second_again, rtol=0, atol=0)
    assert (first - second).abs().max() > 0


def _rank_step(parts: int) -> tuple[list[float], float]:
    whole = batch_of(8, side=16)
    own = slice(dist.rank() * 4, dist.rank() * 4 + 4)
    batch = Batch(whole.images_BCSS[own], whole.aspects_B[own], whole.indices_B[own], whole.epoch)
    gradient, loss, _ = one_step(parts, PLAIN, batch)
    return gradient.tolist(), loss


def test_two_ranks_with_cached_gradients_equal_one_process_without():
    expected, loss, _ = one_step(1, PLAIN, batch_of(8, side=16))
    for gradient, own_loss in run_on_ranks(_rank_step, 2, num_ranks=2):
        assert own_loss == pytest.approx(loss, rel=1e-12)
        torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), expected, rtol=1e-9, atol=1e-12)
