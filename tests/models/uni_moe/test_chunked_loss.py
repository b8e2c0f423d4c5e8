"""The loss in chunks against the plain one, F.cross_entropy on shifted labels.

Shapes: B samples, L tokens of one, D width, V vocabulary.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.language_models import VOCAB, language_model
from imp_ds.errors import UserError
from imp_ds.models.uni_moe.chunked_loss import LanguageHead, chunked_cross_entropy, with_loss

LABELS = torch.tensor([[3, -100, 5, 0, 36, -100], [-100, -100, 7, 7, -100, 1]])


def problem(dtype=torch.float32, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in [(2, 6, width), (VOCAB, width)])


def plain(hidden_BLD, weight_VD, labels_BL=LABELS) -> torch.Tensor:
    logits = (hidden_BLD @ weight_VD.T).float()[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels_BL[:, 1:].flatten(), reduction="sum")


@pytest.mark.parametrize("chunk", [1, 2, 4, 100, None])
def test_value_and_gradients_equal_the_plain_loss(chunk):
    """Of 11 labels less the first ones 6 are left: chunks of 2, 2, 2, or 4 and 2. The loss is scaled behind it."""
    hidden_BLD, weight_VD = problem()
    found = chunked_cross_entropy(hidden_BLD, weight_VD, LABELS, chunk)
    expected = plain(hidden_BLD, weight_VD)
    assert found.count.item() == 6 and found.loss_sum.dtype == torch.float32
    logits = (hidden_BLD @ weight_VD.T)[:, :-1]
    assert found.right.item() == (logits.argmax(-1) == LABELS[:, 1:]).sum().item()
    torch.testing.assert_close(found.loss_sum, expected)
    given = [hidden_BLD, weight_VD]
    pairs = (torch.autograd.grad(loss / 6 * 0.7, given) for loss in (found.loss_sum, expected))
    for one, other in zip(*pairs):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_likeliest_words_are_counted():
    """Hidden states that are rows of an orthogonal vocabulary are likeliest themselves: 3 of 4 labels name them."""
    weight_VD = torch.eye(5)
    hidden_BLD = weight_VD[torch.tensor([[0, 1, 2, 3, 4]])]
    assert chunked_cross_entropy(hidden_BLD, weight_VD, torch.tensor([[-100, 0, 1, 4, 3]]), 3).right.item() == 3


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_the_rounded_float32(autocast):
    hidden_BLD, weight_VD = problem(torch.float32 if autocast else torch.bfloat16, width=32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = chunked_cross_entropy(hidden_BLD, weight_VD, LABELS, 2)
    exact = [tensor.detach().float().requires_grad_() for tensor in (hidden_BLD, weight_VD)]
    expected = plain(*exact)
    assert abs(found.loss_sum - expected) < 0.01 * expected
    gradients = torch.autograd.grad(found.loss_sum, [hidden_BLD, weight_VD])
    for one, other, given in zip(gradients, torch.autograd.grad(expected, exact), (hidden_BLD, weight_VD)):
        assert one.dtype == given.dtype and (one - other).norm() < 0.02 * other.norm()


def test_no_supervised_token_gives_zeros_that_go_backward():
    """A rank whose micro-batch has no label must end its backward with the others."""
    hidden_BLD, weight_VD = problem()
    found = chunked_cross_entropy(hidden_BLD, weight_VD, torch.full_like(LABELS, -100))
    found.loss_sum.backward()
    assert found.count.item() == 0 == found.loss_sum.item() and not hidden_BLD.grad.any() and not weight_VD.grad.any()


@pytest.mark.parametrize("hidden_frozen, weight_frozen", [(True, False), (False, True), (True, True)])
def test_frozen_parts_have_no_gradient(hidden_frozen, weight_frozen):
    hidden_BLD, weight_VD = problem()
    expected = torch.autograd.grad(plain(hidden_BLD, weight_VD), [hidden_BLD, weight_VD])
    hidden_BLD.requires_grad_(not hidden_frozen), weight_VD.requires_grad_(not weight_frozen)
    found = chunked_cross_entropy(hidden_BLD, weight_VD, LABELS, 4).loss_sum
    assert found.requires_grad == (not (hidden_frozen and weight_frozen))
    if found.requires_grad:
        found.backward()
        for given, gradient in zip((hidden_BLD, weight_VD), expected):
            assert given.grad is None or torch.allclose(given.grad, gradient, rtol=1e-5, atol=1e-6)
            assert (given.grad is None) == (not given.requires_grad)


class Largest(TorchDispatchMode):
    """The most elements of a tensor that is made while it is active."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_logits_of_all_tokens_are_never_made():
    """2,000 tokens over 1,000 words in chunks of 50: the largest tensor is a chunk's, 50,000, or the weight's, 1,000 x 16; plain
    logits are 2,000,000."""
    hidden_BLD, weight_VD = torch.randn(2, 1001, 16, requires_grad=True), torch.randn(1000, 16, requires_grad=True)
    labels_BL = torch.randint(0, 1000, (2, 1001))
    with Largest() as largest:
        chunked_cross_entropy(hidden_BLD, weight_VD, labels_BL, 50).loss_sum.backward()
    assert largest.elements == 50 * 1000
    with Largest() as largest:
        plain(hidden_BLD, weight_VD, labels_BL).backward()
    assert largest.elements == 2002 * 1000


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_models_head_gives_its_loss(tied):
    """Loss and gradients of all weights as transformers has them; a tied weight has that of both of its uses."""
    ids = torch.randint(0, VOCAB, (2, 6), generator=torch.Generator().manual_seed(1))
    theirs, ours = (language_model("llama", tie_word_embeddings=tied) for _ in range(2))
    with_loss(ours)
    assert type(ours.lm_head) is LanguageHead and ours.state_dict().keys() == theirs.state_dict().keys()
    assert (ours.lm_head.weight is ours.get_input_embeddings().weight) == tied
    theirs(input_ids=ids, labels=LABELS).loss.backward()
    found = ours.lm_head(ours.model(input_ids=ids).last_hidden_state, LABELS, 2)
    (found.loss_sum / found.count).backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_heads_of_other_kinds_are_refused():
    model = language_model("llama")
    model.lm_head = torch.nn.Linear(16, VOCAB, bias=True)
    with pytest.raises(UserError, match="(?s)another kind.*Linear with a bias"):
        with_loss(model)


def test_costs_are_counted_as_of_the_plain_loss():
    with torch.device("meta"):
        found = chunked_cross_entropy(torch.empty(2, 6, 8), torch.empty(VOCAB, 8), torch.empty(2, 6, dtype=torch.int64))
    assert found.loss_sum.shape == ()
