"""The loop: accumulation, clipping, averages, repeatable dropout, what is logged, saved and evaluated when, stops."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssl_ft.errors import UserError
from ssl_ft.loop import LoopCalls, LoopPlan, rate_at, run_steps
from ssl_ft.models.decoders import TokenDecoder
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.objectives.masked import Imputer, Masked
from ssl_ft.objectives.parts import LossParts
from ssl_ft.optim import build_optimizer, parameter_groups
from tests.pools import batch_of, view_maker

VIT = EncoderSpec("vit_tiny_patch16_224", 3, 16, patch_size=4, args={"depth": 2, "embed_dim": 32, "num_heads": 2})
CPU = torch.device("cpu")


class Numbers:
    """A batch of plain numbers."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def to(self, device: torch.device) -> "Numbers":
        return self

    def split(self, num_parts: int) -> list["Numbers"]:
        return [Numbers(part) for part in self.values.chunk(num_parts)]


class Line(nn.Module):
    """Mean of weight · dropout(x), whose gradient is known; `encoder` is the dropout's input."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.dropout = nn.Linear(3, 1, bias=False).double(), nn.Dropout(dropout)
        nn.init.ones_(self.encoder.weight)

    def forward(self, batch: Numbers) -> LossParts:
        total = self.encoder(self.dropout(batch.values)).mean()
        return LossParts(total, {"twice": 2 * total.detach()})


@dataclass
class Notes:
    """What the loop called, and when."""

    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    stop_after: int = 10**9
    evaluation: Callable[[int], bool] = lambda step: False

    def calls(self) -> LoopCalls:
        seen = iter(range(1, 10**9))

        def evaluate(step: int) -> bool:
            self.evaluated.append(step)
            return self.evaluation(step)

        def log(step: int, row: dict[str, float]) -> None:
            self.rows.append((step, row))

        return LoopCalls(log, evaluate, self.saved.append, lambda: next(seen) >= self.stop_after)

    def losses(self) -> list[float]:
        return [row["loss"] for _, row in self.rows]


def numbers(start: int, stop: int, *, scale: float = 1.0) -> Iterator[Numbers]:
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        yield Numbers(scale * torch.randn(4, 3, generator=generator, dtype=torch.float64))


def train(
    objective: nn.Module, stream: Any, plan: LoopPlan, *, notes: Notes, start: int = 0, average: Any = None
) -> int:
    groups = parameter_groups([(objective, 1.0)], weight_decay=0.0)
    sgd = build_optimizer("sgd", groups, rate=plan.rate, momentum=0.0, betas=(0.9, 0.99))
    return run_steps(
        objective, sgd, stream, plan=plan, calls=notes.calls(), device=CPU, start_step=start, seed=3, average=average
    )


PLAN = LoopPlan(num_steps=10, warmup_steps=4, rate=0.1, log_every=1)


def masked_vit() -> Masked:
    encoder = build_encoder(VIT, seed=0)
    torch.manual_seed(1)
    decoder = TokenDecoder(32, width=32, depth=1, num_heads=1, num_patches=16, num_out=48)
    imputer = Imputer(encoder, decoder, patch=4)
    views = view_maker(16)
    return Masked(imputer, views=views, hidden_share=0.75, is_target_normalised=True).double()


def test_accumulated_parts_have_the_gradient_and_loss_of_the_full_batch():
    found = {}
    for parts in (1, 4):
        objective, notes = masked_vit(), Notes()
        plan = LoopPlan(num_steps=1, warmup_steps=0, rate=0.1, accumulate=parts, log_every=1)
        train(objective, [batch_of(8, side=16)], plan, notes=notes)
        gradient = torch.cat([p.grad.flatten() for p in objective.parameters()])
        found[parts] = gradient, notes.rows[0][1], objective.state_dict()
    torch.testing.assert_close(found[4][0], found[1][0], rtol=1e-9, atol=1e-12)
    for key in ("loss", "imputation", "grad_norm"):
        assert found[4][1][key] == pytest.approx(found[1][1][key], rel=1e-12)
    for name, value in found[1][2].items():
        torch.testing.assert_close(found[4][2][name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clip", [None, 0.25, 1e6])
def test_a_step_is_the_clipped_gradient_and_the_row_tells_the_norm_before(clip):
    objective, notes = Line(), Notes()
    (batch,) = numbers(0, 1, scale=5.0)
    plan = LoopPlan(num_steps=1, warmup_steps=0, rate=0.1, clip_norm=clip, log_every=1)
    before = objective.encoder.weight.detach().clone()
    train(objective, [batch], plan, notes=notes)
    gradient = batch.values.mean(0)
    norm = gradient.norm().item()
    assert norm > 1
    assert notes.rows[0][1]["grad_norm"] == pytest.approx(norm, rel=1e-12)
    step = (before - objective.encoder.weight).detach().squeeze(0) / 0.1
    expected = gradient * min(1.0, (clip or math.inf) / norm)
    torch.testing.assert_close(step, expected, rtol=1e-5, atol=1e-9)  # torch adds 1e-6 to the norm


def test_rates_follow_the_plan_and_each_groups_scale():
    objective, notes = Line(), Notes()
    groups = [{"params": [objective.encoder.weight], "scale": 0.5}]
    sgd = torch.optim.SGD(groups, lr=1.0)
    moved = []
    plan = replace(PLAN, num_steps=6)
    weight = objective.encoder.weight.detach()

    def stream() -> Iterator[Numbers]:
        for _ in range(6):
            moved.append(weight.clone())
            yield Numbers(torch.ones(1, 3, dtype=torch.float64))

    run_steps(objective, sgd, stream(), plan=plan, calls=notes.calls(), device=CPU, start_step=0, seed=0)
    moved.append(weight.clone())
    for step, (before, after) in enumerate(itertools.pairwise(moved)):
        assert (before - after)[0, 0].item() == pytest.approx(0.5 * rate_at(step, plan), rel=1e-9)
        assert notes.rows[step][1]["lr"] == rate_at(step, plan)


def spoilt_at_step_4() -> Iterator[Numbers]:
    for step, batch in enumerate(numbers(0, 10)):
        yield Numbers(batch.values * math.nan) if step == 4 else batch


@pytest.mark.parametrize("looks", [{"log_every": 3}, {"save_every": 2}, {"eval_every": 2}, {"log_every": 1}])
def test_what_is_not_finite_stops_the_run_before_anything_of_it_is_saved_or_evaluated(looks):
    notes = Notes()
    plan = replace(PLAN, **{"log_every": 100, "save_every": 100, "eval_every": 0, **looks})
    with pytest.raises(UserError, match=r"stopped being finite between steps .* Lower optim\.rate"):
        train(Line(), spoilt_at_step_4(), plan, notes=notes)
    every = max(looks.values())
    assert [step for step, _ in notes.rows] == (list(range(every, 5, every)) if "log_every" in looks else [])
    assert notes.saved == ([2, 4] if "save_every" in looks else [])
    assert notes.evaluated == ([2, 4] if "eval_every" in looks else [])


def test_a_wish_to_stop_does_not_save_what_is_not_finite():
    notes = Notes(stop_after=5)
    with pytest.raises(UserError, match="stopped being finite"):
        train(Line(), spoilt_at_step_4(), replace(PLAN, log_every=100), notes=notes)
    assert notes.saved == []


def test_a_loss_that_was_not_finite_for_one_step_is_not_forgotten():
    class Blink(Line):
        def forward(self, batch: Numbers) -> LossParts:
            is_spoilt = bool(batch.values.isnan().any())
            parts = super().forward(Numbers(batch.values.nan_to_num()))
            return LossParts(parts.total + (math.inf if is_spoilt else 0.0), parts.parts)  # its gradient is finite

    notes = Notes()
    with pytest.raises(UserError, match="stopped being finite"):
        train(Blink(), spoilt_at_step_4(), replace(PLAN, log_every=7), notes=notes)
    assert notes.rows == []


def test_a_gradient_that_is_not_finite_counts_even_where_the_loss_is():
    class Cliff(Line):
        def forward(self, batch: Numbers) -> LossParts:
            total = (self.encoder(batch.values) * 0).abs().sqrt().mean()  # 0, with an infinite slope
            return LossParts(total, {})

    notes = Notes()
    with pytest.raises(UserError, match="its gradient stopped being finite"):
        train(Cliff(), numbers(0, 1), replace(PLAN, num_steps=1), notes=notes)
    assert notes.saved == []
    assert notes.rows == []


def test_the_running_average_follows_the_weights_after_each_step():
    objective, notes = Line(), Notes()
    average = AveragedModel(objective.encoder, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    seen: list[Tensor] = []
    objective.encoder.register_forward_pre_hook(lambda *unused: seen.append(objective.encoder.weight.detach().clone()))
    train(objective, numbers(0, 6), replace(PLAN, num_steps=6), notes=notes, average=average)
    after = [*seen[1:], objective.encoder.weight.detach()]
    expected = after[0]  # the first step's weights start it, not the random ones before
    for weights in after[1:]:
        expected = 0.9 * expected + 0.1 * weights
    torch.testing.assert_close(average.module.weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_dropout_draws_depend_on_the_step_alone_so_that_a_resumed_run_has_the_same():
    whole = Notes()
    objective = Line(dropout=0.5)
    states: dict[int, dict[str, Tensor]] = {}

    def save(step: int) -> None:
        states[step] = {name: value.clone() for name, value in objective.state_dict().items()}

    calls = replace(whole.calls(), save=save)
    sgd = torch.optim.SGD([{"params": list(objective.parameters()), "scale": 1.0}], lr=0.1)
    plan = replace(PLAN, save_every=4)
    run_steps(objective, sgd, numbers(0, 10), plan=plan, calls=calls, device=CPU, start_step=0, seed=3)
    late, resumed = Line(dropout=0.5), Notes()
    late.load_state_dict(states[4])
    torch.manual_seed(987)
    assert train(late, numbers(4, 10), plan, notes=resumed, start=4) == 10
    assert resumed.losses() == whole.losses()[4:]
    assert torch.equal(late.encoder.weight, objective.encoder.weight)


def test_dropout_draws_differ_between_steps_and_seeds():
    same = [Numbers(torch.linspace(0, 1, 192, dtype=torch.float64).view(64, 3))] * 3
    found = []
    for seed in (3, 4):
        notes, sgd = Notes(), torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "scale": 1.0}], lr=0.1)
        objective = Line(dropout=0.5)
        plan = replace(PLAN, num_steps=3)
        run_steps(objective, sgd, same, plan=plan, calls=notes.calls(), device=CPU, start_step=0, seed=seed)
        found += notes.losses()
    assert len(set(found)) == 6


def test_rows_saves_and_evaluations_come_when_the_plan_says_and_at_the_end():
    notes = Notes()
    plan = replace(PLAN, log_every=4, save_every=3, eval_every=7)
    assert train(Line(), numbers(0, 10), plan, notes=notes) == 10
    assert [step for step, _ in notes.rows] == [4, 8, 10]
    assert notes.saved == [3, 6, 9, 10]
    assert notes.evaluated == [7, 10]
    for step, row in notes.rows:
        assert set(row) == {"loss", "twice", "lr", "grad_norm", "seconds_per_step", "stall_share"}
        assert row["twice"] == pytest.approx(2 * row["loss"])
        assert row["lr"] == rate_at(step - 1, plan)
    never = Notes()
    train(Line(), numbers(0, 10), replace(plan, eval_every=0), notes=never)
    assert never.evaluated == []


def test_the_share_of_time_that_steps_waited_for_batches(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ssl_ft.loop.time", SimpleNamespace(monotonic=lambda: now[0]))

    def slow() -> Iterator[Numbers]:
        for step, batch in enumerate(numbers(0, 4)):
            now[0] += 3.0 if step < 2 else 0.0  # two batches are waited for, two are there
            yield batch

    class Second(Line):
        def forward(self, batch: Numbers) -> LossParts:
            now[0] += 1.0
            return super().forward(batch)

    notes = Notes()
    train(Second(), slow(), replace(PLAN, num_steps=4, log_every=2), notes=notes)
    assert [row["stall_share"] for _, row in notes.rows] == [0.75, 0.0]
    assert [row["seconds_per_step"] for _, row in notes.rows] == [4.0, 1.0]


def test_the_logged_loss_is_that_of_its_step_before_the_update():
    notes, objective = Notes(), Line()
    train(objective, numbers(0, 2), replace(PLAN, num_steps=2), notes=notes)
    first, second = (batch.values.mean(0) for batch in numbers(0, 2))
    weight = torch.ones(3, dtype=torch.float64)
    after = weight - rate_at(0, replace(PLAN, num_steps=2)) * first
    assert notes.losses() == pytest.approx([(weight @ first).item(), (after @ second).item()], rel=1e-12)


def test_a_wish_to_stop_saves_and_ends_after_the_step():
    notes = Notes(stop_after=3)
    assert train(Line(), numbers(0, 10), replace(PLAN, save_every=100), notes=notes) == 3
    assert notes.saved == [3]


def test_an_evaluation_can_end_the_run():
    notes = Notes(evaluation=lambda step: step == 6)
    assert train(Line(), numbers(0, 10), replace(PLAN, eval_every=2), notes=notes) == 6
    assert notes.evaluated == [2, 4, 6]
    assert notes.saved == [6]


def test_mixed_precision_computes_in_bf16_and_keeps_weights_in_float32():
    seen = []

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(3, 1)

        def forward(self, batch: Numbers) -> LossParts:
            out = self.encoder(batch.values.float())
            seen.append(out.dtype)
            return LossParts(out.float().mean(), {})

    objective = Half()
    train(objective, numbers(0, 1), replace(PLAN, num_steps=1, autocast=torch.bfloat16), notes=Notes())
    assert seen == [torch.bfloat16]
    assert objective.encoder.weight.dtype == torch.float32
