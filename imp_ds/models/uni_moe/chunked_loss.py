"""The loss of a language model over a large vocabulary, without the logits of all tokens in memory.

Logits of 8,192 tokens over 152,000 words are 5 GB in float32, and as much again for their gradient. Here they are computed of
some tokens at a time, and their gradient right behind them, while they are there: the products are those of a plain backward,
three for each chunk, and kept until the backward are the gradients of hidden states and weight alone, which a loss only scales.

Shapes: B samples, L tokens of one, N supervised tokens, C of them at a time, D width, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from imp_ds.errors import UserError

NO_LOSS = -100  # label of a token without one
CHUNK_LOGITS = 1 << 26  # at a time where nobody says otherwise: 256 MiB in float32


class TokenLoss(NamedTuple):
    """loss_sum: sum of the losses of supervised tokens, float32, with gradient. count: how many there are. right: how many of
    them were the likeliest. Both int64."""

    loss_sum: torch.Tensor
    count: torch.Tensor
    right: torch.Tensor


class LanguageHead(nn.Linear):
    """The linear layer before a vocabulary: hidden states to logits, or with labels to their loss.

    A module, so that ZeRO 3, which has its weight whole while it runs alone, has it for the loss too; the weight may be the
    embedding's.
    """

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor | None = None, chunk_tokens: int | None = None):
        """Logits [..., V]; with labels, int64 [B, L], of hidden states [B, L, D] the `TokenLoss`, as `chunked_cross_entropy`."""
        if labels is None:
            return super().forward(hidden)
        return chunked_cross_entropy(hidden, self.weight, labels, chunk_tokens)


def with_loss(language_model: nn.Module) -> None:
    """Make the head of a causal language model of transformers a `LanguageHead`, in place; its weight stays what it is, tied or
    not. Raises UserError for a head of another kind."""
    head = language_model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        got = type(head).__name__ + (" with a bias" if getattr(head, "bias", None) is not None else "")
        raise UserError("the head of the language model is of another kind", got=got, allowed="a linear layer without a bias")
    head.__class__ = LanguageHead


def chunked_cross_entropy(
    hidden_BLD: torch.Tensor, weight_VD: torch.Tensor, labels_BL: torch.Tensor, chunk_tokens: int | None = None
) -> TokenLoss:
    """Cross-entropy of each token's label under the hidden state before it, as of F.cross_entropy on shifted labels.

    labels_BL: not shifted; NO_LOSS where there is none. Logits are in the type of the hidden states (under autocast in
    autocast's), everything behind them in float32. chunk_tokens: C; None: so many that C * V is `CHUNK_LOGITS` at most.
    Differentiable once, in hidden states and weight. """
    hidden_ND, labels_N = hidden_BLD[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten()
    supervised = labels_N != NO_LOSS
    if not hidden_ND.is_meta:  # where costs are counted no label is known, and each token counts
        hidden_ND, labels_N = hidden_ND[supervised], labels_N[supervised]
    chunk = chunk_tokens or max(1, CHUNK_LOGITS // len(weight_VD))
    needed = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden_ND, weight_VD)]
    loss_sum, right = _ChunkedLoss.apply(hidden_ND, weight_VD, labels_N, chunk, *needed)
    return TokenLoss(loss_sum, supervised.sum(), right)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, labels_N, chunk: int, needs_hidden: bool, needs_weight: bool):
        device, dtype = "cpu" if hidden_ND.is_meta else hidden_ND.device.type, hidden_ND.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        loss_sum, right = hidden_ND.new_zeros((), dtype=torch.float32), labels_N.new_zeros(())
        with torch.autocast(device, enabled=False):
            used_VD = weight_VD.to(dtype)
            dhidden_ND = torch.empty_like(hidden_ND) if needs_hidden else None
            # of many chunks, each rounded once, would be added otherwise
            dweight_VD = torch.zeros(weight_VD.shape, dtype=torch.float32, device=weight_VD.device) if needs_weight else None
            for start in range(0, len(hidden_ND), chunk):
                part = slice(start, start + chunk)
                rows_CD, labels_C = hidden_ND[part].to(dtype), labels_N[part]
                logits_CV = F.linear(rows_CD, used_VD).float()
                right += (logits_CV.argmax(-1) == labels_C).sum()
                loss_sum += _loss_and_gradient(logits_CV, labels_C)
                dlogits_CV = logits_CV.to(dtype)
                if needs_hidden:
                    dhidden_ND[part] = dlogits_CV @ used_VD
                if needs_weight:
                    _add_product(dweight_VD, dlogits_CV, rows_CD)
        ctx.save_for_backward(dhidden_ND, None if dweight_VD is None else dweight_VD.to(weight_VD.dtype))
        ctx.mark_non_differentiable(right)
        return loss_sum, right

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss, _):
        of_hidden, of_weight = (None if saved is None else saved * dloss.to(saved.dtype) for saved in ctx.saved_tensors)
        return of_hidden, of_weight, None, None, None, None


def _loss_and_gradient(logits_CV: torch.Tensor, labels_C: torch.Tensor) -> torch.Tensor:
    """The sum of the losses; the logits become their gradient, softmax less one at the label."""
    normalizer_C1 = logits_CV.logsumexp(-1, keepdim=True)
    at_label_C1 = logits_CV.gather(-1, labels_C[:, None])
    loss = (normalizer_C1 - at_label_C1).sum()
    logits_CV.sub_(normalizer_C1).exp_()
    logits_CV.scatter_add_(-1, labels_C[:, None], torch.full_like(at_label_C1, -1.0))
    return loss


def _add_product(dweight_VD: torch.Tensor, dlogits_CV: torch.Tensor, rows_CD: torch.Tensor) -> None:
    if rows_CD.dtype == torch.float32 and not rows_CD.is_meta:  # what is added in place is not counted
        dweight_VD.addmm_(dlogits_CV.t(), rows_CD)
    else:
        dweight_VD += dlogits_CV.t() @ rows_CD
