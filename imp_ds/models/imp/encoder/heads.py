"""Queries, keys and values of the heads out of one linear layer's answer, queries and keys normed (QK-norm).

CUDA with Triton has one pass over memory for it in each direction (gpu_heads.py): what autograd makes of the plain form lays the
three gradients side by side by a copy of its own, and takes as long as the layer's largest matrix product.

Shapes: B batch, L tokens of an example, H heads, D width of a head.
"""

import torch
from torch import Tensor, nn

try:
    from imp_ds.models.imp.encoder import gpu_heads
except ImportError:  # Triton comes with the CUDA builds of torch alone
    gpu_heads = None


def split_heads(qkv_BLX: Tensor, heads: int, query_norm: nn.Module, key_norm: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """[B, L, 3 H D] -> queries, keys and values, [B, H, L, D] each. The norms: nn.LayerNorm(D, bias=False), or nn.Identity."""
    if gpu_heads is not None and qkv_BLX.is_cuda and not torch.compiler.is_exporting():
        weights = [getattr(norm, "weight", None) for norm in (query_norm, key_norm)]
        return gpu_heads.gpu_split_heads(qkv_BLX, heads, *weights, getattr(query_norm, "eps", 0.0))
    return split_heads_plainly(qkv_BLX, heads, query_norm, key_norm)


def split_heads_plainly(
    qkv_BLX: Tensor, heads: int, query_norm: nn.Module, key_norm: nn.Module
) -> tuple[Tensor, Tensor, Tensor]:
    """`split_heads` on any device, differentiated by autograd."""
    query, key, value = qkv_BLX.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return query_norm(query), key_norm(key), value
