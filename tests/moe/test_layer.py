"""The layer against a loop in float64, and what one example may know of another.

Shapes: B batch, L tokens of an example, D width, E experts.
"""

import pytest
import torch

from imp_ds.errors import UserError
from imp_ds.moe.grouping import examples_per_group
from imp_ds.moe.layer import MoELayer

WIDTH, HIDDEN, EXPERTS = 6, 10, 4


def make_layer(**options) -> MoELayer:
    torch.manual_seed(0)
    layer = MoELayer(WIDTH, HIDDEN, EXPERTS, **options)
    for parameter in layer.parameters():
        parameter.data.normal_(std=0.5)
    layer.router.weight.data.mul_(3)
    return layer


def naive(weights: dict, x_BLD, valid_BL, group: int, factor: float, activation: str):
    """Token by token, expert by expert, in the type of the inputs: output [B, L, D] and z-loss."""
    batch, length, width = x_BLD.shape
    outputs, z_losses = [], []
    for start in range(0, batch, group):
        x_SD = x_BLD[start : start + group].reshape(-1, width)
        valid_S = valid_BL[start : start + group].reshape(-1).tolist()
        logits_SE = x_SD @ weights["router"].T
        scores_SE = logits_SE.exp() / logits_SE.exp().sum(1, keepdim=True)
        z_losses.append(sum(row.exp().sum().log() ** 2 for row, ok in zip(logits_SE, valid_S) if ok) / max(1, sum(valid_S)))
        out = [torch.zeros(width, dtype=x_SD.dtype) for _ in x_SD]
        slots = max(1, int(factor * len(x_SD) / EXPERTS + 0.5))
        for e in range(EXPERTS):
            ranked = sorted((t for t in range(len(x_SD)) if valid_S[t]), key=lambda t: -scores_SE[t, e].item())
            for t in ranked[:slots]:
                hidden = x_SD[t] @ weights["w1"][e]
                inner = (2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)
                hidden = hidden * (torch.sigmoid(hidden) if activation == "swiglu" else 0.5 * (1 + torch.tanh(inner)))
                if activation != "gelu":
                    hidden = hidden * (x_SD[t] @ weights["w3"][e])
                out[t] = out[t] + scores_SE[t, e] * (hidden @ weights["w2"][e])
        outputs.append(torch.stack(out).view(-1, length, width))
    return torch.cat(outputs), sum(z_losses) / len(z_losses)


def some_tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("activation", ["gelu", "geglu", "swiglu"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("padded", [False, True])
def test_output_and_gradients_equal_a_loop_in_float64(activation, factor, padded):
    layer = make_layer(activation=activation, capacity_factor=factor, group_examples=2)
    x_BLD = some_tokens(4, 7).requires_grad_()
    valid_BL = torch.arange(7) < torch.tensor([7, 4, 1, 6]).unsqueeze(1) if padded else torch.ones(4, 7, dtype=torch.bool)
    y_BLD, report = layer(x_BLD, valid_BL if padded else None)
    direction = torch.randn(y_BLD.shape, generator=torch.Generator().manual_seed(2))
    ((y_BLD * direction).sum() + report.z_loss).backward()

    exact = {"router": layer.router.weight, **dict(layer.experts.named_parameters())}
    exact = {name: p.detach().double().requires_grad_() for name, p in exact.items()}
    x64 = x_BLD.detach().double().requires_grad_()
    y64, z64 = naive(exact, x64, valid_BL, 2, factor, activation)
    ((y64 * direction.double()).sum() + z64).backward()

    close = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y_BLD.double(), y64, **close)
    torch.testing.assert_close(report.z_loss.double(), z64, **close)
    torch.testing.assert_close(x_BLD.grad.double(), x64.grad, **close)
    torch.testing.assert_close(layer.router.weight.grad.double(), exact["router"].grad, **close)
    for name, parameter in layer.experts.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), exact[name].grad, **close)


def test_padding_changes_nothing_and_gets_no_gradient():
    layer = make_layer(group_examples=2)
    valid_BL = torch.arange(5) < torch.tensor([5, 3, 2, 1]).unsqueeze(1)
    x_BLD = some_tokens(4, 5).requires_grad_()
    y_BLD, report = layer(x_BLD, valid_BL)
    (y_BLD.square().sum() + report.z_loss).backward()
    assert (x_BLD.grad[~valid_BL] == 0).all() and (y_BLD[~valid_BL] == 0).all()
    assert (x_BLD.grad[valid_BL].abs().sum(-1) > 0).all()  # the z-loss reaches even dropped tokens

    # padding that every expert would love: large, and along the router's own rows
    other = x_BLD.detach().clone()
    other[~valid_BL] = 100.0 * layer.router.weight.detach().sum(0)
    y_other, report_other = layer(other, valid_BL)
    assert torch.equal(y_other[valid_BL], y_BLD[valid_BL])
    for value, value_other in zip(report, report_other):
        assert torch.equal(value, value_other)


def test_a_token_that_nobody_takes_gets_zeros():
    """So in a block it passes through the residual alone."""
    layer = make_layer(capacity_factor=0.25, group_examples=1)  # 8 tokens, 4 experts: C = round(0.5) = 1, at most 4 tokens taken
    y_BLD, report = layer(some_tokens(1, 8))
    zero_rows = (y_BLD[0] == 0).all(-1).sum().item()
    assert zero_rows >= 4 and report.dropped_fraction.item() == pytest.approx(zero_rows / 8)


def test_groups_do_not_know_of_each_other():
    layer = make_layer(group_examples=2)
    x_BLD = some_tokens(6, 5)
    y_BLD, report = layer(x_BLD)
    # whole groups in another order, and the examples of a group swapped
    order = torch.tensor([4, 5, 1, 0, 2, 3])
    y_moved, report_moved = layer(x_BLD[order])
    torch.testing.assert_close(y_moved, y_BLD[order], rtol=1e-6, atol=1e-6)
    for value, value_moved in zip(report, report_moved):
        torch.testing.assert_close(value, value_moved, rtol=1e-6, atol=1e-6)
    # the other groups replaced by something else altogether
    other = torch.cat([x_BLD[:2], 10 * torch.randn(4, 5, WIDTH, generator=torch.Generator().manual_seed(5))])
    torch.testing.assert_close(layer(other)[0][:2], y_BLD[:2], rtol=1e-6, atol=1e-6)
    # the neighbour in the group does matter: this is what a group is
    mixed = torch.cat([x_BLD[:1], other[2:3], x_BLD[2:]])
    assert (layer(mixed)[0][0] - y_BLD[0]).abs().max() > 1e-3


def test_groups_of_one_example_equal_single_calls():
    layer = make_layer(group_examples=1)
    x_BLD = some_tokens(3, 9)
    alone = torch.cat([layer(x_BLD[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(layer(x_BLD)[0], alone, rtol=1e-6, atol=1e-6)


def test_reported_numbers_carry_no_gradient_but_the_z_loss():
    _, report = make_layer()(some_tokens(2, 5))
    assert report.z_loss.requires_grad
    assert not any(value.requires_grad for value in (report.usage_E, report.dropped_fraction, report.mean_combine_weight))


@pytest.mark.parametrize(
    "batch, length, tokens, examples, expected",
    [
        (8, 256, 2048, None, 8),  # 2048 / 256 = 8 examples fill a group
        (16, 256, 2048, None, 8),
        (12, 256, 2048, None, 6),  # 8 fit, and the largest divisor of 12 up to 8 is 6
        (7, 256, 2048, None, 7),
        (11, 256, 2048, None, 1),  # a prime above 8
        (8, 256, 2048, 2, 2),
        (8, 1024, 2048, 4, 2),  # the tokens bind first
        (3, 2048, 2048, None, 1),
        (4, 1, 2048, None, 4),
    ],
)
def test_examples_per_group(batch, length, tokens, examples, expected):
    assert examples_per_group(batch, length, tokens, examples) == expected


def test_an_example_longer_than_a_group_is_refused():
    with pytest.raises(UserError, match="(?s)longer than a routing group.*2049 tokens.*2048"):
        examples_per_group(1, 2049, 2048, None)


def test_bfloat16_stays_bfloat16():
    layer = make_layer()
    y_BLD, report = layer.bfloat16()(some_tokens(2, 8).bfloat16())
    assert y_BLD.dtype == torch.bfloat16 and report.z_loss.dtype == torch.float32


def test_a_slice_holds_copies_of_its_experts():
    experts = make_layer(activation="geglu").experts
    part = experts.slice(1, 2)
    assert (part.num_experts, part.first) == (2, 1) and part.slice(1, 1).first == 2
    x_ND = torch.randn(3 * EXPERTS, WIDTH)
    torch.testing.assert_close(part(x_ND[3:9]), experts(x_ND)[3:9])
    part.w1.data.zero_()
    assert (experts.w1 != 0).all()
