"""The experts' arithmetic, on every path, against a loop over experts in float64 that autograd differentiates.

Shapes: T flat tokens, N rows in the order of their experts, E experts, D width, F feed-forward width.
"""

import functools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from imp_ds.moe.kernels import cpu_experts
from imp_ds.moe.kernels.compute import experts_forward, mixture, stacked_experts, stacked_mixture

TOKENS, WIDTH, HIDDEN, EXPERTS = 7, 4, 8, 4
EQUAL, RAGGED, ONE_HAS_ALL = [3, 3, 3, 3], [5, 0, 1, 6], [0, 0, 12, 0]
activations = pytest.mark.parametrize(
    "gated, silu", [(False, False), (True, False), (True, True)], ids=["gelu", "geglu", "swiglu"]
)


def problem(gated: bool, dtype=torch.float64) -> tuple[torch.Tensor, dict]:
    """The token of each of 12 rows, some tokens more than once and token 6 never, and what is differentiated."""
    generator = torch.Generator().manual_seed(0)
    up, down = (EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH)
    shapes = {"x": (TOKENS, WIDTH), "weight": (12,), "w1": up, "w2": down, "w3": up}
    given = {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}
    if not gated:
        del given["w3"]
    return torch.tensor([0, 1, 2, 0, 0, 3, 5, 4, 2, 2, 1, 5]), {name: value.requires_grad_() for name, value in given.items()}


def naive(x_TD, weight_N, w1, w2, w3=None, *, index_N, count, silu=False):
    """Row by row, as the definition reads."""
    y = [torch.zeros(x_TD.shape[1], dtype=x_TD.dtype)] * len(x_TD)
    experts = [e for e, rows in enumerate(count) for _ in range(rows)]
    for e, token, weight in zip(experts, index_N.tolist(), weight_N, strict=True):
        h = x_TD[token] @ w1[e]
        act = h / (1 + torch.exp(-h)) if silu else 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
        if w3 is not None:
            act = act * (x_TD[token] @ w3[e])
        y[token] = y[token] + weight * (act @ w2[e])
    return torch.stack(y)


def ours(x_TD, weight_N, *weights, index_N, count, silu=False):
    return mixture(x_TD, index_N, weight_N, count, *weights, silu=silu)


def value_and_gradients(function, given: dict) -> tuple[torch.Tensor, dict]:
    y = function(*given.values())
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    gradients = torch.autograd.grad(y, list(given.values()), direction)
    return y.detach(), dict(zip(given, gradients))


@activations
@pytest.mark.parametrize("count", [EQUAL, None, RAGGED, ONE_HAS_ALL])
def test_value_and_gradients_equal_a_loop(count, gated, silu):
    index_N, given = problem(gated)
    y, gradients = value_and_gradients(functools.partial(ours, index_N=index_N, count=count, silu=silu), given)
    loop = functools.partial(naive, index_N=index_N, count=count or EQUAL, silu=silu)
    expected_y, expected = value_and_gradients(loop, given)
    torch.testing.assert_close(y, expected_y, rtol=1e-12, atol=1e-12)
    for name in given:
        torch.testing.assert_close(gradients[name], expected[name], rtol=1e-12, atol=1e-12)
    assert (y[6] == 0).all() and (gradients["x"][6] == 0).all()  # no row is token 6's


@activations
def test_gradients_equal_finite_differences(gated, silu):
    index_N, given = problem(gated)
    run = functools.partial(ours, index_N=index_N, count=RAGGED, silu=silu)
    assert torch.autograd.gradcheck(run, tuple(given.values()))


def test_the_custom_operators_keep_their_promises():
    """Shapes without data, no aliases of inputs, autograd registered rightly: torch's own check of a custom operator."""
    _, given = problem(gated=True)
    rows_ND = given["x"].detach()[:6].clone().requires_grad_()
    weights = given["w1"], given["w2"], given["w3"]
    routing = torch.tensor([0, 3, 3, 1, 0, 2]), given["weight"].detach()[:6].clone().requires_grad_()
    check = functools.partial(torch.library.opcheck, cpu_experts._forward)
    found = [check((rows_ND, None, None, [5, 0, 1, 0], *weights, True))]
    found.append(check((rows_ND, *routing, [5, 0, 1, 0], given["w1"], given["w2"], None, True)))
    found.append(check((rows_ND, *routing, [5, 0, 1, 0], *weights, True, True)))
    with torch.no_grad():
        found.append(check((rows_ND.detach(), None, None, [5, 0, 1, 0], *[w.detach() for w in weights], False)))
    assert all(results and set(results.values()) == {"SUCCESS"} for results in found)


@activations
@pytest.mark.parametrize("count", [None, RAGGED])
def test_the_path_of_other_devices_computes_the_same(count, gated, silu):
    """float32, since a grouped product takes no float64: its rounding is 6e-8, and sums have at most 12 terms."""
    index_N, given = problem(gated, torch.float32)
    no_w3, results = [] if gated else [None], []
    for function in (mixture, stacked_mixture):
        y, gradients = value_and_gradients(lambda x, weight, *w: function(x, index_N, weight, count, *w, *no_w3, silu), given)
        results.append((y, *gradients.values()))
    for one, other in zip(*results):
        assert (one - other).norm() < 1e-5 * other.norm()


@activations
@pytest.mark.parametrize("count", [None, RAGGED])
def test_rows_from_elsewhere_are_a_mixture_of_themselves(count, gated, silu):
    """Each row its own token with weight 1: `experts_forward` is `mixture`, which the loop has judged."""
    index_N, given = problem(gated)
    del given["weight"]
    given["x"] = given["x"].detach()[index_N].requires_grad_()
    y, gradients = value_and_gradients(lambda x, *weights: experts_forward(x, count, *weights, silu=silu), given)
    one = torch.ones(12, dtype=torch.float64)
    by_index = functools.partial(ours, index_N=torch.arange(12), count=count, silu=silu)
    expected_y, expected = value_and_gradients(lambda x, *weights: by_index(x, one, *weights), given)
    torch.testing.assert_close(y, expected_y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-12)


def test_an_expert_without_rows_gets_zeros_not_none():
    index_N, given = problem(gated=True)
    ours(*given.values(), index_N=index_N, count=RAGGED).sum().backward()
    for name in ("w1", "w2", "w3"):
        gradient = given[name].grad
        assert (gradient[1] == 0).all() and (gradient[0] != 0).any(), name


@pytest.mark.parametrize("tokens", [0, TOKENS])
def test_no_rows_at_all(tokens):
    _, given = problem(gated=False)
    x_TD = given["x"].detach()[:tokens].clone().requires_grad_()
    weight_N = torch.empty(0, dtype=torch.float64, requires_grad=True)
    for count in (None, [0] * EXPERTS):
        y = mixture(x_TD, torch.empty(0, dtype=torch.int64), weight_N, count, given["w1"], given["w2"])
        gradients = torch.autograd.grad(y.sum(), [x_TD, weight_N, given["w1"], given["w2"]])
        assert y.shape == x_TD.shape and not y.any() and not any(gradient.any() for gradient in gradients)


def test_an_empty_slot_gives_and_gets_nothing():
    """Rows 1 and 7 have weight 0: as if they were not there, and their weights have gradient 0."""
    index_N, given = problem(gated=False)
    kept = torch.tensor([n not in (1, 7) for n in range(12)])
    given["weight"].data[~kept] = 0
    y, gradients = value_and_gradients(functools.partial(ours, index_N=index_N, count=EQUAL), given)
    given["weight"] = given["weight"].detach()[kept].requires_grad_()
    shorter = functools.partial(naive, index_N=index_N[kept], count=[2, 3, 2, 3])
    expected_y, expected = value_and_gradients(shorter, given)
    assert (gradients["weight"][~kept] == 0).all()
    gradients["weight"] = gradients["weight"][kept]
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(gradients, expected)


@activations
@pytest.mark.parametrize("count", [EQUAL, RAGGED])
def test_bfloat16_is_the_rounded_float64(count, gated, silu):
    """Inputs are rounded to bfloat16 first, so only the steps between are: 8 bits, a few roundings of sums up to 12 terms."""
    index_N, given = problem(gated, torch.bfloat16)
    given["w1"] = given["w1"].detach().float().requires_grad_()  # weights of another type are brought to that of x
    y, gradients = value_and_gradients(functools.partial(ours, index_N=index_N, count=count, silu=silu), given)
    exact = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    expected_y, expected = value_and_gradients(functools.partial(naive, index_N=index_N, count=count, silu=silu), exact)
    assert y.dtype is torch.bfloat16 and gradients["w1"].dtype is torch.float32 and gradients["w2"].dtype is torch.bfloat16
    for name, value, reference in [("y", y, expected_y), *((name, gradients[name], expected[name]) for name in given)]:
        error = (value.double() - reference).norm() / reference.norm()
        assert error < 0.02, (name, error)


@pytest.mark.parametrize("silu", [False, True])
def test_far_values_of_the_activation_and_its_slope(silu):
    """Both are h where h is large and 0 where it is very negative, their slope 1 and 0; at 0 they are 0 and their slope 1/2."""
    h = torch.tensor([[-1e4, -50.0, 0.0, 50.0, 1e4]])
    act, dh = torch.empty_like(h), torch.ones_like(h)
    cpu_experts._activate_backward(h, act, dh, silu)
    torch.testing.assert_close(act, torch.tensor([[0.0, 0.0, 0.0, 50.0, 1e4]]))
    torch.testing.assert_close(dh, torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]]))
    near = torch.linspace(-6, 6, 4001).view(1, -1)
    cpu_experts._activate(near, act := torch.empty_like(near), silu)
    exact = F.silu(near.double()) if silu else F.gelu(near.double(), approximate="tanh")
    torch.testing.assert_close(act, exact.float(), rtol=1e-6, atol=1e-6)


def test_rows_of_several_blocks(monkeypatch):
    """Blocks of 2 rows, the last of an expert not whole: of 5, 0, 1 and 6 rows."""
    monkeypatch.setattr(cpu_experts, "BLOCK_ELEMENTS", 2 * HIDDEN + 1)
    cut = [[len(block) for (block,) in cpu_experts._blocks(torch.zeros(rows, HIDDEN))] for rows in RAGGED]
    assert cut == [[2, 2, 1], [], [1], [2, 2, 2]]
    for gated in (False, True):
        index_N, given = problem(gated)
        y, gradients = value_and_gradients(functools.partial(ours, index_N=index_N, count=RAGGED), given)
        expected_y, expected = value_and_gradients(functools.partial(naive, index_N=index_N, count=RAGGED), given)
        torch.testing.assert_close(y, expected_y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-12)


def test_large_gradients_in_memory_that_is_used_again():
    """Experts of 2 x 2 MiB: a second pass finds the first one's gradients, freed, in its memory, also where it has no rows."""
    generator = torch.Generator().manual_seed(0)
    w1, w2 = (torch.randn(shape, generator=generator).mul_(0.1).requires_grad_() for shape in [(4, 128, 1024), (4, 1024, 128)])
    x_ND = torch.randn(12, 128, generator=generator)
    for count in (EQUAL, RAGGED):
        expected = torch.autograd.grad(stacked_experts(x_ND, count, w1, w2, None).square().sum(), [w1, w2])
        for mine, other in zip(torch.autograd.grad(experts_forward(x_ND, count, w1, w2).square().sum(), [w1, w2]), expected):
            assert (mine - other).norm() < 1e-5 * other.norm() and (count is EQUAL or not mine[1].any())


@activations
def test_frozen_experts_have_no_gradients_and_pass_those_of_their_rows_on(gated, silu, monkeypatch):
    """Nothing is computed, nor memory taken, for gradients of weights that nobody trains."""
    index_N, given = problem(gated)
    function = functools.partial(ours, index_N=index_N, count=RAGGED, silu=silu)
    _, expected = value_and_gradients(function, given)
    frozen = {name: value.detach() if name in ("w1", "w2", "w3") else value for name, value in given.items()}
    monkeypatch.setattr(cpu_experts.GRADIENTS, "empty_like", lambda weight: pytest.fail("memory for a gradient"))
    passing = {name: value for name, value in frozen.items() if value.requires_grad}
    _, found = value_and_gradients(lambda *given: function(*given, *list(frozen.values())[2:]), passing)
    assert found.keys() == {"x", "weight"} and all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("autocast", [False, True])
def test_activation_checkpointing_changes_nothing(autocast):
    index_N, given = problem(gated=True, dtype=torch.float32)
    run = functools.partial(ours, index_N=index_N, count=RAGGED)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, gradients = value_and_gradients(run, given)
        again_y, again = value_and_gradients(functools.partial(checkpoint, run, use_reentrant=False), given)
    assert torch.equal(y, again_y) and all(torch.equal(gradients[name], again[name]) for name in given)


def test_nothing_is_kept_for_a_backward_that_will_not_come():
    _, given = problem(gated=True)
    weights = [given[name].detach() for name in ("w1", "w2", "w3")]
    kept = cpu_experts._forward(given["x"].detach()[:4], None, None, [1, 1, 1, 1], *weights, False)[1:]
    assert [tensor.numel() for tensor in kept] == [0, 0, 0]
    y = experts_forward(given["x"].detach()[:4], None, *weights)
    assert not y.requires_grad


def test_compiled_without_a_break():
    index_N, given = problem(gated=True)
    run = functools.partial(ours, index_N=index_N, count=RAGGED)
    expected_y, expected = value_and_gradients(run, given)
    y, gradients = value_and_gradients(torch.compile(run, fullgraph=True, backend="aot_eager"), given)
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(gradients, expected)


def test_memory_of_the_backward_is_the_gradients_and_one_expert():
    """64 experts of 2 x 128 KiB: gradients of 16 MiB, and autograd over `w[e]` would hold such a stack of zeros for every
    expert. Rows and hidden layer are 64 x 64 and 64 x 512 numbers, so the rest is far below 8 MiB."""
    w1, w2 = torch.zeros(64, 64, 512, requires_grad=True), torch.zeros(64, 512, 64, requires_grad=True)
    x_ND = torch.zeros(64, 64)
    experts_forward(x_ND, None, w1, w2).sum().backward()  # the libraries' own buffers
    w1.grad = w2.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = memory_kib("VmRSS")
    experts_forward(x_ND, None, w1, w2).sum().backward()
    grown_mib = (memory_kib("VmHWM") - before) / 1024
    assert grown_mib < 24, grown_mib


def memory_kib(name: str) -> int:
    """A line of the process's status as Linux tells it: VmRSS now, VmHWM at most."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
