"""The inputs of `ImpModel` by modality, with the positions that nobody gave.

A picture that `ImpProcessor` has cut is a square grid, a spectrogram has all of its mel bins: their positions follow from the
number of patches. A video's follow where one number of steps and one square fit the number of its patches. Everything else needs
its positions: of dropped tokens, or of a grid of another shape, nothing can be derived.

Shapes: B batch, L patches of an example, P values of a patch, A axes.
"""


import torch

from imp_ds.errors import UserError
from imp_ds.modalities import PatchModality, get_modality
from imp_ds.modalities.positions import grid_positions

VIDEOS = "videos"  # a second input of the vision modality


def by_modality(config, inputs: dict[str, torch.Tensor | None]) -> dict[str, dict[str, torch.Tensor | None]]:
    """What is given of each modality, by the names of its embedding, positions included; videos beside images under VIDEOS.

    Raises TypeError for an input that the model does not have, and UserError when nothing is given, and for
    patches whose positions do not follow from their number.
    """
    names = {modality: get_modality(modality).inputs for modality in config.modalities}
    known = {name for of_modality in names.values() for name in (*of_modality, *(f"{name}_videos" for name in names["vision"]))}
    if unknown := [name for name in inputs if name not in known]:
        raise TypeError(f"the model has no input {unknown[0]!r}; it has {', '.join(sorted(known))}")
    given = {
        modality: {name: inputs.get(name) for name in of_modality}
        for modality, of_modality in names.items() if inputs.get(of_modality[0]) is not None
    }  # fmt: skip
    if inputs.get("pixel_values_videos") is not None:
        given[VIDEOS] = {name: inputs.get(f"{name}_videos") for name in names["vision"]}
    if not given:
        allowed = ", ".join(of_modality[0] for of_modality in names.values())
        raise UserError("nothing to encode", allowed=f"at least one of {allowed}")
    for source, named in given.items():
        modality = get_modality(modality_of(source))
        if isinstance(modality, PatchModality) and named[modality.inputs[1]] is None:
            patches = named[modality.inputs[0]]
            positions_LA = torch.from_numpy(grid_positions(*modality.grid(config, *patches.shape[1:3]))).to(patches.device)
            named[modality.inputs[1]] = positions_LA.expand(patches.shape[0], -1, -1)
    return given


def modality_of(source: str) -> str:
    """The modality of a source of `by_modality`."""
    return "vision" if source == VIDEOS else source
