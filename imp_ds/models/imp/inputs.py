"""The inputs of `ImpModel` by modality, with the positions that nobody gave.

A picture that `ImpProcessor` has cut is a square grid, a spectrogram has all of its mel bins: their positions follow from the
number of patches. A video's follow where one number of steps and one square fit the number of its patches. Everything else needs
its positions: of dropped tokens, or of a grid of another shape, nothing can be derived.

Shapes: B batch, L patches of an example, P values of a patch, A axes.
"""

import math

import torch

from imp_ds.errors import UserError
from imp_ds.modalities import EMBEDDINGS
from imp_ds.modalities.positions import grid_positions

VIDEOS = "videos"  # a second input of the vision modality


def by_modality(config, inputs: dict[str, torch.Tensor | None]) -> dict[str, dict[str, torch.Tensor | None]]:
    """What is given of each modality, by the names of its embedding, positions included; videos beside images under VIDEOS.

    Raises UserError when nothing is given, and for patches whose positions do not follow from their number.
    """
    given = {
        modality: {name: inputs[name] for name in names}
        for modality, (_, names) in EMBEDDINGS.items()
        if inputs[names[0]] is not None
    }
    if inputs["pixel_values_videos"] is not None:
        given[VIDEOS] = {name: inputs[f"{name}_videos"] for name in EMBEDDINGS["vision"][1]}
    if not given:
        raise UserError("nothing to encode", allowed="at least one of pixel_values, input_features, input_ids")
    for source, named in given.items():
        values, positions = EMBEDDINGS[modality_of(source)][1]
        grid = _GRIDS.get(modality_of(source))
        if grid is not None and named[positions] is None:
            patches = named[values]
            positions_LA = torch.from_numpy(grid_positions(*grid(config, *patches.shape[1:]))).to(patches.device)
            named[positions] = positions_LA.expand(patches.shape[0], -1, -1)
    return given


def modality_of(source: str) -> str:
    """The modality of a source of `by_modality`."""
    return "vision" if source == VIDEOS else source


def vision_grid(config, patches: int, values: int) -> tuple[int, int, int]:
    """Steps, rows and columns of a picture or a video of that many patches of so many values."""
    steps, rows, columns = (largest // patch for largest, patch in zip(config.vision_max, config.vision_patch))
    if values * config.vision_patch[0] == math.prod(config.vision_patch) * config.num_channels:
        steps = 1  # one frame
    squares = ((patches // n**2, n) for n in (math.isqrt(patches // s) for s in range(1, steps + 1)) if n and patches % n**2 == 0)
    fitting = sorted({(s, n, n) for s, n in squares if s <= steps and n <= min(rows, columns) and s * n * n == patches})
    if len(fitting) != 1:
        raise UserError(
            "the positions of patches cannot be derived from their number",
            got=f"{patches} patches, which make " + (" or ".join("x".join(map(str, g)) for g in fitting) or "no square"),
            allowed="a square picture, or a video of square frames whose number of steps is the only one that fits",
            fix="give pixel_positions, as ImpProcessor returns them",
        )  # fmt: skip
    return fitting[0]


def audio_grid(config, patches: int, values: int) -> tuple[int, int]:
    """Steps and bands of a spectrogram of that many patches."""
    steps, bands = (largest // patch for largest, patch in zip(config.audio_max, config.audio_patch))
    if patches % bands or patches // bands > steps:
        raise UserError(
            "the positions of patches cannot be derived from their number", got=f"{patches} patches",
            allowed=f"multiples of {bands}, the patches of all mel bins, up to {steps * bands}",
            fix="give feature_positions, as ImpProcessor returns them",
        )  # fmt: skip
    return patches // bands, bands


_GRIDS = {"vision": vision_grid, "audio": audio_grid}
