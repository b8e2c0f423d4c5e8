"""Every gate with every selection against a loop over tokens and experts in float64: choices, weights, answers, gradients.

The naive side knows softmax, sorting and sums alone: no groups in tensors, no merged matrices, no capacity in slots.

Shapes: B batch, L tokens of an example, S tokens of a group, T = B * L, I inputs and O outputs of a linear layer, E experts, A
attributes.
"""

from itertools import product

import pytest
import torch

from imp_ds.moe.conditional import MergedLinear, RoutedLinear, SequenceFacts
from imp_ds.moe.grouping import Grouping
from imp_ds.moe.routers.registry import build_router
from imp_ds.moe.routing import Condition, Segment
from imp_ds.moe.soft_merging import MergeRouter
from imp_ds.randomness import normal, sample_keys, step_key

BATCH, LENGTH, IN_FEATURES, OUT_FEATURES, EXPERTS, WIDTH = 4, 5, 6, 3, 4, 6
SELECTIONS = {
    "expert choice": dict(kind="expert_choice", factor=1.0),
    "expert choice, loose": dict(kind="expert_choice", factor=2.5),
    "top-1 with capacity": dict(kind="top_k", factor=1.0, experts_per_token=1, drop_tokens=True),
    "top-2 with capacity": dict(kind="top_k", factor=0.75, experts_per_token=2, drop_tokens=True),
    "top-1 drop-free": dict(kind="top_k", factor=1.0, experts_per_token=1, drop_tokens=False),
    "top-3 drop-free": dict(kind="top_k", factor=1.0, experts_per_token=3, drop_tokens=False),
}
VALID = torch.arange(LENGTH) < torch.tensor([5, 2, 4, 1]).unsqueeze(1)
CAUSAL = torch.ones(LENGTH, LENGTH).tril().bool()


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that experts are liked unequally."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return module


def some_tokens() -> torch.Tensor:
    return torch.randn(BATCH, LENGTH, IN_FEATURES, generator=torch.Generator().manual_seed(1)).requires_grad_()


def exact(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}


def best(values: list[float], count: int) -> list[int]:
    return sorted(range(len(values)), key=lambda i: -values[i])[:count]


def softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.exp() / logits.exp().sum()


def assert_equal_gradients(module, x, exact_weights, x64) -> None:
    close = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), x64.grad, **close)
    for name, parameter in module.named_parameters():
        wanted = exact_weights[name].grad
        torch.testing.assert_close(parameter.grad.double(), torch.zeros_like(wanted) if wanted is None else wanted, **close)
        assert wanted.abs().max() > 1e-3, name  # it was reached at all


# --- token and context: a decision for each token


def seen_by(gate: str, weights: dict, x_LI, token: int, valid_L, mask_LL) -> torch.Tensor:
    """What the gate sees of a token: the token, and for "context" the attention-pooled tokens that it may see."""
    if gate == "token":
        return x_LI[token]
    seen = [j for j in range(LENGTH) if valid_L[j] and mask_LL[token, j]]
    share = softmax(torch.stack([x_LI[j] @ weights["router.pool.query"] / IN_FEATURES**0.5 for j in seen]))
    return torch.cat([x_LI[token], sum(s * x_LI[j] for s, j in zip(share, seen))])


def choices(probability: dict[int, torch.Tensor], size: int, kind: str, factor: float, experts_per_token=1, drop_tokens=False):
    """{(token, expert): weight} of one group, whose tokens' probabilities are given; `size` counts padding too."""
    if kind == "expert_choice":
        wanted = {(t, e): p[e] for t, p in probability.items() for e in range(EXPERTS)}
    else:
        wanted = {}
        for t, p in probability.items():
            chosen = best(p.tolist(), experts_per_token)
            total = sum(p[e] for e in chosen) if experts_per_token > 1 else 1.0
            wanted |= {(t, e): p[e] / total for e in chosen}
        if not drop_tokens:
            return wanted
    room = round(factor * experts_per_token * size / EXPERTS)
    kept = {}
    for e in range(EXPERTS):
        pairs = [pair for pair in wanted if pair[1] == e]
        kept |= {pair: wanted[pair] for pair in sorted(pairs, key=lambda pair: -wanted[pair].item())[:room]}
    return kept


def balance(probability: dict[int, torch.Tensor], experts_per_token: int) -> torch.Tensor:
    """E * sum_e (share of the choices that fell on e) * (mean probability of e)."""
    chosen = [e for p in probability.values() for e in best(p.tolist(), experts_per_token)]
    mean_E = sum(probability.values()) / len(probability)
    return EXPERTS * sum(chosen.count(e) / len(chosen) * mean_E[e] for e in range(EXPERTS))


def naive_routed(gate: str, weights: dict, x_BLI, valid_BL, mask_LL, noise_BLE, selection: dict):
    """Output [B, L, O], the decision {(flat token, expert): weight}, z-loss and balance loss; groups of two examples."""
    found, z_losses, balances, zero = {}, [], [], torch.zeros((), dtype=torch.float64)
    for first in range(0, BATCH, 2):
        logits = {
            b * LENGTH + t: weights["router.weight"] @ seen_by(gate, weights, x_BLI[b], t, valid_BL[b], mask_LL) + noise_BLE[b, t]
            for b in (first, first + 1) for t in range(LENGTH) if valid_BL[b, t]
        }  # fmt: skip
        probability = {t: softmax(logits_E) for t, logits_E in logits.items()}
        found |= choices(probability, 2 * LENGTH, **selection)
        z_losses.append(sum(logits_E.exp().sum().log() ** 2 for logits_E in logits.values()) / len(logits))
        balances.append(balance(probability, selection["experts_per_token"]) if selection["kind"] == "top_k" else zero)
    y_TO = [torch.zeros(OUT_FEATURES, dtype=torch.float64) for _ in range(BATCH * LENGTH)]
    for (t, e), weight in found.items():
        y_TO[t] = y_TO[t] + weight * (x_BLI[t // LENGTH, t % LENGTH] @ weights["experts.w"][e])
    return torch.stack(y_TO).view(BATCH, LENGTH, OUT_FEATURES), found, sum(z_losses) / 2, sum(balances) / 2


def rows_of(routing) -> dict[tuple[int, int], float]:
    """The decision as {(token, expert): weight}, without empty slots."""
    count_E = routing.count_E
    count_E = torch.full((EXPERTS,), len(routing.weight_N) // EXPERTS) if count_E is None else count_E
    expert_N = torch.repeat_interleave(torch.arange(EXPERTS), count_E).tolist()
    rows = zip(routing.token_index_N.tolist(), expert_N, routing.weight_N.tolist())
    return {(token, expert): weight for token, expert, weight in rows if weight > 0}


@pytest.mark.parametrize("gate, name", product(("token", "context"), SELECTIONS))
@pytest.mark.parametrize("how", ["full", "padded, causal, noisy"])
def test_decisions_for_each_token(gate, name, how):
    selection = SELECTIONS[name]
    options = {key: value for key, value in selection.items() if key not in ("kind", "factor")}
    options["capacity_factor"] = selection["factor"]
    router = build_router(selection["kind"], IN_FEATURES, EXPERTS, options, noise=1.0, sees_context=gate == "context")
    layer = fill(RoutedLinear(IN_FEATURES, OUT_FEATURES, EXPERTS, router, Grouping(tokens=2 * LENGTH), site=1))
    x_BLI, valid_BL, mask_LL = some_tokens(), torch.ones(BATCH, LENGTH).bool(), torch.ones(LENGTH, LENGTH).bool()
    noise_BLE, facts = torch.zeros(BATCH, LENGTH, EXPERTS), SequenceFacts()
    if how != "full":
        key_BS, valid_BL, mask_LL = torch.arange(BATCH * 2).view(BATCH, 2), VALID, CAUSAL
        facts = SequenceFacts(valid_BL, mask_LL, key_BS=key_BS)
        noise_BLE = normal(key_BS[:, 1], LENGTH, EXPERTS) / EXPERTS  # of standard deviation 1 / E

    y_BLO, decision, report = layer(x_BLI, facts)
    direction = torch.randn(y_BLO.shape, generator=torch.Generator().manual_seed(2))
    ((y_BLO * direction).sum() + report.z_loss + report.balance_loss).backward()
    weights, x64 = exact(layer), x_BLI.detach().double().requires_grad_()
    y64, found, z64, balance64 = naive_routed(gate, weights, x64, valid_BL, mask_LL, noise_BLE.double(), selection)
    ((y64 * direction.double()).sum() + z64 + balance64).backward()

    assert rows_of(decision) == pytest.approx({pair: weight.item() for pair, weight in found.items()}, rel=1e-5)
    torch.testing.assert_close(y_BLO.double(), y64, rtol=1e-4, atol=1e-5)
    assert report.z_loss.item() == pytest.approx(z64.item(), rel=1e-5)
    assert report.balance_loss.item() == pytest.approx(balance64.item(), rel=1e-5)
    assert_equal_gradients(layer, x_BLI, weights, x64)


def test_a_map_that_is_given_a_decision_follows_it():
    """The second linear layer of a pair: the first one's rows and weights, and gradients for both linear layers' experts and the
    one router."""
    router = build_router("top_k", IN_FEATURES, EXPERTS, {"experts_per_token": 2, "drop_tokens": False})
    first = fill(RoutedLinear(IN_FEATURES, IN_FEATURES, EXPERTS, router, Grouping(), site=0))
    second = fill(RoutedLinear(IN_FEATURES, OUT_FEATURES, EXPERTS, None, Grouping(), site=1))
    x_BLI = some_tokens()
    y_BLI, decision, _ = first(x_BLI, SequenceFacts())
    found_BLO, same, report = second(y_BLI, SequenceFacts(), decision)
    assert same is decision and report is None and [name for name, _ in second.named_parameters()] == ["experts.w"]
    wanted = torch.zeros(BATCH * LENGTH, OUT_FEATURES)
    for (token, expert), weight in rows_of(decision).items():
        wanted[token] += weight * (y_BLI.flatten(0, 1)[token] @ second.experts.w[expert])
    torch.testing.assert_close(found_BLO.flatten(0, 1), wanted)
    found_BLO.sum().backward()
    assert all(p.grad.abs().max() > 0 for p in (*first.parameters(), *second.parameters()))


# --- modality, task and attribute: a decision for each segment

BITS = torch.tensor([[1.0, 0, 1, 1, 0]]), torch.tensor([[0.0, 1, 1, 0, 1]])
CONSTANT = {
    "modality": (dict(ids=3), (torch.tensor([2]), torch.tensor([0]))),
    "task": (dict(ids=7), (torch.tensor([6]), torch.tensor([3]))),
    "attribute": (dict(attributes=5), BITS),
}


def naive_condition(gate: str, weights: dict, known: torch.Tensor) -> torch.Tensor:
    """The vector of an id; LayerNorm(W a + b) of bits."""
    if gate != "attribute":
        return weights["router.embedding.weight"][known.item()]
    v = weights["router.embedding.linear.weight"] @ known[0].double() + weights["router.embedding.linear.bias"]
    centred = v - v.mean()
    normed = centred / ((centred**2).mean() + 1e-6) ** 0.5
    return normed * weights["router.embedding.norm.weight"] + weights["router.embedding.norm.bias"]


def naive_merged(gate: str, weights: dict, x_BLI, segments, noise_E, chosen: int):
    """For each token the sum over its segment's experts of weight times answer: no matrix is ever merged."""
    decisions, parts, first = [], [], 0
    for length, known in segments:
        probability_E = softmax(weights["router.weight"] @ naive_condition(gate, weights, known) + noise_E)
        experts = best(probability_E.tolist(), chosen)
        total = sum(probability_E[e] for e in experts) if chosen > 1 else 1.0
        decisions.append({e: probability_E[e] / total for e in experts})
        tokens = x_BLI[:, first : first + length]
        parts.append(sum(weight * (tokens @ weights["experts.w"][e]) for e, weight in decisions[-1].items()))
        first += length
    return torch.cat(parts, dim=1), decisions


@pytest.mark.parametrize("gate, chosen", product(CONSTANT, (1, 2, 3)))
@pytest.mark.parametrize("noisy", [False, True])
def test_decisions_for_each_segment(gate, chosen, noisy):
    options, known = CONSTANT[gate]
    router = MergeRouter(WIDTH, EXPERTS, experts_per_token=chosen, noise=1.0, **options)
    layer = fill(MergedLinear(IN_FEATURES, OUT_FEATURES, EXPERTS, router, site=1))
    key_1S = torch.tensor([[5, 8]]) if noisy else None
    noise_E = normal(key_1S[:, 1], EXPERTS)[0].double() / EXPERTS if noisy else torch.zeros(EXPERTS)
    lengths, x_BLI = (2, 3), some_tokens()
    segments = tuple(Segment(length, Condition(k, key_1S)) for length, k in zip(lengths, known))

    y_BLO, decision, report = layer(x_BLI, SequenceFacts(segments=segments))
    direction = torch.randn(y_BLO.shape, generator=torch.Generator().manual_seed(2))
    (y_BLO * direction).sum().backward()
    weights, x64 = exact(layer), x_BLI.detach().double().requires_grad_()
    y64, found = naive_merged(gate, weights, x64, zip(lengths, known), noise_E, chosen)
    (y64 * direction.double()).sum().backward()

    for merged, wanted in zip(decision, found):
        assert merged.expert_K.tolist() == list(wanted)
        assert merged.weight_K.tolist() == pytest.approx([w.item() for w in wanted.values()], rel=1e-5)
        everyone = [wanted.get(e, torch.zeros(())).item() for e in range(EXPERTS)]
        assert merged.weight_E.tolist() == pytest.approx(everyone, rel=1e-5)
    torch.testing.assert_close(y_BLO.double(), y64, rtol=1e-4, atol=1e-5)
    assert_equal_gradients(layer, x_BLI, weights, x64)
    assert report.z_loss == report.balance_loss == report.dropped_fraction == 0  # nothing competes, nothing is dropped
    assert report.usage_E.sum().item() == pytest.approx(1.0)


def test_two_segments_are_two_single_runs():
    router = MergeRouter(WIDTH, EXPERTS, experts_per_token=2, attributes=5)
    layer, x_BLI = fill(MergedLinear(IN_FEATURES, OUT_FEATURES, EXPERTS, router, site=0)), some_tokens()
    first, second = (Condition(bits) for bits in BITS)
    both, decision, _ = layer(x_BLI, SequenceFacts(segments=(Segment(2, first), Segment(3, second))))
    alone = [
        layer(part, SequenceFacts(segments=(Segment(part.shape[1], condition),)))
        for part, condition in zip(x_BLI.split((2, 3), 1), (first, second))
    ]
    torch.testing.assert_close(both, torch.cat([y for y, _, _ in alone], 1))
    assert [merged.expert_K.tolist() for merged in decision] == [single.expert_K.tolist() for _, (single,), _ in alone]
    assert (decision[0].weight_E - decision[1].weight_E).abs().max() > 0.05  # the conditions do differ


def test_a_slice_of_the_experts_merges_its_part():
    router = MergeRouter(WIDTH, EXPERTS, experts_per_token=3, ids=3)
    layer = fill(MergedLinear(IN_FEATURES, OUT_FEATURES, EXPERTS, router, site=0))
    merged = layer.router(torch.tensor([1]))
    full_IO = layer.experts(merged)
    parts = [layer.experts.slice(first, count)(merged) for first, count in ((0, 1), (1, 3))]
    torch.testing.assert_close(sum(parts), full_IO)
    assert all((part - full_IO).abs().max() > 1e-2 for part in parts)


def test_noise_of_a_constant_gate_is_one_draw_of_a_step():
    """The same for all samples of a step, whichever of them a rank holds, another one in another step; none without a key."""
    router = fill(MergeRouter(WIDTH, EXPERTS, experts_per_token=EXPERTS, noise=1.0, ids=3))
    keys = [step_key(sample_keys(0, step, first, 4)) for step in range(3) for first in (0, 60)]
    draws = [router(torch.tensor([1]), key_1).weight_E for key_1 in keys]
    for step in range(3):
        assert torch.equal(draws[2 * step], draws[2 * step + 1])
    assert (draws[0] - draws[2]).abs().max() > 1e-3 and (draws[2] - draws[4]).abs().max() > 1e-3
    quiet = router(torch.tensor([1])).weight_E
    assert torch.equal(quiet, router(torch.tensor([1])).weight_E) and (quiet - draws[0]).abs().max() > 1e-3


def test_noise_has_the_published_size():
    """Standard deviation 1 / E of the logits: over many steps, from the weights, whose logarithms are logits up to a sum."""
    router = fill(MergeRouter(WIDTH, EXPERTS, experts_per_token=EXPERTS, noise=1.0, ids=3))
    quiet_E = router(torch.tensor([1])).weight_E.log()
    noise_NE = torch.stack([router(torch.tensor([1]), torch.tensor([key])).weight_E.log() - quiet_E for key in range(2000)])
    # differences of two experts' noise lose the unknown sum; their variance is twice that of one
    spread = (noise_NE[:, 1:] - noise_NE[:, :1]).std(0) / 2**0.5
    assert spread.tolist() == pytest.approx([1 / EXPERTS] * (EXPERTS - 1), rel=0.06)
