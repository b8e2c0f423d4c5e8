"""Named classes: scores by names at the start, a head that learns beside them, and a linear probe.

Shapes: B samples, N classes, C width of the common space.
"""

import pytest
import torch
import torch.nn.functional as F

from imp_ds import ImpConfig, ImpForPreTraining
from imp_ds.modalities.positions import grid_positions
from imp_ds.models.imp.likelihood import encode_with_spe
from imp_ds.objectives import NamedClasses, task_entry
from imp_ds.tasks import Batch

SHAPE = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vision_patch=(1, 4, 4),
    vision_max=(1, 8, 8), audio_patch=(4, 4), audio_max=(16, 16), vocab_size=20, text_max=8, common_dim=12, mask_token_id=3,
)  # fmt: skip
PROMPTS = [[[5, 6], [7]], [[8, 9, 10], [11, 7]], [[12], [13, 7, 5]]]  # three classes in two templates
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
PAIR, HEAD = dict(prompts=PROMPTS, length=4, temperature=0.25), dict(prompts=PROMPTS, length=4, family="vision_classes")


def make(seed: int = 0, config: dict = {}, **spec) -> ImpForPreTraining:
    classes = NamedClasses(modality="vision", names=["a", "b", "c"], **spec)
    torch.manual_seed(seed)
    return ImpForPreTraining(ImpConfig(**SHAPE, **config, objectives={"kinds": task_entry([classes.model_dump()])}))


def batch(seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 255, (6, 4, 48), dtype=torch.uint8, generator=draw)
    positions = torch.from_numpy(grid_positions(1, 2, 2)).expand(6, -1, -1)
    return Batch("kinds", {"vision": {"pixel_values": pixels, "pixel_positions": positions}}, {"label": LABELS})


def logits(model, of: Batch) -> torch.Tensor:
    return model.objectives["kinds"].parts[0].logits(model.imp, model.encode(of))


def by_hand(model, of: Batch, spec: dict) -> torch.Tensor:
    """The scores of the names, one prompt at a time, without padding."""
    classes = []
    for templates in spec["prompts"]:
        vectors = []
        for ids in templates:
            inputs = {"input_ids": torch.tensor([ids])}
            if "family" in spec:
                vectors.append(model.imp.likelihood(encode_with_spe(model.imp, [("text", inputs, None)]).pooled_BD))
            else:
                vectors.append(model.imp.project(model.imp.encode("text", inputs).pooled_BD, "text", "vision"))
        classes.append(F.normalize(torch.cat(vectors).mean(0), dim=0))
    if "family" in spec:
        read = model.imp.likelihood(encode_with_spe(model.imp, [("vision", of.inputs["vision"], None)]).pooled_BD)
        return read @ torch.stack(classes).T / 0.07  # the scale that the head begins with
    read = model.imp.project(model.imp.encode("vision", of.inputs["vision"]).pooled_BD, "vision", "text")
    return read @ torch.stack(classes).T / 0.25


@pytest.mark.parametrize("spec", [PAIR, HEAD], ids=["pair", "likelihood"])
def test_at_the_start_the_logits_are_the_scores_of_the_names(spec):
    model = make(**spec).eval()
    expected = by_hand(model, batch(), spec)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits(model, batch()), expected, rtol=1e-4, atol=1e-4)


def test_w_weighs_the_names_and_the_head_is_added():
    model = make(**PAIR).eval()
    scores = by_hand(model, batch(), PAIR)
    head = model.objectives["kinds"].parts[0].head
    with torch.no_grad():
        head.similarity.fill_(0.5)
        head.bias.copy_(torch.tensor([1.0, 0.0, -2.0]))
        head.weight[1] = 0.1
    pooled = model.encode(batch())["vision"].pooled_BD
    expected = 0.5 * scores + torch.stack([torch.ones(6), 0.1 * pooled.sum(1), torch.full((6,), -2.0)], dim=1)
    torch.testing.assert_close(logits(model, batch()), expected, rtol=1e-4, atol=1e-4)


def test_a_linear_probe_encodes_no_names():
    model = make()
    assert model.encode(batch()).keys() == {"vision"}
    loss, metrics, _ = model(batch())
    assert loss.item() == pytest.approx(torch.tensor(3.0).log().item())  # all three alike
    assert model.objectives["kinds"].parts[0].head.similarity is None and metrics.keys() >= {"accuracy/vision", "loss/router"}


@pytest.mark.parametrize("spec", [PAIR, HEAD], ids=["pair", "likelihood"])
def test_the_loss_is_the_cross_entropy_and_its_gradient_reaches_names_prompts_and_head(spec):
    model = make(config=dict(prompt_length=2, candidate_prompts="separate"), **spec).train()
    loss, metrics, _ = model(batch())
    found = logits(model, batch())
    torch.testing.assert_close(loss, F.cross_entropy(found, LABELS))
    assert metrics["accuracy/vision"].item() == (found.argmax(1) == LABELS).float().mean().item()
    loss.backward()
    vectors = model.imp.blocks[0].attention.prompts.vectors.grad
    assert vectors[0].abs().max() > 0 and vectors[1].abs().max() > 0  # of pictures, of names
    head = model.objectives["kinds"].parts[0].head
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())


def test_an_answer_is_the_chance_of_each_name():
    model = make(**PAIR).eval()
    torch.testing.assert_close(model.answer(**batch().inputs["vision"]), logits(model, batch()).softmax(1))
