"""Sensors: windows of several channels at a fixed rate, as an accelerometer gives them, cut into patches in time.

A field of a source holds the steps of a window, one list for each or all of them in one list, step by step; or it is or names a
CSV file with a row for each step. The rate is that of the data: nothing is resampled.

Shapes: B samples, N steps of a window, C channels, K patches of it that are kept, P = steps of a patch * C, D width.
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from numbers import Real
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import nn

from imp_ds.errors import UserError
from imp_ds.modalities.draws import below
from imp_ds.modalities.drop_token import kept_count, kept_tokens, write_tokens
from imp_ds.modalities.in_turn import in_turn
from imp_ds.modalities.media import BadSample, Media, shown
from imp_ds.modalities.modality import PatchModality, Preprocessed, register_modality
from imp_ds.modalities.pictures import GREY, side_by_side
from imp_ds.modalities.positions import FactoredPositions
from imp_ds.records import Record

_MOST_VALUES = 1 << 26  # of a window: 256 MiB of float32
_LEAST_STD = 1e-6  # of a channel that never changes
_HEIGHT, _WIDTH = 96, 2  # of a picture of traces; pixels of a step
_COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75))


class SensorsView(Record):
    """How a task sees sensors: `seconds` of them. A longer window is cut, at random in training; a shorter one is padded at its
    end with the channels' means."""

    seconds: float = Field(5.0, gt=0, description="length of the window in seconds")
    rate_hz: float = Field(25.0, gt=0, description="steps a second, those of the data")
    channels: int = Field(1, ge=1, description="channels of the data")
    columns: list[str] = Field([], description="of CSV files: the columns that are channels, in this order; none: all")
    drop_rate: float = Field(0.0, ge=0.0, lt=1.0, description="share of tokens dropped in training")

    @property
    def steps(self) -> int:
        return max(1, round(self.seconds * self.rate_hz))


class SensorsOptions(Record):
    """Sizes of a model that reads sensors."""

    patch: int = Field(5, ge=1, description="steps of a patch, of all channels together")
    max: int = Field(1000, ge=1, description="steps of the longest window")
    channels: int = Field(1, ge=1, description="channels; in a run those of the tasks' views")


class SensorsProcessing(Record):
    """What a model's processor knows of sensors: the window, and each channel's mean and deviation."""

    view: SensorsView
    patch: int
    mean: list[float]
    std: list[float]

    def inputs(self, given) -> dict[str, np.ndarray]:
        """Windows to the model's inputs, without anything random.

        Args:
            given: numbers of shape [N, C] or [N * C], or the path, the bytes or the text of a CSV file; or a list of those.

        Raises UserError for what is none of these.
        """
        try:
            windows = [_window(_raw(one), self.view) for one in _listed(given, self.view.channels)]
        except BadSample as bad:
            raise UserError("sensors cannot be read", got=str(bad), allowed="numbers [steps, channels], or a CSV file") from None
        return _preprocess(windows, self.view, self, None, np.empty)


class SensorsEmbedding(nn.Module):
    """Patches in time and their positions to tokens.

    forward takes `sensor_values`, float [B, K, P], and `sensor_positions`, [B, K, 1] in [0, 1); it returns tokens [B, K, D] and
    None: no token is padding.
    """

    def __init__(self, config):
        super().__init__()
        self.patch = nn.Linear(config.sensors_patch * config.sensors_channels, config.hidden_size)
        buckets = [config.sensors_max // config.sensors_patch]
        self.positions = FactoredPositions(buckets, config.hidden_size, config.layer_norm_eps)

    def forward(self, sensor_values: torch.Tensor, sensor_positions: torch.Tensor):
        values_BKP = sensor_values.to(self.positions.norm.weight.dtype)
        return self.patch(values_BKP) + self.positions(sensor_positions).to(values_BKP.dtype), None


@register_modality
class Sensors(PatchModality):
    """Windows of several channels, cut into patches in time."""

    kind = "sensors"
    what = "windows of sensors"
    column = "column of a window's steps: lists of numbers, or a CSV file or its name"
    missing = "no sensors"
    example = 'sensors=[window]'
    inputs = ("sensor_values", "sensor_positions")
    View, Options, Processing = SensorsView, SensorsOptions, SensorsProcessing
    axes = 1

    def read(self, value, where, row):
        return _numbers(value, where) if isinstance(value, (list, tuple, np.ndarray)) else row.media()

    def decode(self, raws, view, rngs, cache, augment, wanted):
        def drawn(raw, rng) -> np.ndarray:
            window_NC = _cached(raw, view, cache)
            spare = len(window_NC) - view.steps
            start = 0 if rng is None or spare <= 0 else below(spare + 1, rng)
            return window_NC if rng is None else window_NC[start : start + view.steps]

        return in_turn(drawn, raws, rngs)

    def windows(self, raw, view, cache, wanted):
        window_NC = _cached(raw, view, cache)
        last = len(window_NC) - view.steps
        starts = [*range(0, last, view.steps), last] if last > 0 else [0]
        return [window_NC[start : start + view.steps] for start in starts]

    def preprocess(self, samples, view, part, rngs, *, augment, text, empty):
        return Preprocessed(_preprocess(samples, view, part, rngs, empty))

    def processing(self, config, views, samples):
        _one_shape(views)
        values_NC = np.concatenate([np.zeros((0, config.sensors_channels), np.float32), *samples]).astype(np.float64)
        mean_C = values_NC.mean(0) if len(values_NC) else np.zeros(config.sensors_channels)
        std_C = np.maximum(values_NC.std(0), _LEAST_STD) if len(values_NC) else np.ones(config.sensors_channels)
        view = views[0].model_copy(update={"drop_rate": 0.0})
        return SensorsProcessing(view=view, patch=config.sensors_patch, mean=_rounded(mean_C), std=_rounded(std_C))

    def embedding(self, config):
        return SensorsEmbedding(config)

    def derive_options(self, views):
        _one_shape(views)
        return {"channels": views[0].channels}

    def grid(self, config, tokens, values):
        if tokens > self.most_tokens(config):
            raise UserError("more patches of sensors than the model has positions", got=tokens, allowed=self.most_tokens(config))
        return (tokens,)

    def tokens(self, view, config, settings, path):
        if view.channels != config.sensors_channels:
            got = f"{view.channels} channels, of a model of {config.sensors_channels}"
            raise UserError(f"{path}.channels are not the model's", got=got, fix="leave out model.sensors_channels")
        size = config.sensors_patch * math.ceil(view.steps / config.sensors_patch)  # the last patch is filled up
        return self.count((size,), config, [f"{path}.seconds"])

    def values(self, view, config):
        return config.sensors_patch * config.sensors_channels

    def facts(self, raw):
        try:
            values = _table(raw, []) if isinstance(raw, Media) else raw
        except BadSample:  # decoding says so
            return {}
        return {"sensor steps": len(values), "channels": values.shape[1]} if values.ndim == 2 else {"sensor values": values.size}

    def pictures(self, inputs, view, part):
        values_BKP, positions_BK1 = inputs["sensor_values"].float().numpy(), inputs["sensor_positions"].numpy()
        patches = math.ceil(view.steps / part.patch)
        cells = np.full((len(values_BKP), patches, part.patch, view.channels), np.nan, np.float32)
        index_BK = np.rint(positions_BK1[..., 0] * patches).astype(int)
        rows = np.arange(len(values_BKP))[:, None]
        cells[rows, index_BK] = values_BKP.reshape(*values_BKP.shape[:2], part.patch, view.channels)
        return {"traces": side_by_side([_traces(one.reshape(-1, view.channels)) for one in cells])}


def _one_shape(views: list[SensorsView]) -> None:
    """Raise UserError where views do not agree about the data."""
    shapes = sorted({(view.rate_hz, view.channels) for view in views})
    if len(shapes) > 1:
        got = " and ".join(f"{channels} channels at {rate:g} Hz" for rate, channels in shapes)
        fix = "give views.sensors of all tasks and evaluations the same rate_hz and channels"
        raise UserError("the views of sensors differ in rate or channels", got=got, fix=fix)


def _preprocess(
    windows: Sequence[np.ndarray], view: SensorsView, part: SensorsProcessing, rngs, empty: Callable
) -> dict[str, np.ndarray]:
    """`sensor_values` float32 [B, K, P] and `sensor_positions` float32 [B, K, 1] of windows [N, C]."""
    patches, drop_rate = math.ceil(view.steps / part.patch), 0.0 if rngs is None else view.drop_rate
    shape = len(windows), kept_count(patches, drop_rate)
    values_BKP = empty((*shape, part.patch * view.channels), np.float32)
    positions_BK1 = empty((*shape, 1), np.float32)
    mean_C, std_C = np.array(part.mean, np.float32), np.array(part.std, np.float32)
    for place, window_NC in enumerate(windows):
        start = max(0, len(window_NC) - view.steps) // 2  # the middle, where nothing was drawn
        steps_NC = window_NC[start : start + view.steps]
        padded = np.zeros((patches * part.patch, view.channels), np.float32)  # the mean of a standardised channel
        padded[: len(steps_NC)] = (steps_NC - mean_C) / std_C
        kept = kept_tokens(patches, patches, drop_rate, None if rngs is None else rngs[place])
        blocks = padded.reshape(patches, part.patch, view.channels)
        write_tokens(blocks, (patches,), kept, values_BKP[place], positions_BK1[place])
    return {"sensor_values": values_BKP, "sensor_positions": positions_BK1}


def _cached(raw, view: SensorsView, cache) -> np.ndarray:
    if not isinstance(raw, Media):
        return _window(raw, view)
    return cache.get((raw.name, "sensors", view.channels, *view.columns), lambda: _window(raw, view))


def _window(raw, view: SensorsView) -> np.ndarray:
    """float32 [N, C]. Raises BadSample for other numbers of channels, and for numbers that are not finite."""
    values, where = (_table(raw, view.columns), raw.name) if isinstance(raw, Media) else (raw, "a window")
    if values.ndim == 1 and values.size % view.channels == 0:
        values = values.reshape(-1, view.channels)
    if values.ndim != 2 or values.shape[1] != view.channels:
        got = "x".join(map(str, values.shape))
        raise BadSample("wrong column", f"{where} has {got} numbers, which are no steps of {view.channels} channels")
    if not len(values):
        raise BadSample("empty", where)
    if not np.isfinite(values).all():
        raise BadSample("unreadable sensors", f"{where} has numbers that are not finite")
    return values


def _numbers(value, where: str) -> np.ndarray:
    """float32 [N, C] or [N * C] of lists of numbers. Raises BadSample."""
    try:
        found = np.asarray(value)
    except ValueError:
        raise BadSample("wrong column", f"{where} has lists of unequal length: {shown(value)}") from None
    if found.dtype.kind not in "iuf" or found.ndim not in (1, 2):
        raise BadSample("wrong column", f"{where} is neither a list of numbers nor a list of such lists: {shown(value)}")
    if found.size > _MOST_VALUES:
        raise BadSample("too large", f"{where}: {found.size} numbers, more than {_MOST_VALUES}")
    return found.astype(np.float32)


def _table(media: Media, columns: list[str]) -> np.ndarray:
    """The numbers of a CSV file, float32 [N, C]: of the named columns, or of all. Raises BadSample."""
    with media.open() as file:
        data = file.read(16 * _MOST_VALUES + 1)
    if len(data) > 16 * _MOST_VALUES:
        raise BadSample("too large", f"{media.name}: more than {16 * _MOST_VALUES} bytes")
    try:
        text = data.decode("utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
        header = rows.pop(0) if rows and not all(map(_is_number, rows[0])) else None
        if columns:
            if header is None or not set(columns) <= set(header):
                there = "no header" if header is None else ", ".join(header)
                raise BadSample("missing column", f"{media.name} has {there}, not all of {', '.join(columns)}")
            places = [header.index(name) for name in columns]
            rows = [[row[place] for place in places] for row in rows]
        return _numbers([[float(cell) for cell in row] for row in rows] or np.zeros((0, 1)), media.name)
    except (ValueError, IndexError, csv.Error) as error:  # no UTF-8, no numbers, rows of unequal length
        raise BadSample("unreadable sensors", f"{media.name}: {error}") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _listed(given, channels: int) -> list:
    """What is given as a list of windows: a list whose rows are as wide as the data has channels is one window, step by step."""
    if not isinstance(given, (list, tuple)) or not given:
        return list(given) if isinstance(given, np.ndarray) and given.ndim == 3 else [given]
    if isinstance(given[0], Real):
        return [given]
    if isinstance(given[0], (str, bytes, PathLike)):
        return list(given)
    return [given] if np.shape(given[0]) == (channels,) else list(given)


def _raw(one):
    """One window, as `Sensors.read` gives it."""
    if isinstance(one, bytes):
        return Media("bytes.csv", data=one)
    if isinstance(one, (str, PathLike)):
        return Media(str(one), path=Path(one))
    return _numbers(one.tolist() if isinstance(one, torch.Tensor) else one, "a window")


def _rounded(values_C: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values_C]


def _traces(window_NC: np.ndarray) -> np.ndarray:
    """Each channel a line over time, uint8 [H, W, 3], all on one scale; grey where steps were dropped."""
    steps, channels = window_NC.shape
    picture = np.full((_HEIGHT, steps * _WIDTH, 3), 255, np.uint8)
    picture[:, np.repeat(np.isnan(window_NC[:, 0]), _WIDTH)] = GREY
    low, high = np.nanmin(window_NC), np.nanmax(window_NC)
    rows_NC = (_HEIGHT - 1) * (1 - (window_NC - low) / max(float(high - low), 1e-6))
    for channel in range(channels):
        for step in np.flatnonzero(~np.isnan(rows_NC[:, channel])):
            row, before = rows_NC[step, channel], rows_NC[max(step - 1, 0), channel]
            top, bottom = sorted((row, row if np.isnan(before) else before))
            columns = slice(step * _WIDTH, (step + 1) * _WIDTH)
            picture[int(top) : int(bottom) + 1, columns] = _COLOURS[channel % len(_COLOURS)]
    return picture
