"""What the model is fed, made visible again: patches of a Batch back to pictures, film strips, spectrograms and captions.

Nothing is read from the corpus here, so what is shown is what went in, preprocessing mistakes included. Dropped tokens are
grey.

Shapes: B samples, L tokens of an example, P raw values of a patch, T frames, H height, W width, F spectrogram frames,
M mel bins.
"""

import html

import numpy as np

from imp_ds.tasks import Batch, Views
from imp_ds.terminal.printable import printable

GREY = 128
GAP = 2  # pixels between pictures of one image
SMALLEST = 96  # pixels: pictures are enlarged to at least this height, to be seen


def clips_BTHW3(inputs: dict, view, patch: list[int]) -> np.ndarray:
    """Frames of each sample, uint8 [B, T, H, W, 3], from `pixel_values` (uint8, patches in the order frame, row, column,
    channel) and `pixel_positions`. An image has one frame, and so have its patches. Under `keep_aspect` only the samples of
    one batch that have the same grid can be shown together: give one."""
    deep, high, wide = patch
    grid = (max(1, view.frames // deep), view.height // high, view.width // wide)
    if view.keep_aspect:
        grid = (grid[0], *(_steps(inputs["pixel_positions"].numpy()[..., axis]) for axis in (1, 2)))
    values = inputs["pixel_values"].numpy()
    deep = values.shape[-1] // (high * wide * 3)
    cells = np.full((len(values), *grid, deep, high, wide, 3), GREY, dtype=np.uint8)
    index = np.rint(inputs["pixel_positions"].numpy() * np.array(grid)).astype(int)
    rows = np.arange(len(values))[:, None]
    cells[rows, index[..., 0], index[..., 1], index[..., 2]] = values.reshape(*values.shape[:2], deep, high, wide, 3)
    clips = cells.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(values), grid[0] * deep, grid[1] * high, grid[2] * wide, 3)
    return clips[:, : view.frames]


def spectrograms_BFM(inputs: dict, patch: list[int], mel_bins: int) -> np.ndarray:
    """Spectrogram of each sample, float32 [B, F, M], from `input_features` and `feature_positions`; NaN where dropped."""
    long, high = patch
    values, positions = inputs["input_features"].float().numpy(), inputs["feature_positions"].numpy()
    steps = _steps(positions[..., 0])
    cells = np.full((len(values), steps, mel_bins // high, long, high), np.nan, dtype=np.float32)
    index = np.rint(positions * np.array([steps, mel_bins // high])).astype(int)
    rows = np.arange(len(values))[:, None]
    cells[rows, index[..., 0], index[..., 1]] = values.reshape(*values.shape[:2], long, high)
    return cells.transpose(0, 1, 3, 2, 4).reshape(len(values), steps * long, mel_bins)


def _steps(coordinates: np.ndarray) -> int:
    """Steps of an axis: coordinates are index / steps, so the smallest distance between two gives them."""
    positions = np.unique(coordinates)
    return round(1 / np.diff(positions).min()) if len(positions) > 1 else 1


def coloured(spectrogram_FM: np.ndarray) -> np.ndarray:
    """A spectrogram as a picture, uint8 [M, F, 3]: time to the right, frequency upwards, bright is loud, dropped is grey."""
    from matplotlib import colormaps

    low, high = np.nanmin(spectrogram_FM), np.nanmax(spectrogram_FM)
    scaled = (spectrogram_FM - low) / max(float(high - low), 1e-6)
    picture = (colormaps["magma"](np.nan_to_num(scaled))[..., :3] * 255).astype(np.uint8)
    picture[np.isnan(spectrogram_FM)] = GREY
    return picture.transpose(1, 0, 2)[::-1]


def side_by_side(pictures: list[np.ndarray], axis: int = 1) -> np.ndarray:
    """Pictures [H, W, 3] of one size in a row (axis 1) or a column (axis 0), with white between them."""
    shape = list(pictures[0].shape)
    shape[axis] = GAP
    parts = [part for picture in pictures for part in (picture, np.full(shape, 255, np.uint8))]
    return np.concatenate(parts[:-1], axis)


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Every pixel repeated until the picture is at least SMALLEST high."""
    times = -(-SMALLEST // picture.shape[0])
    return picture.repeat(times, 0).repeat(times, 1)


def batch_pictures(batch: Batch, views: Views, processor, count: int) -> dict[str, np.ndarray]:
    """Of the first `count` samples: "pictures" or "film_strips" (a film in each row), and "spectrograms"; uint8 [H, W, 3]."""
    found = {}
    if "vision" in batch.inputs:
        inputs = {name: tensor[:count] for name, tensor in batch.inputs["vision"].items()}
        each = [{name: tensor[i : i + 1] for name, tensor in inputs.items()} for i in range(len(inputs["pixel_values"]))]
        clips = [clips_BTHW3(one, views.vision, processor.image_processor.patch)[0] for one in each]
        if views.vision.frames == 1:
            found["pictures"] = side_by_side([enlarged(clip[0]) for clip in clips])
        else:
            found["film_strips"] = side_by_side([side_by_side([enlarged(frame) for frame in clip]) for clip in clips], axis=0)
    if "audio" in batch.inputs:
        inputs = {name: tensor[:count] for name, tensor in batch.inputs["audio"].items()}
        extractor = processor.feature_extractor
        pictures = [coloured(one) for one in spectrograms_BFM(inputs, extractor.patch, extractor.feature_size)]
        found["spectrograms"] = side_by_side([enlarged(picture) for picture in pictures])
    return found


def batch_captions(batch: Batch, tokenizer, count: int) -> str | None:
    """A Markdown table of the first `count` samples: what the tokens say, and the label; None without either."""
    columns = {}
    if "text" in batch.inputs:
        ids = batch.inputs["text"]["input_ids"][:count]
        columns["caption, from its tokens"] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    label = batch.targets.get("label")
    if label is not None and label.dim() == 1:
        columns["label"] = label[:count].tolist()
    if not columns:
        return None
    return sample_table(columns)


def _cell(value) -> str:
    """As a cell of a table, of which it can end neither the cell nor the line, and without markup."""
    return html.escape(printable(value), quote=False).replace("|", "\\|")


def sample_table(columns: dict[str, list]) -> str:
    """A Markdown table with a row for each sample."""
    lines = ["| sample | " + " | ".join(columns) + " |", "|" + " --- |" * (len(columns) + 1)]
    for number, row in enumerate(zip(*columns.values()), start=1):
        lines.append(f"| {number} | " + " | ".join(_cell(cell) for cell in row) + " |")
    return "\n".join(lines)
