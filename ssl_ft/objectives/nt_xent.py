"""The two contrastive losses, as pure functions of embeddings: NT-Xent (SimCLR) and DCL. Memory is linear in N.

No projector, no encoder, no views here; the kernel of a GPU is in `contrast_kernel.py`. Shape suffixes: M local rows,
K all rows, D embedding size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_ft import dist
from ssl_ft.objectives.contrast_choice import Case, Work, takes_kernel

# Rows handled at once: 1024 x 8192 float32 logits are 32 MiB, past which a larger block gains no speed.
_BLOCK_ROWS = 1024
# exp(−80) is still a normal float32 number: past that span of logits rows need their own maxima.
_WIDEST_SPAN = 80


def nt_xent(first_ND: Tensor, second_ND: Tensor, *, temperature: float, fused: bool | None = None) -> Tensor:
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, "SimCLR", eq. 1 and algorithm 1).

    Mean over all 2N rows, N counted over all ranks, of −log of the positive's softmax share among the 2N−1 others.
    The official code adds the means of the two directions instead, which is twice this value.
    On W ranks each returns the mean over its own rows; the mean over ranks is the loss of the joined batch.

    Args:
        first_ND: [N, D] embeddings of one view, not normalised; bf16 and float16 are raised to float32.
        second_ND: [N, D] embeddings of the other view, row i from the same image.
        temperature: τ > 0.
        fused: by the Triton kernel, which knows no float64; none: where that is faster on this GPU.

    Returns:
        Scalar, float32 or float64.
    """
    return _contrast(first_ND, second_ND, temperature=temperature, keeps_positive=True, fused=fused)


def dcl(first_ND: Tensor, second_ND: Tensor, *, temperature: float, fused: bool | None = None) -> Tensor:
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6): NT-Xent without the positive in the denominator.

    This is −J of J = F(t₁x)ᵀF(t₂x) − log Σ exp(F(t₁x)ᵀF(x⁻)), averaged over all 2N rows, with F of unit length
    and products divided by τ. Arguments and reduction as in `nt_xent`; it can be negative.

    Raises:
        ValueError: with one image over all ranks there are no negatives.
    """
    if first_ND.shape[0] * dist.world_size() < 2:
        raise ValueError("dcl needs at least 2 images in the batch: with 1 there are no negatives")
    return _contrast(first_ND, second_ND, temperature=temperature, keeps_positive=False, fused=fused)


def _contrast(
    first_ND: Tensor, second_ND: Tensor, *, temperature: float, keeps_positive: bool, fused: bool | None
) -> Tensor:
    assert first_ND.shape == second_ND.shape, f"views differ: {first_ND.shape} and {second_ND.shape}"
    assert temperature > 0, f"temperature {temperature} must be positive"
    assert not (fused and first_ND.dtype == torch.float64), "the kernel sums in float32"
    with torch.autocast(first_ND.device.type, enabled=False):
        views_MD = torch.cat([first_ND, second_ND])
        terms = _Terms(temperature, keeps_positive, start=dist.rank() * len(views_MD))
        rows_MD = _scaled(views_MD, temperature)
        columns_KD = dist.gather_with_gradient(rows_MD).flatten(0, 1)
        if _is_fused(views_MD, terms) if fused is None else fused:
            every_KD = dist.gather_with_gradient(views_MD.detach()).flatten(0, 1)
            return _by_kernel(rows_MD, columns_KD, every_KD, terms).mean()
        return _by_torch(rows_MD, columns_KD, terms).mean()


@dataclass(frozen=True)
class _Terms:
    """Temperature, whether the positive is in the denominator, and the number of this rank's first row over all."""

    temperature: float
    keeps_positive: bool
    start: int


def _scaled(views_MD: Tensor, temperature: float) -> Tensor:
    """Of length 1/√τ: τ is split over both factors, so that one product gives the logits."""
    raised = views_MD if views_MD.dtype == torch.float64 else views_MD.float()
    scaled: Tensor = F.normalize(raised, dim=1) / temperature**0.5
    return scaled


def _by_torch(rows_MD: Tensor, columns_KD: Tensor, terms: _Terms) -> Tensor:
    """[M] loss of each row, on one rank or several."""
    num_rows = len(rows_MD)
    if len(columns_KD) == num_rows and 2 / terms.temperature < _WIDEST_SPAN:
        mirrored_M: Tensor = _MirroredRows.apply(rows_MD, 1 / terms.temperature, terms.keeps_positive)
        return mirrored_M
    own_M = torch.arange(num_rows, device=rows_MD.device) + terms.start
    loss_M: Tensor = _BlockedRows.apply(rows_MD, columns_KD, own_M, _partners(own_M), terms.keeps_positive)
    return loss_M


def _by_kernel(rows_MD: Tensor, columns_KD: Tensor, every_KD: Tensor, terms: _Terms) -> Tensor:
    """The same. `every_KD` are the embeddings of all ranks as they came: products of those in bf16 are exact."""
    from ssl_ft.objectives.contrast_kernel import log_sums, side_of  # here, as Triton is not on every machine

    every = side_of(every_KD, temperature=terms.temperature)
    log_sum_M: Tensor = log_sums(
        rows_MD, columns_KD, every=every, start=terms.start, keeps_positive=terms.keeps_positive
    )
    return log_sum_M - (rows_MD * _partners(rows_MD)).sum(1)


def _is_fused(views_MD: Tensor, terms: _Terms) -> bool:
    """Whether the kernel is the faster way on this device; every rank must ask."""
    num_columns = len(views_MD) * dist.world_size()
    case = Case(len(views_MD), num_columns, views_MD.shape[1], views_MD.dtype, views_MD.device)
    return case.is_eligible and takes_kernel(case, partial(_both_ways, case, terms))


def _both_ways(case: Case, terms: _Terms) -> tuple[Work, Work]:
    """Loss and gradient by torch and by the kernel, on noise of the case's sizes and on this rank alone."""
    generator = torch.Generator(case.device).manual_seed(0)
    every_KD = torch.randn(case.num_columns, case.num_dims, generator=generator, device=case.device).to(case.dtype)
    columns_KD = _scaled(every_KD, terms.temperature).requires_grad_()

    def attempt(by_kernel: bool) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            rows_MD = columns_KD[terms.start : terms.start + case.num_rows]
            args = (rows_MD, columns_KD)
            loss = (_by_kernel(*args, every_KD, terms) if by_kernel else _by_torch(*args, terms)).mean()
            return loss.detach(), torch.autograd.grad(loss, columns_KD)[0]

    return partial(attempt, False), partial(attempt, True)


class _MirroredRows(torch.autograd.Function):
    """Loss of each row against all others on one process, where the logits are a symmetric matrix.

    Only blocks on and above the diagonal are computed, and each serves its rows and its columns. No logit exceeds 1/τ,
    so that bound stands in for the rows' maxima and one exp an entry is all a pass needs. Blocks live for a moment
    and are computed again in backward.
    """

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, bound: float, keeps_positive: bool) -> Tensor:
        sum_M = rows_MD.new_zeros(len(rows_MD))
        for top, left, share in _mirrored_blocks(rows_MD, bound, keeps_positive):
            sum_M[top] += share.sum(1)
            if left.start > top.start:
                sum_M[left] += share.sum(0)
        ctx.save_for_backward(rows_MD, sum_M)
        ctx.bound, ctx.keeps_positive = bound, keeps_positive
        return sum_M.log() + bound - (rows_MD * _partners(rows_MD)).sum(1)

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, None, None]:
        rows_MD, sum_M = ctx.saved_tensors
        # The logit of i and j is in the loss of both: its share of each row's sum comes with that row's weight.
        weight_M = grad_M / sum_M
        grad_MD = (grad_M + _partners(grad_M)).unsqueeze(1) * -_partners(rows_MD)
        for top, left, share in _mirrored_blocks(rows_MD, ctx.bound, ctx.keeps_positive):
            share *= weight_M[top, None] + weight_M[None, left]
            grad_MD[top].addmm_(share, rows_MD[left])
            if left.start > top.start:
                grad_MD[left].addmm_(share.T, rows_MD[top])
        return grad_MD, None, None


def _mirrored_blocks(rows_MD: Tensor, bound: float, keeps_positive: bool) -> Iterator[tuple[slice, slice, Tensor]]:
    """exp(logit − bound) of the blocks on and above the diagonal, 0 where a row meets itself (for DCL its positive)."""
    num_rows = len(rows_MD)
    offset = rows_MD.new_full((1, 1), -bound)
    for start in range(0, num_rows, _BLOCK_ROWS):
        top = slice(start, min(start + _BLOCK_ROWS, num_rows))
        for begin in range(start, num_rows, _BLOCK_ROWS):
            left = slice(begin, min(begin + _BLOCK_ROWS, num_rows))
            share = torch.addmm(offset, rows_MD[top], rows_MD[left].T).exp_()
            _clear_diagonal(share, begin - start, at=0)
            if not keeps_positive:
                _clear_diagonal(share, begin - start, at=num_rows // 2)
                _clear_diagonal(share, begin - start, at=-(num_rows // 2))
            yield top, left, share


def _clear_diagonal(share: Tensor, shift: int, *, at: int) -> None:
    """Zero the entries whose column is `at` places after their row, in a block whose columns start `shift` later."""
    if -share.shape[0] < at - shift < share.shape[1]:
        share.diagonal(at - shift).zero_()


def _partners(values: Tensor) -> Tensor:
    """The values of each row's positive: the two halves change places."""
    return values.roll(len(values) // 2, 0)


class _BlockedRows(torch.autograd.Function):
    """Loss of this rank's rows against all ranks' columns.

    Logits live for one block of rows and are computed again in backward.
    """

    @staticmethod
    def forward(
        ctx: Any, rows_MD: Tensor, columns_KD: Tensor, own_M: Tensor, positive_M: Tensor, keeps_positive: bool
    ) -> Tensor:
        log_sums = []
        for block in torch.arange(len(rows_MD), device=rows_MD.device).split(_BLOCK_ROWS):
            logits = rows_MD[block] @ columns_KD.T
            logits.scatter_(1, own_M[block, None], -torch.inf)
            if not keeps_positive:
                logits.scatter_(1, positive_M[block, None], -torch.inf)
            log_sums.append(logits.logsumexp(1))
        log_sum_M = torch.cat(log_sums)
        ctx.save_for_backward(rows_MD, columns_KD, own_M, positive_M, log_sum_M)
        ctx.keeps_positive = keeps_positive
        return log_sum_M - (rows_MD * columns_KD[positive_M]).sum(1)

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        rows_MD, columns_KD, own_M, positive_M, log_sum_M = ctx.saved_tensors
        grad_rows_MD, grad_columns_KD = torch.empty_like(rows_MD), torch.zeros_like(columns_KD)
        for block in torch.arange(len(rows_MD), device=rows_MD.device).split(_BLOCK_ROWS):
            share = (rows_MD[block] @ columns_KD.T - log_sum_M[block, None]).exp_()
            share.scatter_(1, own_M[block, None], 0.0)
            if not ctx.keeps_positive:
                share.scatter_(1, positive_M[block, None], 0.0)
            minus_one = -torch.ones_like(block, dtype=share.dtype)[:, None]
            share.scatter_add_(1, positive_M[block, None], minus_one)
            share *= grad_M[block, None]
            grad_rows_MD[block] = share @ columns_KD
            grad_columns_KD.addmm_(share.T, rows_MD[block])
        return grad_rows_MD, grad_columns_KD, None, None, None
