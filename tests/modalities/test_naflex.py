"""Pictures at their own aspect ratio on the largest grid within a budget of patches (NaFlex); padding that nothing sees."""

import numpy as np
import pytest
import torch

from imp_ds.modalities.positions import grid_positions
from imp_ds.modalities.vision import patches
from imp_ds.modalities.vision.framing import grid_within
from imp_ds.modalities.vision.pictures import clips_BTHW3, vision_pictures
from imp_ds.modalities.vision.view import VisionView
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.modeling_imp import ImpModel
from imp_ds.models.initialization import initialize_seeded

SIZES = [(24, 24), (12, 40), (37, 15), (7, 90)]


def siglip2_grid(size, budget: int, patch: int) -> tuple[int, int]:
    """As transformers' `get_image_size_for_max_num_patches` finds it, by bisection of the scale; in patches. (That module wants
    torchvision.)"""
    low, high = 1e-6, 100.0
    at = lambda scale: tuple(max(1, int(np.ceil(length * scale / patch))) for length in size)  # noqa: E731
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if np.prod(at(middle)) <= budget else (low, middle)
    return at(low)


def test_the_grid_is_that_of_siglip2():
    draw = np.random.default_rng(0)
    for _ in range(300):
        size = tuple(int(x) for x in draw.integers(20, 2000, 2))
        budget = int(draw.choice([64, 256, 576]))
        assert grid_within(size, budget, (16, 16)) == siglip2_grid(size, budget, 16), (size, budget)


# by hand: 24 x 24 in 16 patches is 4 x 4. 12 x 40: columns are 10 / 3 of the rows, 2 x 7 = 14 is the last before 3 x 7 = 21.
@pytest.mark.parametrize("size, largest, expected", [
    ((24, 24), None, (4, 4)), ((12, 40), None, (2, 7)), ((40, 12), None, (7, 2)), ((1, 999), None, (1, 16)),
    ((1, 999), (4, 4), (1, 4)), ((12, 40), (4, 4), (2, 4)),
])  # fmt: skip
def test_grids_by_hand(size, largest, expected):
    assert grid_within(size, 16, (4, 4), largest) == expected


def pictures(sizes) -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    return [draw.integers(0, 256, (1, *size, 3), dtype=np.uint8) for size in sizes]


def inputs_of(clips, size=(16, 16), **options) -> dict[str, torch.Tensor]:
    found = patches.preprocess(clips, 1, size, (1, 4, 4), **options)
    return {name: torch.from_numpy(value) for name, value in found.items()}


def encoder(**settings) -> ImpModel:
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=50, common_dim=16)
    config = ImpConfig(**shape, vision_patch=(1, 4, 4), vision_max=(4, 64, 64), **settings)
    model = ImpModel(config).eval()
    initialize_seeded(model, 0, 0.02)
    return model


ENCODERS = {
    "dense": {},
    "table": dict(vision_positions="table", vision_registers=2),
    "expert choice": dict(num_experts=4, moe_layers="all"),
    "top-k": dict(num_experts=4, moe_layers=[1], router="top_k"),
}


def test_every_patch_of_a_picture_is_there_and_the_rest_is_marked():
    found = inputs_of(pictures(SIZES), naflex=True)
    count_B = [int(np.prod(grid_within(size, 16, (4, 4)))) for size in SIZES]
    assert found["pixel_mask"].sum(1).tolist() == count_B
    for row, (size, count) in enumerate(zip(SIZES, count_B)):
        assert found["pixel_mask"][row, :count].all()
        expected = torch.from_numpy(grid_positions(1, *grid_within(size, 16, (4, 4))))
        assert torch.equal(found["pixel_positions"][row, :count], expected)
        assert not found["pixel_values"][row, count:].any() and not found["pixel_positions"][row, count:].any()


@pytest.mark.parametrize("settings", ENCODERS.values(), ids=ENCODERS)
def test_a_picture_depends_on_nothing_beside_it(settings):
    """Nor on the padding: it is what its own grid alone gives, cut to its patches, without a mask."""
    model, clips = encoder(**settings), pictures(SIZES)
    with torch.no_grad():
        together = model.encode("vision", inputs_of(clips, naflex=True)).pooled_BD
        for row, size in enumerate(SIZES):
            rows, columns = grid_within(size, 16, (4, 4))
            own = inputs_of(clips[row : row + 1], (4 * rows, 4 * columns))
            seen = inputs_of(clips[row : row + 1], naflex=True)
            own["pixel_values"] = seen["pixel_values"][:, : rows * columns]  # not cut at the centre
            alone = model.encode("vision", own).pooled_BD
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=1e-6)


def test_padding_gets_no_gradient_and_no_expert():
    model = encoder(num_experts=4, moe_layers="all", group_examples=1).train()
    inputs = inputs_of(pictures(SIZES), naflex=True)
    values = (inputs["pixel_values"].float() / 127.5 - 1).requires_grad_()
    model.encode("vision", {**inputs, "pixel_values": values}).pooled_BD.square().sum().backward()
    assert not values.grad[~inputs["pixel_mask"]].any() and values.grad[inputs["pixel_mask"]].any(-1).all()


def test_dropping_takes_a_share_of_each_picture():
    rngs = [np.random.default_rng(row) for row in range(len(SIZES))]
    found = inputs_of(pictures(SIZES), naflex=True, drop_rate=0.5, rngs=rngs)
    assert found["pixel_values"].shape[1] == 8  # half of the budget
    assert found["pixel_mask"].sum(1).tolist() == [int(np.prod(grid_within(size, 16, (4, 4)))) // 2 for size in SIZES]


def test_the_processor_gives_the_same_and_keeps_it_when_saved(tmp_path):
    ImpImageProcessor(size=16, patch=(1, 4, 4), naflex=True).save_pretrained(tmp_path)
    processor = ImpImageProcessor.from_pretrained(tmp_path)
    found = processor([clip[0] for clip in pictures(SIZES)], return_tensors="pt")
    expected = inputs_of(pictures(SIZES), naflex=True)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())
    model = encoder()
    with torch.no_grad():
        output, encoding = model(**found), model.encode("vision", expected)
    assert torch.equal(output.vision_pooled, encoding.pooled_BD)


def test_a_sample_is_shown_without_its_padding():
    view = VisionView(height=16, width=16, naflex=True)
    (clip,) = clips_BTHW3(inputs_of(pictures([(12, 40)]), naflex=True), view, [1, 4, 4])
    assert clip.shape == (1, 8, 28, 3)


def test_samples_of_different_grids_are_shown_side_by_side():
    """96 high at least: 16 x 16 six times, 8 x 28 twelve times, with two columns of white between them."""
    view = VisionView(height=16, width=16, naflex=True)
    found = vision_pictures(inputs_of(pictures([(24, 24), (12, 40)]), naflex=True), view, [1, 4, 4])["pictures"]
    assert found.shape == (96, 96 + 2 + 336, 3)
    tall = vision_pictures(inputs_of(pictures([(24, 24), (90, 7)]), naflex=True), view, [1, 4, 4])["pictures"]
    assert tall.shape[0] >= 96 and (tall[96:, :96] == 255).all()


def test_two_ways_to_keep_the_aspect_ratio_are_refused():
    with pytest.raises(ValueError, match="two ways to keep the aspect ratio"):
        VisionView(keep_aspect=True, naflex=True)
