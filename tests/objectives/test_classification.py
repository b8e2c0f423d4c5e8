"""Classification by softmax and by sigmoid, of one label and of several, against sums written out in float64.

Shapes: B samples, D width, N classes.
"""

from math import exp, log
from types import SimpleNamespace

import pytest
import torch

from imp_ds.objectives import build_objective
from imp_ds.objectives.classification import ClassificationObjective

WIDTH, CLASSES = 6, 5
CONFIG = SimpleNamespace(hidden_size=WIDTH)
INDEX = torch.tensor([4, 0, 2, 2])
SEVERAL = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 1]])


def spec(**changes) -> dict:
    return {"kind": "classification", "modality": "audio", "num_classes": CLASSES, **changes}


def run(objective, pooled_BD, label):
    return objective(None, {"audio": SimpleNamespace(pooled_BD=pooled_BD)}, {"label": label})


def softmax_loss(logits_BN, member_BN, smoothing: float):
    """-sum_n q_n log p_n, q the normalised membership mixed with the uniform distribution; mean over samples."""
    share_BN = member_BN / member_BN.sum(1, keepdim=True)
    share_BN = share_BN * (1 - smoothing) + smoothing / member_BN.shape[1]
    log_p_BN = (logits_BN.exp() / logits_BN.exp().sum(1, keepdim=True)).log()
    return -(share_BN * log_p_BN).sum(1).mean()


def sigmoid_loss(logits_BN, member_BN, smoothing: float):
    """-[y log s + (1 - y) log(1 - s)], y pulled towards 1/2; mean over samples and classes."""
    target_BN = member_BN * (1 - smoothing) + smoothing / 2
    s_BN = 1 / (1 + (-logits_BN).exp())
    return -(target_BN * s_BN.log() + (1 - target_BN) * (1 - s_BN).log()).mean()


@pytest.mark.parametrize("loss_name, reference", [("softmax", softmax_loss), ("sigmoid", sigmoid_loss)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("label", [INDEX, SEVERAL], ids=["index", "several"])
def test_loss_and_gradients_equal_float64(loss_name, reference, smoothing, label):
    torch.manual_seed(0)
    objective = build_objective(spec(loss=loss_name, label_smoothing=smoothing), CONFIG)
    pooled_BD = torch.randn(4, WIDTH, requires_grad=True)
    loss, _ = run(objective, pooled_BD, label)
    loss.backward()

    weight, bias = (p.detach().double().requires_grad_() for p in (objective.head.weight, objective.head.bias))
    exact_BD = pooled_BD.detach().double().requires_grad_()
    member_BN = torch.eye(CLASSES).double()[label] if label.ndim == 1 else label.double()
    expected = reference(exact_BD @ weight.T + bias, member_BN, smoothing)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pooled_BD.grad.double(), exact_BD.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(objective.head.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(objective.head.bias.grad.double(), bias.grad, rtol=1e-4, atol=1e-6)


def identity_head(loss: str) -> ClassificationObjective:
    objective = build_objective(spec(num_classes=3, loss=loss), SimpleNamespace(hidden_size=3))
    objective.head.weight.data, objective.head.bias.data = torch.eye(3), torch.zeros(3)
    return objective


def test_softmax_and_accuracy_by_hand():
    # logits (1, 0, 0) of class 0: ln(e + 2) - 1; (0, 0, 2) of class 1: ln(e^2 + 2)
    pooled_BD = torch.tensor([[1.0, 0, 0], [0, 0, 2]])
    loss, metrics = run(identity_head("softmax"), pooled_BD, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((log(exp(1) + 2) - 1 + log(exp(2) + 2)) / 2, rel=1e-5)
    assert metrics["accuracy/audio"].item() == 0.5


def test_sigmoid_by_hand():
    # logits (0, 0, 0) cost ln 2 in each class; (0, 0, 2) with only class 2 present: ln 2 twice and ln(1 + e^-2)
    loss, _ = run(identity_head("sigmoid"), torch.tensor([[0.0, 0, 0], [0, 0, 2]]), torch.tensor([1, 2]))
    assert loss.item() == pytest.approx((5 * log(2) + log(1 + exp(-2))) / 6, rel=1e-5)


def test_with_several_labels_any_of_them_is_right():
    pooled_BD = torch.tensor([[3.0, 2, 1], [3, 2, 1]])
    _, metrics = run(identity_head("softmax"), pooled_BD, torch.tensor([[1.0, 0, 1], [0, 1, 1]]))
    assert metrics["accuracy/audio"].item() == 0.5 and not metrics["accuracy/audio"].requires_grad


def test_a_sample_without_any_label_stays_finite():
    loss, metrics = run(identity_head("softmax"), torch.tensor([[1.0, 0, 0]]), torch.zeros(1, 3))
    assert loss.item() == 0.0 and metrics["accuracy/audio"].item() == 0.0


def test_the_loss_is_float32_in_a_bfloat16_model():
    objective = build_objective(spec(), CONFIG).bfloat16()
    assert run(objective, torch.randn(4, WIDTH).bfloat16(), INDEX)[0].dtype == torch.float32


def test_built_from_its_spec():
    fields = {"num_classes": 4, "loss": "sigmoid", "label_smoothing": 0.2, "weight": 3}
    objective = build_objective(spec(**fields), SimpleNamespace(hidden_size=8))
    assert isinstance(objective, ClassificationObjective) and objective.head.weight.shape == (4, 8)
    assert (objective.modality, objective.loss, objective.label_smoothing) == ("audio", "sigmoid", 0.2)
