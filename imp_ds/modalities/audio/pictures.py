"""Patches of a batch back to spectrograms. Dropped tokens are grey.

Shapes: B samples, L tokens of an example, P raw values of a patch, F spectrogram frames, M mel bins.
"""

import numpy as np

from imp_ds.modalities.pictures import GREY, enlarged, side_by_side, steps_of


def spectrograms_BFM(inputs: dict, patch: list[int], mel_bins: int) -> np.ndarray:
    """Spectrogram of each sample, float32 [B, F, M], from `input_features` and `feature_positions`; NaN where dropped."""
    long, high = patch
    values, positions = inputs["input_features"].float().numpy(), inputs["feature_positions"].numpy()
    steps = steps_of(positions[..., 0])
    cells = np.full((len(values), steps, mel_bins // high, long, high), np.nan, dtype=np.float32)
    index = np.rint(positions * np.array([steps, mel_bins // high])).astype(int)
    rows = np.arange(len(values))[:, None]
    cells[rows, index[..., 0], index[..., 1]] = values.reshape(*values.shape[:2], long, high)
    return cells.transpose(0, 1, 3, 2, 4).reshape(len(values), steps * long, mel_bins)


def coloured(spectrogram_FM: np.ndarray) -> np.ndarray:
    """A spectrogram as a picture, uint8 [M, F, 3]: time to the right, frequency upwards, bright is loud, dropped is grey."""
    from matplotlib import colormaps

    low, high = np.nanmin(spectrogram_FM), np.nanmax(spectrogram_FM)
    scaled = (spectrogram_FM - low) / max(float(high - low), 1e-6)
    picture = (colormaps["magma"](np.nan_to_num(scaled))[..., :3] * 255).astype(np.uint8)
    picture[np.isnan(spectrogram_FM)] = GREY
    return picture.transpose(1, 0, 2)[::-1]


def audio_pictures(inputs: dict, patch: list[int], mel_bins: int) -> dict[str, np.ndarray]:
    """"spectrograms" in a row, uint8 [H, W, 3]."""
    pictures = [coloured(one) for one in spectrograms_BFM(inputs, patch, mel_bins)]
    return {"spectrograms": side_by_side([enlarged(picture) for picture in pictures])}
