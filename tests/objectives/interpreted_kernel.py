"""The kernels of the contrastive loss in Triton's interpreter, on the CPU: values and gradients against the papers.

Not collected by itself: `test_contrast_kernel.py` runs it in a process of its own with TRITON_INTERPRET=1, which
Triton reads when it is imported. The interpreter follows each step, mask and type of a kernel, not a GPU's speed.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime import interpreter

from ssl_ft import dist
from ssl_ft.objectives import contrast_choice
from ssl_ft.objectives import contrast_kernel as kernel
from ssl_ft.objectives import nt_xent as module
from ssl_ft.objectives.contrast_choice import Case
from ssl_ft.objectives.nt_xent import dcl, nt_xent
from tests.ranks import run_on_ranks
from tests.references.losses import dcl_by_loops, nt_xent_by_loops

PAIRS = {"nt_xent": (nt_xent, nt_xent_by_loops), "dcl": (dcl, dcl_by_loops)}
# Tiles of 64 x 32 (float32) or 64 x 64 (bf16): rows below, at and past their edges; dimensions too.
QUICK = [(2, 1), (3, 5), (17, 16)]
SLOW = [(2, 128), (16, 16), (32, 8), (33, 40), (40, 300)]
SIZES = [*QUICK, *(pytest.param(*size, marks=pytest.mark.slow) for size in SLOW)]


@pytest.fixture(autouse=True)
def bf16_is_multiplied_as_numbers(monkeypatch):
    """The interpreter keeps bf16 as 16-bit integers and multiplies these; its own sum of products, on floats."""
    dot, bf16, float32 = interpreter.InterpreterBuilder.create_dot, kernel.tl.bfloat16, kernel.tl.float32

    def create_dot(builder, a, b, *rest):
        return dot(builder, *(builder.cast_impl(x, float32) if x.dtype.scalar == bf16 else x for x in (a, b)), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def embeddings(seed: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Numbers that bf16 holds, so that no loss comes from rounding the input."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, size, generator=generator).bfloat16() for _ in range(2))
    return first, second


def with_gradients(loss, first, second, *args, **named):
    leaves = [x.detach().clone().requires_grad_() for x in (first, second)]
    value = loss(*leaves, *args, **named)
    return value.detach().double(), [g.double() for g in torch.autograd.grad(value, leaves)]


def close(ours, exact, *, rtol, of_largest):
    (value, gradients), (exact_value, exact_gradients) = ours, exact
    torch.testing.assert_close(value, exact_value, rtol=rtol, atol=rtol)
    # With D = 1 the gradient is 0, what is left of terms of the size of 1.
    largest = max(0.1, *(g.abs().max().item() for g in exact_gradients))
    torch.testing.assert_close(gradients, exact_gradients, rtol=rtol, atol=of_largest * largest)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("count", "size"), SIZES)
@pytest.mark.parametrize("temperature", [0.05, *(pytest.param(tau, marks=pytest.mark.slow) for tau in (0.3, 1.0))])
def test_float32_equals_the_paper(name, count, size, temperature):
    loss, reference = PAIRS[name]
    first, second = embeddings(count, count, size)
    ours = with_gradients(loss, first.float(), second.float(), temperature=temperature, fused=True)
    close(ours, with_gradients(reference, first.double(), second.double(), temperature), rtol=2e-5, of_largest=2e-5)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("count", "size"), SIZES)
def test_bf16_loses_nothing_but_the_last_rounding_of_its_gradient(name, count, size):
    loss, reference = PAIRS[name]
    first, second = embeddings(count, count, size)
    ours = with_gradients(loss, first, second, temperature=0.1, fused=True)
    exact = with_gradients(reference, first.double(), second.double(), 0.1)
    close(ours, exact, rtol=2**-8, of_largest=1e-4)
    torch.testing.assert_close(ours[0], exact[0], rtol=1e-5, atol=1e-5)


def test_one_image():
    first, second = embeddings(0, 1, 4)
    assert nt_xent(first.float(), second.float(), temperature=0.5, fused=True).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("keeps_positive", [True, False])
@pytest.mark.parametrize("num_ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("count", [2, pytest.param(35, marks=pytest.mark.slow)])
def test_rows_of_one_rank_against_columns_of_all(keeps_positive, num_ranks, count):
    """Each rank's rows start at another column; gradients of columns come from all ranks' rows."""
    first, second = (x.double().requires_grad_() for x in embeddings(1, num_ranks * count, 6))
    exact = (nt_xent_by_loops if keeps_positive else dcl_by_loops)(first, second, 0.2)
    every_KD = torch.cat([x[r * count : (r + 1) * count] for r in range(num_ranks) for x in (first, second)]).float()
    columns_KD = F.normalize(every_KD, dim=1) / 0.2**0.5
    losses = []
    for rank in range(num_ranks):
        start = rank * 2 * count
        rows_MD = columns_KD[start : start + 2 * count]
        every = kernel.side_of(every_KD, temperature=0.2)
        sums_M = kernel.log_sums(rows_MD, columns_KD, every=every, start=start, keeps_positive=keeps_positive)
        losses.append((sums_M - (rows_MD * rows_MD.roll(count, 0)).sum(1)).mean())
    ours = torch.stack(losses).mean()
    grads, exact_grads = torch.autograd.grad(ours, (first, second)), torch.autograd.grad(exact, (first, second))
    close((ours.detach().double(), list(grads)), (exact.detach(), list(exact_grads)), rtol=2e-5, of_largest=2e-5)


@pytest.mark.parametrize("keeps_positive", [True, False])
def test_rows_weigh_as_their_gradient_says(keeps_positive):
    """Unequal weights, which a mean never shows, against torch's own log-sum-exp."""
    first, second = embeddings(2, 5, 4)
    every_KD, weights_M = torch.cat([first, second]).float(), torch.arange(1.0, 11.0)
    rows_MD = (F.normalize(every_KD, dim=1) / 0.3**0.5).requires_grad_()
    every = kernel.side_of(every_KD, temperature=0.3)
    sums_M = kernel.log_sums(rows_MD, rows_MD, every=every, start=0, keeps_positive=keeps_positive)
    hidden = torch.eye(10, dtype=torch.bool)
    hidden = hidden if keeps_positive else hidden | hidden.roll(5, 0)
    plain_M = (rows_MD @ rows_MD.T).masked_fill(hidden, -torch.inf).logsumexp(1)
    ours, exact = (torch.autograd.grad((weights_M * x).sum(), rows_MD)[0] for x in (sums_M, plain_M))
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_the_trial_that_chooses_finds_no_difference(num_ranks, dtype):
    case = Case(6, 6 * num_ranks, 4, dtype, torch.device("cpu"))
    terms = module._Terms(0.2, keeps_positive=True, start=6 * (num_ranks - 1))
    plain, fused = module._both_ways(case, terms)
    assert contrast_choice._difference(plain(), fused()) == ""
    torch.testing.assert_close(fused(), plain(), rtol=1e-4, atol=1e-4)


def loss_and_gradients_here(count):
    num = count // dist.world_size()
    part = slice(dist.rank() * num, (dist.rank() + 1) * num)
    ours = with_gradients(nt_xent, *(x.float()[part] for x in embeddings(3, count, 6)), temperature=0.2, fused=True)
    return ours[0].item(), [g.numpy() for g in ours[1]]


@pytest.mark.dist
@pytest.mark.slow
def test_two_ranks_are_one():
    parts = run_on_ranks(loss_and_gradients_here, 6, num_ranks=2)
    value = torch.tensor(sum(part[0] for part in parts) / 2, dtype=torch.float64)
    # Averaged over ranks, as training does.
    gradients = [torch.cat([torch.from_numpy(part[1][view]) for part in parts]) / 2 for view in range(2)]
    exact = with_gradients(nt_xent_by_loops, *(x.double() for x in embeddings(3, 6, 6)), 0.2)
    close((value, gradients), exact, rtol=2e-5, of_largest=2e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("loss", "first", "sign"), [(nt_xent, [[1.0, 0.0]], -1), (dcl, [[1.0, 0.0], [-1.0, 0.0]], 1)])
def test_logits_outside_the_sum_may_overflow(dtype, loss, first, sign):
    """All that is summed is opposite to its row, so exp(logit − log-sum) of the row with itself is exp(200)."""
    first = torch.tensor(first, dtype=dtype)
    value, gradients = with_gradients(loss, first, sign * first, temperature=0.01, fused=True)
    exact, _ = with_gradients(loss, first.double(), sign * first.double(), temperature=0.01)
    torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-5)
    assert all(torch.isfinite(g).all() for g in gradients)
