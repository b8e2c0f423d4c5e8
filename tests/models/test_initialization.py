"""A model whose modules have no rule of initialisation is refused by name; what a rule of its own draws is of the seed."""

import pytest
import torch
from torch import nn

from imp_ds.errors import UserError
from imp_ds.models.initialization import initialize_seeded


def _empty(model: nn.Module) -> nn.Module:
    """The model as `build_module` makes it before it is initialised."""
    return model.to("meta").to_empty(device="cpu")


class Filled(nn.Module):
    """A convolution and a buffer, filled by the module around them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3)
        self.register_buffer("bias_E", torch.empty(4), persistent=True)

    def initialize_parameters(self) -> None:
        nn.init.zeros_(self.conv.bias)
        nn.init.normal_(self.conv.weight)
        self.bias_E.zero_()


class Counted(nn.Linear):
    """A linear layer with a buffer, which the rule of linear layers does not know."""

    def __init__(self):
        super().__init__(2, 2)
        self.register_buffer("count", torch.zeros(1), persistent=False)


@pytest.mark.parametrize(
    "module, said",
    [(nn.Conv1d(2, 3, 3), "Conv1d, whose weight, bias"), (nn.BatchNorm1d(2), "BatchNorm1d, whose weight, bias, running_mean"),
     (Counted(), "Counted, whose count")],
    ids=["conv", "norm", "buffer"],
)  # fmt: skip
def test_a_module_without_a_rule_is_refused_by_name_and_class(module, said):
    model = _empty(nn.Sequential(nn.Linear(2, 2), nn.Sequential(module)))
    with pytest.raises(UserError, match=rf"(?s)a module of the model: 1.0\b.*{said}.*initialize_parameters\(\)"):
        initialize_seeded(model, 0, 0.02)


def test_a_rule_of_its_own_covers_what_is_inside_and_depends_on_the_seed_and_the_name():
    drawn = []
    for seed, before in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(before)
        model = _empty(nn.Sequential(Filled(), Filled()))
        expected = torch.random.get_rng_state()
        initialize_seeded(model, seed, 0.02)
        assert torch.equal(torch.random.get_rng_state(), expected)
        assert all(part.bias_E.eq(0).all() and part.conv.bias.eq(0).all() for part in model)
        drawn.append([part.conv.weight for part in model])
    assert torch.equal(drawn[0][0], drawn[1][0]) and torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][0], drawn[0][1]) and not torch.equal(drawn[0][0], drawn[2][0])
