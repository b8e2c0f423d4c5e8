"""The kernels of the experts on a GPU against plain torch in float64; without a GPU, in Triton's interpreter:

    TRITON_INTERPRET=1 python -m pytest tests/moe/test_gpu_experts.py

in an environment that has Triton (pip install triton), which the CPU builds of torch come without. Skipped elsewhere.

Shapes: T flat tokens, N rows in the order of their experts, E experts, D width, F feed-forward width.
"""

import pytest
import torch
import torch.nn.functional as F

from helpers.triton_kernels_here import DEVICE, import_kernels
from imp_ds.moe.kernels.compute import stacked_mixture

gpu_experts, triton_kernels = map(import_kernels, ("imp_ds.moe.kernels.gpu_experts", "imp_ds.moe.kernels.triton_kernels"))
TOKENS, WIDTH, HIDDEN, EXPERTS = 7, 8, 24, 4  # widths that grouped products take, and that no block of a kernel divides
EQUAL, RAGGED, ONE_HAS_ALL = [3, 3, 3, 3], [5, 0, 1, 6], [0, 0, 12, 0]
INDEX_N = [0, 1, 2, 0, 0, 3, 5, 4, 2, 2, 1, 5]  # the token of each row: 0 and 2 three times, 6 never


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """NaN and infinity do not pass any limit."""
    return float((found.detach().double().cpu() - expected).norm() / expected.norm())


def test_rows_taken_and_summed():
    index_N = torch.tensor(INDEX_N, device=DEVICE)
    x_TD, y_ND = draw(TOKENS, 5).float().to(DEVICE), draw(12, 5).float().to(DEVICE)
    assert torch.equal(triton_kernels.take_rows(x_TD, index_N), x_TD[index_N])
    order_N, start_T1 = gpu_experts._inverse(index_N, TOKENS)
    # token 0 has rows 0, 3 and 4; 1 has 1 and 10; 2 has 2, 8 and 9; 3 has 5; 4 has 7; 5 has 6 and 11; 6 has none
    assert order_N.tolist() == [0, 3, 4, 1, 10, 2, 8, 9, 5, 7, 6, 11]
    assert start_T1.tolist() == [0, 3, 5, 8, 9, 10, 12, 12]
    found = triton_kernels.sum_rows(y_ND, order_N, start_T1)
    expected = torch.zeros(TOKENS, 5, dtype=torch.float64).index_add(0, index_N.cpu(), y_ND.double().cpu())
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-6, atol=1e-6)
    assert (found[6] == 0).all()


@pytest.mark.parametrize("width", [24, 3000])  # less than a block, and more than one
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_activation_and_its_gradients(width, gated, weighted, silu):
    """Against autograd in float64, on the same float32 numbers; the sum for a weight has `width` terms."""
    h, gate, weight, grad = (draw(*shape, seed=i).float() for i, shape in enumerate([(5, width), (5, width), (5,), (5, width)]))
    given = {"h": h} | ({"gate": gate} if gated else {}) | ({"weight": weight} if weighted else {})
    exact = {name: value.double().requires_grad_() for name, value in given.items()}
    act = F.silu(exact["h"]) if silu else F.gelu(exact["h"], approximate="tanh")
    act = act * exact["gate"] if gated else act
    act = act * exact["weight"][:, None] if weighted else act
    expected = dict(zip(exact, torch.autograd.grad(act, list(exact.values()), grad.double())))
    here = {name: value.to(DEVICE) for name, value in given.items()}
    found = triton_kernels.activate(here["h"], here.get("gate"), here.get("weight"), silu)
    assert relative(found, act.detach()) < 1e-6
    others = here.get("gate"), here.get("weight")
    dh, dgate, dweight = triton_kernels.activate_backward(grad.to(DEVICE), here["h"], *others, silu)
    for name, value in (("h", dh), ("gate", dgate), ("weight", dweight)):
        assert (value is None) == (name not in given)
        assert value is None or relative(value, expected[name]) < 1e-5, name


def problem(gated: bool, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    shapes = {"x": (TOKENS, WIDTH), "weight": (12,), "w1": (EXPERTS, WIDTH, HIDDEN), "w2": (EXPERTS, HIDDEN, WIDTH)}
    if gated:
        shapes["w3"] = shapes["w1"]
    drawn = {name: draw(*shape, seed=i).bfloat16() for i, (name, shape) in enumerate(shapes.items())}  # exact in any type
    drawn["weight"][3] = 0.0
    types = {name: torch.float32 if name == "weight" else dtype for name in drawn}
    return {name: value.to(device, types[name]).requires_grad_() for name, value in drawn.items()}


def exact_mixture(given: dict, index_N, count: list[int], silu: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Value and gradients in float64, expert by expert."""
    x, weight, w1, w2, *w3 = (value.detach().double().cpu().requires_grad_() for value in given.values())
    y_ND = []
    for e, rows in enumerate(x[index_N.cpu()].split(count)):
        act = F.silu(rows @ w1[e]) if silu else F.gelu(rows @ w1[e], approximate="tanh")
        y_ND.append((act * (rows @ w3[0][e]) if w3 else act) @ w2[e])
    y = torch.zeros_like(x).index_add(0, index_N.cpu(), torch.cat(y_ND) * weight[:, None])
    gradients = torch.autograd.grad(y, [x, weight, w1, w2, *w3], draw(TOKENS, WIDTH, seed=9))
    return y.detach(), dict(zip(given, gradients))


@pytest.mark.parametrize("gated, silu", [(False, False), (True, False), (True, True)], ids=["gelu", "geglu", "swiglu"])
@pytest.mark.parametrize("count", [None, RAGGED, ONE_HAS_ALL])
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_value_and_gradients_equal_float64(dtype, limit, count, gated, silu):
    """bfloat16 keeps 8 bits: each of a handful of roundings on the way is up to 2^-9 = 0.002."""
    if DEVICE == "cuda" and dtype == torch.float32 and count is not None:
        pytest.skip("grouped products on a GPU are for bfloat16")
    given, index_N = problem(gated, dtype, DEVICE), torch.tensor(INDEX_N, device=DEVICE)
    weights = list(given.values())[2:] + ([] if gated else [None])
    count_E = None if count is None else torch.tensor(count, device=DEVICE)
    y = gpu_experts.gpu_mixture(given["x"], index_N, given["weight"], count_E, *weights, silu)
    gradients = torch.autograd.grad(y, list(given.values()), draw(TOKENS, WIDTH, seed=9).to(DEVICE, dtype))
    expected_y, expected = exact_mixture(given, index_N, count or EQUAL, silu)
    assert y.dtype == dtype and relative(y, expected_y) < limit
    for name, gradient in zip(given, gradients):
        assert relative(gradient, expected[name]) < limit, name
    assert (y[6] == 0).all() and (gradients[0][6] == 0).all()  # no row is token 6's
    if count is not None:
        empty = [e for e, rows in enumerate(count) if not rows]
        assert all((gradient[empty] == 0).all() for gradient in gradients[2:])


def test_no_rows_at_all():
    """A rank to whose experts nobody went: nothing comes out, and the weights get gradients of zeros."""
    given = problem(True, torch.bfloat16, DEVICE)
    rows = torch.empty(0, WIDTH, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    count_E = torch.zeros(EXPERTS, dtype=torch.int64, device=DEVICE)
    y = gpu_experts.gpu_experts(rows, count_E, given["w1"], given["w2"], given["w3"])
    assert y.shape == (0, WIDTH)
    for gradient in torch.autograd.grad(y.sum(), [given["w1"], given["w2"], given["w3"]]):
        assert (gradient == 0).all()


@pytest.mark.parametrize("count", [None, RAGGED])
def test_the_operators_keep_their_promises(count):
    """Shapes without data, no aliases of inputs, autograd registered rightly: torch's own check of a custom operator."""
    given, index_N = problem(True, torch.float32, DEVICE), torch.tensor(INDEX_N, device=DEVICE)
    ends_E = gpu_experts._ends(None if count is None else torch.tensor(count, device=DEVICE))
    places = index_N, *gpu_experts._inverse(index_N, TOKENS)
    rows_ND = draw(12, WIDTH).float().to(DEVICE).requires_grad_()
    torch.library.opcheck(gpu_experts._inverse, (index_N, TOKENS))
    torch.library.opcheck(gpu_experts._take, (given["x"], *places))
    torch.library.opcheck(gpu_experts._sum, (rows_ND, *places))
    torch.library.opcheck(gpu_experts._experts, (rows_ND, given["weight"], ends_E, given["w1"], given["w2"], given["w3"]))


def test_one_graph_when_compiled():
    given, index_N = problem(False, torch.float32, DEVICE), torch.tensor(INDEX_N, device=DEVICE)
    weights = given["x"], index_N, given["weight"], None, given["w1"], given["w2"], None
    compiled = torch.compile(gpu_experts.gpu_mixture, fullgraph=True, backend="aot_eager")
    expected = stacked_mixture(*weights)
    for name, a, b in zip(given, *(torch.autograd.grad(f.sum(), list(given.values())) for f in (compiled(*weights), expected))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
