"""A rank's own gradients and the surrogate loss that hands them on: against plain backward passes, and by hand."""

import pytest
import torch

from imp_ds.train.engine.surrogate_loss import own_gradients, rescale_to_norm, surrogate_loss


def parameters() -> list[torch.Tensor]:
    return [torch.tensor(values, requires_grad=True) for values in ([1.0, 2.0], [3.0], [5.0, 6.0, 7.0])]


def test_own_gradients_are_the_sum_over_micro_batches_and_zero_for_what_is_idle():
    a, b, idle = parameters()
    alive = []

    def losses():
        for factor in (1.0, 10.0):
            alive.append(factor)
            yield factor * (a.square().sum() * b).sum()

    found = own_gradients(losses(), [a, b, idle])
    # d/da = 2 a b, d/db = a . a, eleven times
    assert [gradient.tolist() for gradient in found] == [[66.0, 132.0], [55.0], [0.0, 0.0, 0.0]]
    assert a.grad is None and b.grad is None


def test_a_gradient_of_a_surrogate_loss_arrives_as_it_is_and_in_the_order_of_all_ranks():
    """The last parameter's comes first, on a rank whose own loss knows it and on one whose does not."""
    orders = []
    for values in ([[1.0, 2.0], [3.0], [0.0, 0.0, 0.0]], [[0.0, 0.0], [0.0], [4.0, 5.0, 6.0]]):
        leaves, order, given = parameters(), [], [torch.tensor(value) for value in values]
        for number, leaf in enumerate(leaves):
            leaf.register_post_accumulate_grad_hook(lambda _, number=number: order.append(number))
        loss = surrogate_loss(leaves, given)
        assert loss.item() == 0.0 and given == []
        (loss * 2).backward()  # as an engine scales a loss
        assert [leaf.grad.tolist() for leaf in leaves] == [[2 * x for x in value] for value in values]
        orders.append(order)
    assert orders == [[2, 1, 0], [2, 1, 0]] or orders == [[0, 1, 2], [0, 1, 2]]


def test_the_norm_is_that_of_all_gradients_together():
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]  # of norm 5
    rescale_to_norm(gradients, 2.0)
    assert torch.cat(gradients).tolist() == pytest.approx([1.2, 0.0, 1.6])
    zeros = [torch.zeros(3)]
    rescale_to_norm(zeros, 2.0)
    assert zeros[0].tolist() == [0.0, 0.0, 0.0]
    bad = [torch.tensor([1.0, float("nan")])]
    rescale_to_norm(bad, 2.0)
    assert bad[0].isnan().any()  # and no step of that norm
