"""Log-sum-exp of each row's logits as Triton kernels, forward and backward, without ever storing the logits.

What the rows stand for, and the positive in the numerator, are in `nt_xent.py`; whether these kernels are used, in
`contrast_choice.py`. Imports Triton, so nothing imports this file before it is needed. Rows and columns are numbered
over all ranks: rank r's 2N embeddings come r-th, its first views before its second.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# Sides of a tile of logits by what is multiplied, and the most dimensions held at once. With these, Triton 3.9 compiles
# for sm_90 without spills; on sm_80 float32 spills 0.5 KB a thread in backward, with 4 warps as with 8.
_TILES = {torch.float32: (64, 32), torch.bfloat16: (64, 64)}
_MOST_DIMS = 128
# Two tiles ahead would fill the shared memory of an A100; without a word on fusion Triton warns.
_OPTIONS = {"num_stages": 2, "enable_fp_fusion": True}


@dataclass(frozen=True, eq=False)
class Side:
    """Embeddings on one side of the logits; the logit of x and y is (x · y) times the scales of both.

    Attributes:
        values_KD: [K, D], contiguous, float32 or bf16; products of either are summed in float32.
        scale_K: [K], float32, 1/(length · √τ) of each.
        start: number of the first over all ranks.
    """

    values_KD: Tensor
    scale_K: Tensor
    start: int


def side_of(values_KD: Tensor, *, temperature: float) -> Side:
    """The embeddings of all ranks as they came, not normalised: those in bf16 stay so, other types become float32."""
    values_KD = values_KD.detach().contiguous()
    raised = values_KD.float()
    scale_K = 1 / (raised.norm(dim=1).clamp_min(1e-12) * temperature**0.5)  # with the floor of F.normalize
    return Side(values_KD if values_KD.dtype == torch.bfloat16 else raised, scale_K, start=0)


def log_sums(rows_MD: Tensor, columns_KD: Tensor, *, every: Side, start: int, keeps_positive: bool) -> Tensor:
    """Log of the sum of exp(logit) of each row over all columns but itself (and its positive, unless that is kept).

    Args:
        rows_MD: [M, D], float32, this rank's, of length 1/√τ. They and the columns only take the gradient.
        columns_KD: [K, D], those of all ranks, M from each. On one rank they are the rows, and get no gradient.
        every: what the columns were made of.
        start: where in it this rank's rows are.
        keeps_positive: true for NT-Xent, false for DCL.

    Returns:
        [M], float32.
    """
    part = slice(start, start + len(rows_MD))
    own = Side(every.values_KD[part], every.scale_K[part], start)
    sums_M: Tensor = _LogSums.apply(rows_MD, columns_KD, own, every, keeps_positive)
    return sums_M


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, columns_KD: Tensor, own: Side, every: Side, keeps_positive: bool) -> Tensor:
        sums_M = torch.empty_like(own.scale_K)
        tiles = _tiles(own)
        with torch.cuda.device_of(sums_M):
            _sum_rows[triton.cdiv(len(sums_M), tiles["TILE_X"]),](
                sums_M,
                *(own.values_KD, own.scale_K, len(sums_M), own.start),
                *(every.values_KD, every.scale_K, len(every.scale_K), every.start),
                len(sums_M) // 2,
                KEEPS_POSITIVE=keeps_positive,
                **tiles,
                **_OPTIONS,
            )
        ctx.save_for_backward(sums_M)
        ctx.own, ctx.every, ctx.keeps_positive = own, every, keeps_positive
        return sums_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (sums_M,) = ctx.saved_tensors
        own, every, anchors = ctx.own, ctx.every, (sums_M, grad_M.contiguous())
        if len(every.scale_K) == len(own.scale_K):
            # Each row is an anchor and a column of all others; one walk serves both.
            return _gradient(own, own, anchors, anchors, ctx.keeps_positive), None, None, None, None
        grad_rows_MD = _gradient(own, every, anchors, None, ctx.keeps_positive)
        grad_columns_KD = _gradient(every, own, None, anchors, ctx.keeps_positive)
        return grad_rows_MD, grad_columns_KD, None, None, None


_Anchors = tuple[Tensor, Tensor] | None


def _gradient(x: Side, y: Side, x_anchors: _Anchors, y_anchors: _Anchors, keeps_positive: bool) -> Tensor:
    """Gradient to the embeddings of x; of a side whose rows are anchors, their log-sums and the weights of these."""
    grad_XD = torch.empty_like(x.values_KD, dtype=torch.float32)
    anchors = x_anchors or y_anchors
    assert anchors is not None, "logits belong to the rows of one side at least"
    tiles = _tiles(x)
    with torch.cuda.device_of(grad_XD):
        _pull[triton.cdiv(len(grad_XD), tiles["TILE_X"]), triton.cdiv(grad_XD.shape[1], tiles["TILE_D"])](
            grad_XD,
            *(x.values_KD, x.scale_K, len(x.scale_K), x.start, *(x_anchors or (x.scale_K, x.scale_K))),
            *(y.values_KD, y.scale_K, len(y.scale_K), y.start, *(y_anchors or (y.scale_K, y.scale_K))),
            len(anchors[0]) // 2,
            X_ANCHORS=x_anchors is not None,
            Y_ANCHORS=y_anchors is not None,
            KEEPS_POSITIVE=keeps_positive,
            **tiles,
            **_OPTIONS,
        )
    return grad_XD


def _tiles(x: Side) -> dict[str, int]:
    """What the kernels are compiled for; a tile's sides are powers of two, and 16 at least for matrix units."""
    num_dims = x.values_KD.shape[1]
    tile_x, tile_y = _TILES[x.values_KD.dtype]
    tile_d = min(max(triton.next_power_of_2(num_dims), 16), _MOST_DIMS)
    return {"DIMS": num_dims, "TILE_X": tile_x, "TILE_Y": tile_y, "TILE_D": tile_d}


# In the kernels: x is what a program holds and y what it walks through; numbers are those over all ranks.


@triton.jit  # type: ignore[untyped-decorator]
def _tile(
    values: tl.tensor, index: tl.tensor, num: tl.tensor, first_dim: tl.tensor, DIMS: tl.constexpr, TILE_D: tl.constexpr
) -> tl.tensor:
    """[len(index), TILE_D] of the embeddings, 0 past their ends."""
    dim = first_dim + tl.arange(0, TILE_D)
    place = index.to(tl.int64)[:, None] * DIMS + dim[None, :]
    return tl.load(values + place, mask=(index < num)[:, None] & (dim < DIMS)[None, :], other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _logits(
    x: tl.tensor,
    x_scale: tl.tensor,
    num_x: tl.tensor,
    i: tl.tensor,
    y: tl.tensor,
    y_scale: tl.tensor,
    num_y: tl.tensor,
    j: tl.tensor,
    DIMS: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_D: tl.constexpr,
) -> tl.tensor:
    """[TILE_X, TILE_Y]; three tf32 products make up a float32 one, and products of bf16 are exact."""
    product = tl.zeros((TILE_X, TILE_Y), tl.float32)
    for first_dim in range(0, DIMS, TILE_D):
        x_tile = _tile(x, i, num_x, first_dim, DIMS, TILE_D)
        y_tile = _tile(y, j, num_y, first_dim, DIMS, TILE_D)
        product = tl.dot(x_tile, tl.trans(y_tile), product, input_precision="tf32x3")
    scale_i = tl.load(x_scale + i, mask=i < num_x, other=0.0)
    scale_j = tl.load(y_scale + j, mask=j < num_y, other=0.0)
    return product * scale_i[:, None] * scale_j[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _is_summed(number_i: tl.tensor, number_j: tl.tensor, half: tl.tensor, KEEPS_POSITIVE: tl.constexpr) -> tl.tensor:
    """Whether the logit of i and j is in the sum: not with itself, in DCL not with its positive, N = half away."""
    is_summed = number_i[:, None] != number_j[None, :]
    if not KEEPS_POSITIVE:
        partner_i = tl.where(number_i % (2 * half) < half, number_i + half, number_i - half)
        is_summed = is_summed & (partner_i[:, None] != number_j[None, :])
    return is_summed


@triton.jit  # type: ignore[untyped-decorator]
def _sum_rows(
    out: tl.tensor,
    x: tl.tensor,
    x_scale: tl.tensor,
    num_x: tl.tensor,
    x_start: tl.tensor,
    y: tl.tensor,
    y_scale: tl.tensor,
    num_y: tl.tensor,
    y_start: tl.tensor,
    half: tl.tensor,
    KEEPS_POSITIVE: tl.constexpr,
    DIMS: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_D: tl.constexpr,
) -> None:
    """Log-sum-exp in one walk: the sum so far is scaled down whenever a larger logit comes up."""
    i = tl.program_id(0) * TILE_X + tl.arange(0, TILE_X)
    top = tl.full((TILE_X,), -1e30, tl.float32)  # finite, so that a tile without a summed logit makes no NaN
    total = tl.zeros((TILE_X,), tl.float32)
    for begin in range(0, num_y, TILE_Y):
        j = begin + tl.arange(0, TILE_Y)
        logits = _logits(x, x_scale, num_x, i, y, y_scale, num_y, j, DIMS, TILE_X, TILE_Y, TILE_D)
        is_summed = _is_summed(x_start + i, y_start + j, half, KEEPS_POSITIVE) & (j < num_y)[None, :]
        logits = tl.where(is_summed, logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, axis=1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]), axis=1)
        top = higher
    tl.store(out + i, top + tl.log(total), mask=i < num_x)


@triton.jit  # type: ignore[untyped-decorator]
def _pull(
    out: tl.tensor,
    x: tl.tensor,
    x_scale: tl.tensor,
    num_x: tl.tensor,
    x_start: tl.tensor,
    x_sums: tl.tensor,
    x_weights: tl.tensor,
    y: tl.tensor,
    y_scale: tl.tensor,
    num_y: tl.tensor,
    y_start: tl.tensor,
    y_sums: tl.tensor,
    y_weights: tl.tensor,
    half: tl.tensor,
    X_ANCHORS: tl.constexpr,
    Y_ANCHORS: tl.constexpr,
    KEEPS_POSITIVE: tl.constexpr,
    DIMS: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_D: tl.constexpr,
) -> None:
    """Gradient to x: the normalised y, each times what d loss/d logit is with x, exp(logit − log-sum) · weight."""
    i = tl.program_id(0) * TILE_X + tl.arange(0, TILE_X)
    first_dim = tl.program_id(1) * TILE_D
    grad = tl.zeros((TILE_X, TILE_D), tl.float32)
    for begin in range(0, num_y, TILE_Y):
        j = begin + tl.arange(0, TILE_Y)
        logits = _logits(x, x_scale, num_x, i, y, y_scale, num_y, j, DIMS, TILE_X, TILE_Y, TILE_D)
        share = tl.zeros((TILE_X, TILE_Y), tl.float32)
        if X_ANCHORS:
            sums_i = tl.load(x_sums + i, mask=i < num_x, other=0.0)
            share += tl.exp(logits - sums_i[:, None]) * tl.load(x_weights + i, mask=i < num_x, other=0.0)[:, None]
        if Y_ANCHORS:
            sums_j = tl.load(y_sums + j, mask=j < num_y, other=0.0)
            share += tl.exp(logits - sums_j[None, :]) * tl.load(y_weights + j, mask=j < num_y, other=0.0)[None, :]
        # What is outside the sum, past an end too, may have overflowed above; here it goes.
        is_summed = _is_summed(x_start + i, y_start + j, half, KEEPS_POSITIVE)
        share = tl.where(is_summed & (i < num_x)[:, None] & (j < num_y)[None, :], share, 0.0)
        share *= tl.load(y_scale + j, mask=j < num_y, other=0.0)[None, :]
        y_tile = _tile(y, j, num_y, first_dim, DIMS, TILE_D)
        if y_tile.dtype == tl.bfloat16:
            # Two bf16 numbers hold 16 bits of the share; one would hold 8.
            upper = share.to(tl.bfloat16)
            grad = tl.dot(upper, y_tile, grad)
            grad = tl.dot((share - upper.to(tl.float32)).to(tl.bfloat16), y_tile, grad)
        else:
            grad = tl.dot(share, y_tile, grad, input_precision="tf32x3")
    dim = first_dim + tl.arange(0, TILE_D)
    place = i.to(tl.int64)[:, None] * DIMS + dim[None, :]
    tl.store(out + place, grad, mask=(i < num_x)[:, None] & (dim < DIMS)[None, :])
