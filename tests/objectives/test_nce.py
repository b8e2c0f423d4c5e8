"""NCE in one process: against a loop in float64, loss and gradients, and on cases worked out by hand.

Shapes: B samples, D width, C width of a common space.
"""

import math
from math import exp, log
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.errors import UserError
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.objectives import Contrastive, build_objective
from imp_ds.objectives.contrastive import ContrastiveObjective
from imp_ds.objectives.pair_losses import nce_direction

WIDTH, COMMON = 7, 5
LABELS = torch.tensor([3, 1, 3, 0, 1, 3])


class Projections(nn.Module):
    """What an objective needs of a model: a projection for each ordered pair, here one matrix and unit length."""

    def __init__(self, pairs):
        super().__init__()
        torch.manual_seed(1)
        self.linears = nn.ModuleDict({f"{s}_to_{t}": nn.Linear(WIDTH, COMMON) for a, b in pairs for s, t in ((a, b), (b, a))})

    def project(self, pooled_BD, source, target):
        return F.normalize(self.linears[f"{source}_to_{target}"](pooled_BD), dim=-1)


class Fixed:
    """Projections that are given: the pooled vectors themselves."""

    def project(self, pooled_BD, source, target):
        return pooled_BD


def encodings(**pooled):
    return {modality: SimpleNamespace(pooled_BD=value) for modality, value in pooled.items()}


def brute_force(model, objective, pooled: dict, positives: list[list[int]]):
    """The loss of the module's docstring, element by element, in the type of what it is given."""
    pair_losses = []
    for a, b in objective.pairs:
        z1, z2 = model.project(pooled[a], a, b), model.project(pooled[b], b, a)
        temperature = torch.relu(objective.temperatures[f"{a}_{b}"].value[0]) + 1e-6
        directions = []
        for query, target in ((z1, z2), (z2, z1)):
            terms = []
            for row in range(len(query)):
                similar = [torch.exp((query[row] * target[c]).sum() / temperature) for c in range(len(target))]
                terms.append(torch.log(sum(similar)) - torch.log(sum(similar[c] for c in positives[row])))
            directions.append(sum(terms) / len(terms))
        pair_losses.append(sum(directions) / 2)
    return sum(pair_losses) / len(pair_losses)


@pytest.mark.parametrize("positives", ["diagonal", "equal"])
@pytest.mark.parametrize(
    "pairs", [[("vision", "text")], [("vision", "audio"), ("audio", "text"), ("vision", "text")]], ids=["one", "three"]
)
def test_loss_and_gradients_equal_a_loop_in_float64(positives, pairs):
    objective = Contrastive(pairs=pairs, positives=positives, temperature=0.3).build(None, {})
    for i, temperature in enumerate(objective.temperatures.values()):
        temperature.value.data.add_(0.1 * i)  # each pair owns its own
    model = Projections(pairs)
    torch.manual_seed(2)
    pooled = {modality: torch.randn(6, WIDTH, requires_grad=True) for modality in {m for pair in pairs for m in pair}}
    loss, _ = objective(model, encodings(**pooled), {"label": LABELS})
    loss.backward()

    exact_objective, exact_model = Contrastive(pairs=pairs).build(None, {}).double(), Projections(pairs).double()
    exact_objective.load_state_dict(objective.state_dict())
    exact_model.load_state_dict(model.state_dict())
    exact_pooled = {modality: value.detach().double().requires_grad_() for modality, value in pooled.items()}
    which = [[c for c in range(6) if (LABELS[c] == LABELS[b] if positives == "equal" else c == b)] for b in range(6)]
    expected = brute_force(exact_model, exact_objective, exact_pooled, which)
    expected.backward()

    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    got = [*pooled.values(), *objective.parameters(), *model.parameters()]
    wanted = [*exact_pooled.values(), *exact_objective.parameters(), *exact_model.parameters()]
    assert len(got) == len(wanted)
    for value, exact in zip(got, wanted):
        assert exact.grad.abs().max() > 0
        torch.testing.assert_close(value.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_two_samples_by_hand():
    # unit vectors: z1 = (e0, e1), z2 = (e0, e0). Similarities 1->2: [[1, 1], [0, 0]]; T = 0.5
    # 1->2: row 0: ln 2 (both columns equal), row 1: ln 2. 2->1: row 0: ln(e^2 + 1) - 2; row 1: ln(e^2 + 1) - 0
    objective = Contrastive(pairs=[("vision", "text")], temperature=0.5).build(None, {})
    pooled = encodings(vision=torch.eye(2), text=torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    loss, metrics = objective(Fixed(), pooled, {})
    backward = log(exp(2) + 1) - 1
    assert loss.item() == pytest.approx((log(2) + backward) / 2, rel=1e-5)
    # 2->1: both rows prefer column 0, which is right for row 0 only
    assert metrics["accuracy/text_to_vision"].item() == 0.5
    assert metrics["temperature/vision_text"].item() == pytest.approx(0.5, abs=1e-5)
    assert metrics["temperature/vision_text"].shape == () and not metrics["temperature/vision_text"].requires_grad


def test_equal_labels_by_hand():
    # similarities [[2, 1, 0]], positives columns 0 and 2: ln(e^2 + e + 1) - ln(e^2 + 1); the best column is a positive
    logits_BN = torch.tensor([[2.0, 1.0, 0.0]])
    loss, accuracy = nce_direction(logits_BN, torch.tensor([[True, False, True]]))
    assert loss.item() == pytest.approx(log(exp(2) + exp(1) + 1) - log(exp(2) + 1), rel=1e-5) and accuracy.item() == 1.0
    # only column 1: the best is none
    loss, accuracy = nce_direction(logits_BN, torch.tensor([[False, True, False]]))
    assert loss.item() == pytest.approx(log(exp(2) + exp(1) + 1) - 1, rel=1e-5) and accuracy.item() == 0.0
    # every column is a positive: nothing to learn
    assert nce_direction(logits_BN, torch.ones(1, 3, dtype=torch.bool))[0].item() == pytest.approx(0.0, abs=1e-6)


def test_samples_of_equal_label_are_not_negatives_of_each_other():
    same = torch.tensor([7, 7, 7])
    pooled = encodings(vision=F.normalize(torch.randn(3, 4), dim=1), text=F.normalize(torch.randn(3, 4), dim=1))
    loss, metrics = Contrastive(pairs=[("vision", "text")], positives="equal").build(None, {})(Fixed(), pooled, {"label": same})
    assert loss.item() == pytest.approx(0.0, abs=1e-5) and metrics["accuracy/vision_to_text"].item() == 1.0


def test_the_sigmoid_loss_of_two_samples_by_hand():
    # unit vectors: z1 = (e0, e1), z2 = (e0, e0): cosines [[1, 1], [0, 0]]; scale 2, bias -1: logits [[1, 1], [-1, -1]].
    # with softplus(x) = ln(1 + e^x): positives (0, 0), (1, 1): softplus(-1), softplus(1); others: softplus(1), softplus(-1).
    # The mean over two rows of all four: softplus(1) + softplus(-1)
    objective = Contrastive(pairs=[("vision", "text")], loss="sigmoid", temperature=0.5, bias=-1.0).build(None, {})
    pooled = encodings(vision=torch.eye(2), text=torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    loss, metrics = objective(Fixed(), pooled, {})
    assert loss.item() == pytest.approx(math.log(1 + math.e) + math.log(1 + 1 / math.e), abs=1e-6)
    assert metrics["temperature/vision_text"].item() == pytest.approx(0.5)
    assert metrics["bias/vision_text"].item() == pytest.approx(-1.0)
    record = Contrastive(pairs=[("vision", "text")], loss="sigmoid")
    published = record.build(None, {}).temperatures["vision_text"]
    assert record.trained_temperature("vision") == "temperatures.vision_text.log_scale"
    assert record.temperature_of(published.log_scale.item()) == pytest.approx(0.1)
    assert published.log_scale.item() == pytest.approx(math.log(10)) and published.bias.item() == -10.0


def test_the_first_values_are_compared_as_vectors_of_their_own():
    # z1 = z2 = (0.6, 0.8, 0), (0.6, 0, 0.8); T = 1: whole: cosines [[1, 0.36], [0.36, 1]], loss ln(1 + e^-0.64);
    # of the first value alone both are (1): ln 2; of the first two (0.6, 0.8), (1, 0): cosine 0.6, ln(1 + e^-0.4)
    vectors = torch.tensor([[0.6, 0.8, 0.0], [0.6, 0.0, 0.8]])
    record = Contrastive(pairs=[("vision", "text")], temperature=1.0, matryoshka=[1, 2], matryoshka_weights=[2.0, 0.5])
    loss, _ = record.build(None, {})(Fixed(), encodings(vision=vectors, text=vectors), {})
    expected = math.log(1 + math.exp(-0.64)) + 2 * math.log(2) + 0.5 * math.log(1 + math.exp(-0.4))
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="matryoshka = \\[4, 8\\]"):
        config = ImpConfig.from_size("tiny", common_dim=8)
        Contrastive(pairs=[("vision", "text")], matryoshka=[4, 8]).check_model(config, "films")


@pytest.mark.parametrize(
    "fields", [dict(matryoshka=[8, 4]), dict(matryoshka=[0]), dict(matryoshka=[4], matryoshka_weights=[1, 1])]
)
def test_widths_that_mean_nothing_are_refused(fields):
    with pytest.raises(ValueError, match="matryoshka"):
        Contrastive(pairs=[("vision", "text")], **fields)


def test_a_temperature_below_zero_is_held_at_the_floor():
    objective = Contrastive(pairs=[("vision", "text")]).build(None, {})
    objective.temperatures["vision_text"].value.data.fill_(-0.1)
    pooled = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss, metrics = objective(Fixed(), encodings(vision=pooled, text=pooled.detach()), {})
    loss.backward()
    assert metrics["temperature/vision_text"].item() == pytest.approx(1e-6)
    assert torch.isfinite(loss) and torch.isfinite(pooled.grad).all()
    assert objective.temperatures["vision_text"].value.grad.item() == 0.0  # as in the release: relu has no slope there


def test_the_temperature_is_computed_in_float32():
    objective = build_objective({"kind": "contrastive", "weight": 2.0, "pairs": [["vision", "text"]]}, None)
    assert isinstance(objective, ContrastiveObjective)
    assert objective.bfloat16().temperatures["vision_text"]().dtype == torch.float32


def test_labels_matter_only_when_equal_is_asked_for():
    pooled = encodings(vision=F.normalize(torch.randn(3, 4), dim=1), text=F.normalize(torch.randn(3, 4), dim=1))
    diagonal = Contrastive(pairs=[("vision", "text")]).build(None, {})
    assert torch.equal(diagonal(Fixed(), pooled, {})[0], diagonal(Fixed(), pooled, {"label": torch.zeros(3).long()})[0])
