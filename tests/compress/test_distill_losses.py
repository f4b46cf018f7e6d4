"""Losses of a student: slow references with gradients, limits, closed forms, no gradient to the teacher."""

from functools import partial

import pytest
import torch

from ssl_ft.compress.distill_losses import cosine_loss, hard_target_loss, soft_target_loss, squared_loss
from tests.references.distillation import (
    cosine_by_loops,
    hard_targets_by_loops,
    soft_targets_by_loops,
    squared_by_loops,
)

LOSSES = {
    "soft, 1": (partial(soft_target_loss, temperature=1.0), partial(soft_targets_by_loops, temperature=1.0)),
    "soft, 4": (partial(soft_target_loss, temperature=4.0), partial(soft_targets_by_loops, temperature=4.0)),
    "soft, 0.5": (partial(soft_target_loss, temperature=0.5), partial(soft_targets_by_loops, temperature=0.5)),
    "hard": (hard_target_loss, hard_targets_by_loops),
    "cosine": (cosine_loss, cosine_by_loops),
    "squared": (squared_loss, squared_by_loops),
}


def pair(rows: int, columns: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher.requires_grad_()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 5), (7, 1), (4, 11)])
def test_value_and_gradient_are_those_of_the_slow_reference(name, shape):
    loss, reference = LOSSES[name]
    student, teacher = pair(*shape)
    value, wanted = loss(student, teacher), reference(student, teacher.detach())
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    (gradient,) = torch.autograd.grad(value, student)
    (exact,) = torch.autograd.grad(wanted, student)
    torch.testing.assert_close(gradient, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_reaches_the_teacher(name):
    student, teacher = pair(3, 5)
    LOSSES[name][0](student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("name", ["soft, 1", "soft, 4", "cosine", "squared"])
def test_a_student_that_says_what_its_teacher_says_loses_nothing(name):
    student, teacher = pair(4, 5)
    same = teacher.detach().clone().requires_grad_()
    loss = LOSSES[name][0](same, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(same.grad, torch.zeros_like(student), rtol=0, atol=1e-12)


def test_a_high_temperature_matches_logits_about_their_means():
    student, teacher = pair(6, 5)
    loss = soft_target_loss(student, teacher, temperature=1e4)
    gap = student - student.mean(1, keepdim=True) - (teacher - teacher.mean(1, keepdim=True)).detach()
    matching = gap.square().sum(1).mean() / (2 * 5)
    torch.testing.assert_close(loss, matching, rtol=1e-3, atol=0)
    (gradient,), (wanted,) = torch.autograd.grad(loss, student), torch.autograd.grad(matching, student)
    torch.testing.assert_close(gradient, wanted, rtol=1e-2, atol=1e-5)


def test_a_low_temperature_asks_for_the_likeliest_class():
    # τ² takes the loss to zero with it; over τ what is left is the margin by which the student prefers another class.
    student = torch.tensor([[3.0, 1.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64)
    assert soft_target_loss(student, teacher, temperature=1e-3).item() / 1e-3 == pytest.approx(2.0, rel=1e-6)


def test_shifts_of_all_logits_change_nothing_and_huge_ones_stay_finite():
    student, teacher = pair(4, 3)
    loss = soft_target_loss(student, teacher, temperature=2.0)
    torch.testing.assert_close(soft_target_loss(student + 500, teacher - 300, temperature=2.0), loss)
    assert soft_target_loss(1e4 * student.float(), 1e4 * teacher.float(), temperature=1.0).isfinite()


def test_of_equally_likely_classes_the_first_is_the_hard_target():
    student = torch.tensor([[1.0, 2.0, 3.0]])
    loss = hard_target_loss(student, torch.tensor([[0.0, 7.0, 7.0]]))
    torch.testing.assert_close(loss, -student.log_softmax(1)[0, 1])


def test_closed_forms_of_the_distances_of_features():
    features, teacher = (x.detach() for x in pair(4, 5))
    torch.testing.assert_close(cosine_loss(3 * features, 0.1 * teacher), cosine_loss(features, teacher))
    assert cosine_loss(-teacher, teacher).item() == pytest.approx(2)
    assert squared_loss(torch.zeros_like(teacher), teacher).item() == pytest.approx(1)
    assert squared_loss(2 * teacher, teacher).item() == pytest.approx(1)
    zero = torch.zeros(2, 3, requires_grad=True)
    for loss in (cosine_loss(zero, teacher[:2, :3].float()), squared_loss(zero, torch.zeros(2, 3))):
        loss.backward()
        assert loss.isfinite()
        assert zero.grad.isfinite().all()
