"""What training changes at random in a picture. All draws come from the sample's own generator.

Shapes: T frames of a clip, H height, W width, C = 3 channels, N = T * H * W pixels.
"""

import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114])  # grey of red, green, blue (ITU-R BT.601)
_AT_A_TIME = 1 << 14  # pixels that are recoloured together: their floats stay in the cache


def mirror(clip_THWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Left and right exchanged, in half of the calls; a view."""
    return clip_THWC[:, :, ::-1] if rng.random() < 0.5 else clip_THWC


def recolour(clip_THWC: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation each times a factor, uniform in 1 - most .. 1 + most and the same in all frames: uint8.

    Brightness is relative to black, contrast to the clip's mean grey, saturation to each pixel's grey. One after another they
    are one linear function of a pixel's colours, so a value is rounded and clipped only once.
    """
    brightness, contrast, saturation = rng.uniform(1.0 - most, 1.0 + most, 3)
    clip_THWC = np.ascontiguousarray(clip_THWC)
    mean_3 = clip_THWC.reshape(-1, 3 * clip_THWC.shape[2]).sum(0, dtype=np.uint64).reshape(-1, 3).sum(0) / (clip_THWC.size / 3)
    mix_33 = brightness * contrast * (saturation * np.eye(3) + (1.0 - saturation) * np.tile(_LUMA, (3, 1)))
    mix_33 = np.ascontiguousarray(mix_33.T, np.float32)
    shift = np.float32((1.0 - contrast) * brightness * float(mean_3 @ _LUMA) + 0.5)  # 0.5: cutting off then rounds
    pixels_N3, changed_N3 = clip_THWC.reshape(-1, 3), np.empty((clip_THWC.size // 3, 3), np.uint8)
    for first in range(0, len(pixels_N3), _AT_A_TIME):
        part = slice(first, first + _AT_A_TIME)
        colours_N3 = pixels_N3[part].astype(np.float32) @ mix_33
        colours_N3 += shift
        changed_N3[part] = np.clip(colours_N3, 0.0, 255.0, out=colours_N3)
    return changed_N3.reshape(clip_THWC.shape)
