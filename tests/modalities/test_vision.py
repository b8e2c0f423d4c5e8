"""Pictures to patches: order of values, coordinates, DropToken, frames of a clip."""

import numpy as np
import pytest
import torch
from PIL import Image

from imp_ds.errors import UserError
from imp_ds.modalities.vision import augmentation, framing
from imp_ds.modalities.vision import patches as vision


def counting_clip(frames, height, width):
    """uint8 [T, H, W, 3] whose values tell their place: 100 t + 10 y + x in red, plus 1 and 2 in green and blue."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    return ((100 * t + 10 * y + x)[..., None] + np.array([0, 1, 2])).astype(np.uint8)


def one(clip_THWC, *arguments, rng=None, **settings):
    """`vision.preprocess` of one clip."""
    out = vision.preprocess([clip_THWC], *arguments, rngs=rng and [rng], **settings)
    return {name: array[0] for name, array in out.items()}


def test_patches_are_in_the_order_time_row_column_and_hold_frame_row_column_channel():
    clip = counting_clip(2, 4, 4)
    out = one(clip, 2, (4, 4), (1, 2, 2))
    assert out["pixel_values"].shape == (2 * 2 * 2, 1 * 2 * 2 * 3) and out["pixel_values"].dtype == np.uint8
    # frame 0, top right patch: rows 0 and 1, columns 2 and 3
    assert out["pixel_values"][1].tolist() == [2, 3, 4, 3, 4, 5, 12, 13, 14, 13, 14, 15]
    # frame 1, bottom left patch: rows 2 and 3, columns 0 and 1
    assert out["pixel_values"][6].tolist() == [120, 121, 122, 121, 122, 123, 130, 131, 132, 131, 132, 133]
    assert out["pixel_positions"][1].tolist() == [0.0, 0.0, 0.5]
    assert out["pixel_positions"][6].tolist() == [0.5, 0.5, 0.0]


def test_an_image_has_patches_of_its_one_frame():
    image = counting_clip(1, 2, 2)
    out = one(image, 1, (2, 2), (4, 2, 2))
    assert out["pixel_values"].tolist() == [image.reshape(-1).tolist()]
    assert out["pixel_positions"].tolist() == [[0.0, 0.0, 0.0]]
    film = one(np.repeat(image, 8, 0), 8, (2, 2), (4, 2, 2))
    assert film["pixel_values"].tolist() == [image.reshape(-1).tolist() * 4] * 2  # two steps of four frames


def test_an_image_is_embedded_as_the_video_of_its_frame_repeated():
    """Values and gradients, in float64: weights of frame f meet the same pixels, whether they are there once or four times."""
    torch.manual_seed(0)
    once, repeated = (vision.PatchProjection(4, 12, 5).double() for _ in range(2))
    repeated.load_state_dict(once.state_dict())
    values_BLP = torch.randn(2, 3, 12, dtype=torch.float64)
    seen = once(values_BLP), repeated(values_BLP.repeat(1, 1, 4))
    torch.testing.assert_close(*seen, rtol=1e-12, atol=1e-12)
    for layer, out in zip((once, repeated), seen):
        out.square().sum().backward()
    torch.testing.assert_close(once.weight.grad, repeated.weight.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(once.bias.grad, repeated.bias.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(once(values_BLP.repeat(1, 1, 4)), seen[1], rtol=0, atol=0)  # and a video is what it was


@pytest.mark.parametrize(
    "total,frames,expected",
    [(8, 8, list(range(8))), (16, 4, [2, 6, 10, 14]), (5, 1, [2]), (3, 8, [0, 1, 2, 2, 2, 2, 2, 2]), (10, 4, [1, 3, 6, 8])],
)
def test_frames_are_the_middles_of_equal_stretches(total, frames, expected):
    # 10 frames in 4 stretches of 2.5: middles 1.25, 3.75, 6.25, 8.75
    assert vision.clip_indices(total, frames).tolist() == expected


def test_drop_token_keeps_the_share_in_order_with_true_coordinates():
    clip = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    full = one(clip, 4, (64, 64), (4, 16, 16))
    seen = np.zeros(16)
    for seed in range(200):
        part = one(clip, 4, (64, 64), (4, 16, 16), drop_rate=0.7, rng=np.random.default_rng(seed))
        kept = np.rint(part["pixel_positions"] @ [0, 16, 4]).astype(int)  # coordinates (0, row / 4, column / 4) to 4 row + column
        # int(0.3 * 16) = 4 tokens
        assert len(kept) == 4 and (np.diff(kept) > 0).all()
        np.testing.assert_array_equal(part["pixel_values"], full["pixel_values"][kept])
        seen[kept] += 1
    # each token is kept with probability 1/4: 50 of 200, standard deviation sqrt(200 * 3/16) = 6.1; five of them
    assert np.abs(seen - 50).max() < 31


def test_resize_covers_and_crops_at_the_centre():
    wide = np.random.default_rng(0).integers(0, 256, (1, 8, 16, 3), dtype=np.uint8)
    assert framing.centre_box((8, 16), 1.0) == (0, 4, 8, 8)
    # Pillow's bicubic of the columns 4 to 11, equal but for the rounding of its weights
    small = np.asarray(Image.fromarray(wide[0, :, 4:12]).resize((4, 4), Image.Resampling.BICUBIC))
    out = one(wide, 1, (4, 4), (1, 4, 4))["pixel_values"].reshape(4, 4, 3)
    assert np.abs(out.astype(int) - small).max() <= 2


@pytest.mark.parametrize("size", [(20, 30), (7, 90), (61, 45), (64, 64)])
def test_resizing_is_pillows_bicubic(size):
    clip = np.random.default_rng(1).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    resized = framing.resize(clip, size)
    for frame, out in zip(clip, resized):
        expected = np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC))
        assert np.abs(out.astype(int) - expected).max() <= 4  # of noise; both round their weights


def test_a_picture_of_the_right_size_is_not_touched():
    clip = counting_clip(1, 16, 16)
    assert framing.resize(clip, (16, 16)) is clip


def test_random_crops_stay_inside_and_hold_their_share():
    rng = np.random.default_rng(0)
    for _ in range(200):
        box = framing.random_box((300, 600), 1.0, (0.5, 1.0), (0.5, 2.0), rng)
        assert box.top >= 0 and box.left >= 0 and box.top + box.height <= 300 and box.left + box.width <= 600
        # the centre square, where no crop fits in ten attempts, has half of the area too
        assert 0.495 <= box.height * box.width / 180_000 <= 1.0
        assert 0.49 <= box.width / box.height <= 2.02


@pytest.mark.parametrize("size, grid", [((100, 100), (4, 4)), ((50, 200), (2, 8)), ((200, 50), (8, 2)), ((90, 160), (3, 6))])
def test_a_picture_keeps_its_aspect_ratio_on_a_grid_of_its_own(size, grid):
    # 16 patches of 8 x 8 at least: of 3 x 6 = 18 for 9 : 16 (3 x 5.33) two are left out
    assert framing.own_grid(size, (4, 4), (8, 8)) == grid
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (1, *size, 3), dtype=np.uint8)
    full = framing.resize(clip, (grid[0] * 8, grid[1] * 8))[0]
    for seed in (None, 3):
        out = one(clip, 1, (32, 32), (1, 8, 8), keep_aspect=True, rng=seed and np.random.default_rng(seed))
        assert out["pixel_values"].shape == (16, 192) and out["pixel_positions"].shape == (16, 3)
        places = np.rint(out["pixel_positions"][:, 1:] * grid).astype(int)
        assert len(set(map(tuple, places.tolist()))) == 16
        for values, (row, column) in zip(out["pixel_values"], places):
            np.testing.assert_array_equal(values.reshape(8, 8, 3), full[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8])


def test_a_grid_stays_within_the_positions():
    assert framing.own_grid((10, 1000), (4, 4), (8, 8)) == (1, 16)
    assert framing.own_grid((10, 1000), (4, 4), (8, 8), (8, 8)) == (2, 8)


def test_mirror_turns_half_of_the_calls():
    clip, rng = counting_clip(2, 4, 4), np.random.default_rng(0)
    seen = [augmentation.mirror(clip, rng) for _ in range(40)]
    turned = [bool((out == clip[:, :, ::-1]).all()) for out in seen]
    assert all(turn or (out == clip).all() for turn, out in zip(turned, seen)) and 8 <= sum(turned) <= 32


def test_recolour_is_brightness_then_contrast_then_saturation():
    clip = np.random.default_rng(0).integers(60, 180, (2, 8, 8, 3), dtype=np.uint8)
    out = augmentation.recolour(clip, 0.3, np.random.default_rng(5)).astype(float)
    brightness, contrast, saturation = np.random.default_rng(5).uniform(0.7, 1.3, 3)
    luma = np.array([0.299, 0.587, 0.114])
    bright = clip * brightness
    mean = (bright @ luma).mean()
    strong = mean + contrast * (bright - mean)
    grey = (strong @ luma)[..., None]
    expected = np.clip(grey + saturation * (strong - grey), 0, 255)
    assert np.abs(out - expected).max() <= 1.0


@pytest.mark.parametrize(
    "frames,size,options",
    [
        (6, 32, {}),
        (4, 30, {}),
        (4, 32, dict(drop_rate=0.5)),
        (4, 32, dict(drop_rate=1.0, rng=np.random.default_rng(0))),
    ],
)
def test_what_cannot_be_is_refused(frames, size, options):
    with pytest.raises(UserError):
        one(np.zeros((8, 32, 32, 3), np.uint8), frames, (size, size), (4, 16, 16), **options)
