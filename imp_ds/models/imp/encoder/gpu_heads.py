"""Queries, keys and values of the heads on a GPU, normed and laid where the attention wants them, in one pass over memory.

Values stay where the linear layer put them. The gradient of all three goes where the linear layer's answer lay, in one pass too;
the mean and the deviation of a head are computed again for it, which costs nothing beside the reading. Nothing is added with
atomics: results are the same at every run. Both passes are operators of torch.library, so torch.compile keeps one graph around
them.

Shapes: B batch, L tokens of an example, H heads, D width of a head, P parts in which the gradient of a weight is added up; a row
is one head of one token.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from imp_ds.moe.kernels.triton_kernels import on_its_device

_ROWS = 32  # of a block
_PARTS = 1024


def gpu_split_heads(
    qkv_BLX: Tensor, heads: int, query_weight_D: Tensor | None, key_weight_D: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `imp_ds.models.imp.encoder.layers.split_heads`, with the weights of the two norms, or None for no norm."""
    return _SplitHeads.apply(qkv_BLX.contiguous(), heads, query_weight_D, key_weight_D, eps)


class _SplitHeads(torch.autograd.Function):
    """A function and no operator, whose results could not be views."""

    @staticmethod
    def forward(ctx, qkv_BLX, heads, query_weight_D, key_weight_D, eps):
        ctx.save_for_backward(qkv_BLX, query_weight_D, key_weight_D)
        ctx.eps = eps
        query_BLHD, key_BLHD, value_BLHD = qkv_BLX.unflatten(-1, (3, heads, -1)).unbind(2)
        if query_weight_D is not None:
            query_BLHD, key_BLHD = _norm(qkv_BLX, heads, query_weight_D, key_weight_D, eps)
        return query_BLHD.transpose(1, 2), key_BLHD.transpose(1, 2), value_BLHD.transpose(1, 2)

    @staticmethod
    def backward(ctx, dq_BHLD, dk_BHLD, dv_BHLD):
        dqkv_BLX, dquery_D, dkey_D = _join(dq_BHLD, dk_BHLD, dv_BHLD, *ctx.saved_tensors, ctx.eps)
        normed = ctx.saved_tensors[1] is not None
        return dqkv_BLX, None, dquery_D if normed else None, dkey_D if normed else None, None


@torch.library.custom_op("imp_ds::norm_heads", mutates_args=())
@on_its_device
def _norm(
    qkv_BLX: Tensor, heads: int, query_weight_D: Tensor, key_weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Queries and keys, normed: [B, L, H, D] each."""
    query_BLHD, key_BLHD = (_heads_like(qkv_BLX, heads) for _ in range(2))
    width = len(query_weight_D)
    rows = query_BLHD.numel() // width
    if rows:
        _norm_kernel[(triton.cdiv(rows, _ROWS),)](
            qkv_BLX, query_weight_D, key_weight_D, query_BLHD, key_BLHD, rows, eps,
            heads, width, triton.next_power_of_2(width), _ROWS,
        )  # fmt: skip
    return query_BLHD, key_BLHD


@torch.library.custom_op("imp_ds::join_head_gradients", mutates_args=())
@on_its_device
def _join(
    dq_BHLD: Tensor, dk_BHLD: Tensor, dv_BHLD: Tensor,
    qkv_BLX: Tensor, query_weight_D: Tensor | None, key_weight_D: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the linear layer's answer and of the two weights; empty for weights that are not there."""
    _, heads, length, width = dq_BHLD.shape
    grads = [grad if grad.stride(-1) == 1 else grad.contiguous() for grad in (dq_BHLD, dk_BHLD, dv_BHLD)]
    strides = [stride for grad in grads for stride in grad.stride()[:3]]
    rows, normed = dq_BHLD.numel() // width, query_weight_D is not None
    parts = min(_PARTS, triton.cdiv(rows, _ROWS))
    dqkv_BLX = torch.empty_like(qkv_BLX)
    part_P2D = torch.empty(parts, 2, width, dtype=torch.float32, device=qkv_BLX.device)
    if rows:
        _join_kernel[(parts,)](
            *grads, *strides, qkv_BLX, query_weight_D, key_weight_D, dqkv_BLX, part_P2D, rows, parts, length, eps,
            heads, width, triton.next_power_of_2(width), normed, _ROWS,
        )  # fmt: skip
    if not normed:
        return dqkv_BLX, qkv_BLX.new_empty(0), qkv_BLX.new_empty(0)
    dweight_2D = part_P2D.sum(0).to(query_weight_D.dtype)
    return dqkv_BLX, dweight_2D[0].clone(), dweight_2D[1].clone()


@_norm.register_fake
def _(qkv_BLX, heads, query_weight_D, key_weight_D, eps):
    return _heads_like(qkv_BLX, heads), _heads_like(qkv_BLX, heads)


@_join.register_fake
def _(dq_BHLD, dk_BHLD, dv_BHLD, qkv_BLX, query_weight_D, key_weight_D, eps):
    weights = [qkv_BLX.new_empty(0) if w is None else torch.empty_like(w) for w in (query_weight_D, key_weight_D)]
    return torch.empty_like(qkv_BLX), *weights


def _heads_like(qkv_BLX: Tensor, heads: int) -> Tensor:
    batch, length, width = qkv_BLX.shape
    return qkv_BLX.new_empty(batch, length, heads, width // (3 * heads))


@triton.jit
def _centred(x, inside, eps, WIDTH: tl.constexpr):
    """Each row less its mean, over its deviation; and 1 over the deviation."""
    x = tl.where(inside, x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)[:, None]
    return x * scale, scale


@triton.jit
def _norm_kernel(
    qkv, query_weight, key_weight, query, key, rows, eps,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    place = tl.arange(0, PADDED)[None, :]
    inside = (row < rows) & (place < WIDTH)
    source = row // HEADS * (3 * HEADS * WIDTH) + row % HEADS * WIDTH + place
    target = row * WIDTH + place
    q = tl.load(qkv + source, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(qkv + source + HEADS * WIDTH, mask=inside, other=0.0).to(tl.float32)
    q, q_scale = _centred(q, inside, eps, WIDTH)
    k, k_scale = _centred(k, inside, eps, WIDTH)
    q *= tl.load(query_weight + place, mask=place < WIDTH, other=0.0).to(tl.float32)
    k *= tl.load(key_weight + place, mask=place < WIDTH, other=0.0).to(tl.float32)
    tl.store(query + target, q, mask=inside)
    tl.store(key + target, k, mask=inside)


@triton.jit
def _join_kernel(
    dquery, dkey, dvalue,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    qkv, query_weight, key_weight, dqkv, part, rows, parts, length, eps,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, NORMED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, PADDED)[None, :]
    there = place < WIDTH
    dq_weight, dk_weight = tl.zeros([ROWS, PADDED], dtype=tl.float32), tl.zeros([ROWS, PADDED], dtype=tl.float32)
    if NORMED:
        q_weight = tl.load(query_weight + place, mask=there, other=0.0).to(tl.float32)
        k_weight = tl.load(key_weight + place, mask=there, other=0.0).to(tl.float32)
    for block in range(number, tl.cdiv(rows, ROWS), parts):
        row = (block * ROWS + tl.arange(0, ROWS))[:, None]
        inside = (row < rows) & there
        token, head = row // HEADS, row % HEADS
        sample, token_of_sample = token // length, token % length
        target = token * (3 * HEADS * WIDTH) + head * WIDTH + place
        dq = tl.load(dquery + sample * q_batch + token_of_sample * q_token + head * q_head + place, mask=inside, other=0.0)
        dk = tl.load(dkey + sample * k_batch + token_of_sample * k_token + head * k_head + place, mask=inside, other=0.0)
        dv = tl.load(dvalue + sample * v_batch + token_of_sample * v_token + head * v_head + place, mask=inside, other=0.0)
        if NORMED:
            q = tl.load(qkv + target, mask=inside, other=0.0).to(tl.float32)
            k = tl.load(qkv + target + HEADS * WIDTH, mask=inside, other=0.0).to(tl.float32)
            q, q_scale = _centred(q, inside, eps, WIDTH)
            k, k_scale = _centred(k, inside, eps, WIDTH)
            dq, dk = dq.to(tl.float32), dk.to(tl.float32)
            dq_weight += dq * q
            dk_weight += dk * k
            dq *= q_weight
            dk *= k_weight
            dq = (dq - (tl.sum(dq, 1) / WIDTH)[:, None] - q * (tl.sum(dq * q, 1) / WIDTH)[:, None]) * q_scale
            dk = (dk - (tl.sum(dk, 1) / WIDTH)[:, None] - k * (tl.sum(dk * k, 1) / WIDTH)[:, None]) * k_scale
        tl.store(dqkv + target, dq, mask=inside)
        tl.store(dqkv + target + HEADS * WIDTH, dk, mask=inside)
        tl.store(dqkv + target + 2 * HEADS * WIDTH, dv, mask=inside)
    if NORMED:
        column = tl.arange(0, PADDED)
        tl.store(part + number * 2 * WIDTH + column, tl.sum(dq_weight, 0), mask=column < WIDTH)
        tl.store(part + (number * 2 + 1) * WIDTH + column, tl.sum(dk_weight, 0), mask=column < WIDTH)
