"""Pictures to patches: order of values, coordinates, DropToken, frames of a clip."""

import numpy as np
import pytest
from PIL import Image

from imp_ds.errors import UserError
from imp_ds.modalities import vision


def counting_clip(frames, height, width):
    """uint8 [T, H, W, 3] whose values tell their place: 100 t + 10 y + x in red, plus 1 and 2 in green and blue."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    return ((100 * t + 10 * y + x)[..., None] + np.array([0, 1, 2])).astype(np.uint8)


def test_patches_are_in_the_order_time_row_column_and_hold_frame_row_column_channel():
    clip = counting_clip(2, 4, 4)
    out = vision.preprocess(clip, 2, 4, 4, (1, 2, 2))
    assert out["pixel_values"].shape == (2 * 2 * 2, 1 * 2 * 2 * 3) and out["pixel_values"].dtype == np.uint8
    # frame 0, top right patch: rows 0 and 1, columns 2 and 3
    assert out["pixel_values"][1].tolist() == [2, 3, 4, 3, 4, 5, 12, 13, 14, 13, 14, 15]
    # frame 1, bottom left patch: rows 2 and 3, columns 0 and 1
    assert out["pixel_values"][6].tolist() == [120, 121, 122, 121, 122, 123, 130, 131, 132, 131, 132, 133]
    assert out["pixel_positions"][1].tolist() == [0.0, 0.0, 0.5]
    assert out["pixel_positions"][6].tolist() == [0.5, 0.5, 0.0]


def test_an_image_fills_the_depth_of_a_patch_with_its_one_frame():
    image = counting_clip(1, 2, 2)
    out = vision.preprocess(image, 1, 2, 2, (4, 2, 2))
    assert out["pixel_values"].tolist() == [image.reshape(-1).tolist() * 4]
    assert out["pixel_positions"].tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "total,frames,expected",
    [(8, 8, list(range(8))), (16, 4, [2, 6, 10, 14]), (5, 1, [2]), (3, 8, [0, 1, 2, 2, 2, 2, 2, 2]), (10, 4, [1, 3, 6, 8])],
)
def test_frames_are_the_middles_of_equal_stretches(total, frames, expected):
    # 10 frames in 4 stretches of 2.5: middles 1.25, 3.75, 6.25, 8.75
    assert vision.clip_indices(total, frames).tolist() == expected


def test_drop_token_keeps_the_share_in_order_with_true_coordinates():
    clip = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    whole = vision.preprocess(clip, 4, 64, 64, (4, 16, 16))
    seen = np.zeros(16)
    for seed in range(200):
        part = vision.preprocess(clip, 4, 64, 64, (4, 16, 16), drop_rate=0.7, rng=np.random.default_rng(seed))
        kept = np.rint(part["pixel_positions"] @ [0, 16, 4]).astype(int)  # coordinates (0, row / 4, column / 4) to 4 row + column
        # int(0.3 * 16) = 4 tokens
        assert len(kept) == 4 and (np.diff(kept) > 0).all()
        np.testing.assert_array_equal(part["pixel_values"], whole["pixel_values"][kept])
        seen[kept] += 1
    # each token is kept with probability 1/4: 50 of 200, standard deviation sqrt(200 * 3/16) = 6.1; five of them
    assert np.abs(seen - 50).max() < 31


def test_resize_covers_and_crops_at_the_centre():
    wide = np.random.default_rng(0).integers(0, 256, (1, 8, 16, 3), dtype=np.uint8)
    assert vision.centre_box((8, 16), 4, 4) == (4.0, 0.0, 12.0, 8.0)
    # the same in two steps: the shorter side to 4 gives 4 x 8, of which the columns 2 to 5 are the centre
    small = np.asarray(Image.fromarray(wide[0]).resize((8, 4), Image.Resampling.BICUBIC))
    out = vision.preprocess(wide, 1, 4, 4, (1, 4, 4))["pixel_values"]
    np.testing.assert_array_equal(out.reshape(4, 4, 3), small[:, 2:6])


def test_a_picture_of_the_right_size_is_not_touched():
    clip = counting_clip(1, 16, 16)
    assert vision.resize(clip, vision.centre_box((16, 16), 16, 16), 16, 16) is clip


def test_random_crops_stay_inside_and_hold_their_share():
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = vision.random_box((30, 60), (0.5, 1.0), rng)
        assert 0 <= left < right <= 60 and 0 <= top < bottom <= 30
        assert 0.5 <= (right - left) * (bottom - top) / 1800 <= 1.0 + 1e-9


def test_flip_mirrors_half_of_the_calls():
    clip = counting_clip(1, 4, 4)
    plain = clip.reshape(-1).tolist()
    mirrored = clip[:, :, ::-1].reshape(-1).tolist()
    rng = np.random.default_rng(0)
    seen = [vision.preprocess(clip, 1, 4, 4, (1, 4, 4), flip=True, rng=rng)["pixel_values"][0].tolist() for _ in range(40)]
    assert all(values in (plain, mirrored) for values in seen)
    assert 8 <= seen.count(mirrored) <= 32


@pytest.mark.parametrize(
    "frames,size,options",
    [
        (6, 32, {}),
        (4, 30, {}),
        (4, 32, dict(drop_rate=0.5)),
        (4, 32, dict(drop_rate=1.0, rng=np.random.default_rng(0))),
        (4, 32, dict(flip=True)),
    ],
)
def test_what_cannot_be_is_refused(frames, size, options):
    with pytest.raises(UserError):
        vision.preprocess(np.zeros((8, 32, 32, 3), np.uint8), frames, size, size, (4, 16, 16), **options)
