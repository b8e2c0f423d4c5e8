"""What preprocesses media for a tower: the processors of transformers and those of IMP, behind one function for each kind.

Shapes: N media, T frames of a video.
"""

import numpy as np
import transformers
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

from imp_ds.errors import UserError
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor
from imp_ds.models.uni_moe.towers import INPUTS

_OURS = {kind.__name__: kind for kind in (ImpImageProcessor, ImpVideoProcessor, ImpFeatureExtractor)}
_TYPES = ("image_processor_type", "video_processor_type", "feature_extractor_type")


def media_processor(fields):
    """The object of a processor's saved fields; an object, and None, stay what they are. Raises UserError for an unknown type."""
    if not isinstance(fields, dict):
        return fields
    name = next((fields[key] for key in _TYPES if fields.get(key)), None)
    kind = _OURS.get(name)
    if kind is None and name is not None:
        # the one that PIL serves is asked for first: without torchvision the other warns of its absence
        names = [name] if name.endswith("Extractor") else [f"{name}Pil", name]
        found = (get_image_processor_class_from_name(n) if "Image" in n else getattr(transformers, n, None) for n in names)
        kind = next((each for each in found if each is not None and not hasattr(each, "_backends")), None)
    if kind is None:
        raise UserError("an unknown processor of media", got=name, allowed=", ".join([*_OURS, "or one of transformers"]))
    return kind.from_dict({key: value for key, value in fields.items() if key != "processor_class"})


def image_inputs(processor, images: list) -> dict[str, np.ndarray]:
    """Images, [H, W, 3] or whatever the processor reads, to the model's inputs, [N, ...]."""
    return _named("image", processor(images, return_tensors="np"))


def video_inputs(processor, videos: list[np.ndarray], frames: int) -> dict[str, np.ndarray]:
    """Videos, [T, H, W, 3] each, to the model's inputs, [N, ...]; frames: evenly spaced ones that a processor of images gets."""
    if isinstance(processor, ImpVideoProcessor):
        return _named("video", processor(videos, return_tensors="np"))
    chosen = [video[np.linspace(0, len(video) - 1, frames).round().astype(int)] for video in videos]
    flat = processor([frame for video in chosen for frame in video], return_tensors="np")
    values = np.asarray(flat["pixel_values"])
    values = values[0] if values.ndim == 5 and len(values) == 1 else values  # VideoMAE's takes all images for one video
    return _named("video", {"pixel_values": values.reshape(len(videos), frames, *values.shape[-3:])})


def audio_inputs(processor, chunks: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Waveforms, [samples] each at the processor's rate, to the model's inputs, [N, ...]."""
    return _named("audio", processor(chunks, sampling_rate=processor.sampling_rate, return_tensors="np"))


def cut(waveform: np.ndarray, samples: int, step: int) -> list[np.ndarray]:
    """Runs of so many samples, a new one each `step` samples up to the one that reaches the end; one at least."""
    return [waveform[begin : begin + samples] for begin in range(0, max(1, len(waveform) - samples + step), step)]


def _named(kind: str, found) -> dict[str, np.ndarray]:
    """By the names of the model's inputs: values first, then positions where there are some."""
    values = next(name for name in ("pixel_values", "pixel_values_videos", "input_features", "input_values") if name in found)
    positions = next((name for name in found if name.endswith("_positions")), None)
    arrays = [np.asarray(found[name]) for name in (values, positions) if name is not None]
    return dict(zip(INPUTS[kind], arrays))
