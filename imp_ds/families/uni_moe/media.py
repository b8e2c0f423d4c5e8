"""What preprocesses media for each tower, and the shapes that follow from it.

Shapes: N media, L tokens of a tower, A axes of its grid.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import ASTFeatureExtractor, PreTrainedConfig, WhisperFeatureExtractor
from transformers.models.auto.feature_extraction_auto import AutoFeatureExtractor
from transformers.models.auto.image_processing_auto import AutoImageProcessor, get_image_processor_class_from_name

from imp_ds import foreign_code
from imp_ds.errors import UserError
from imp_ds.families.uni_moe.parts import Part, part_config
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.processing_imp import ImpProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor
from imp_ds.models.uni_moe.media_processors import audio_inputs, image_inputs, video_inputs

_PICTURE = 32  # pixels of a picture that shapes are found with
_AUDIO = ("whisper", "audio-spectrogram-transformer")
_PICTURES = "CLIP, SigLIP, another encoder with pixel_values"
_ENCODERS = {
    "image": f"{_PICTURES}, an exported IMP model",
    "video": f"VideoMAE, {_PICTURES} (its frames are averaged), an exported IMP model",
    "audio": "Whisper, AST, an exported IMP model",
}


class MediaParts(NamedTuple):
    """image_processor, video_processor, feature_extractor: None where such media are not read, or where the image_processor reads
    the frames of videos. frames: of a video. chunk_seconds: of audio.

    shapes: of each kind of media the model's inputs of one, {"image": {"pixel_values": [3, 224, 224]}}; grids: sizes of the axes
    of its tower's tokens, where they are known.
    """

    image_processor: Any = None
    video_processor: Any = None
    feature_extractor: Any = None
    frames: int = 8
    chunk_seconds: float = 30.0
    shapes: dict[str, dict[str, list[int]]] = {}
    grids: dict[str, list[int]] = {}


def media_parts(towers: dict[str, Part], frames: int) -> MediaParts:
    """Of each kind of media: from the folder of its tower, where it has one, else as its configuration asks. Raises UserError."""
    found = {}
    for kind, part in towers.items():
        config = part_config(part, f"model.{kind}_tower")
        same = kind == "video" and towers.get("image") == part and config.model_type != ImpConfig.model_type
        found[kind] = None if same else _processor(kind, part, config)
        if kind == "video":
            frames = getattr(found[kind], "num_frames", None) or getattr(config, "num_frames", None) or frames
            frames = getattr(found[kind], "frames", frames)
    seconds = _chunk_seconds(found["audio"]) if found.get("audio") is not None else 30.0
    made = MediaParts(found.get("image"), found.get("video"), found.get("audio"), frames, seconds)
    inputs = {kind: _inputs(kind, made) for kind in towers}
    shapes = {kind: {name: list(value.shape[1:]) for name, value in arrays.items()} for kind, arrays in inputs.items()}
    grids = {kind: grid for kind, arrays in inputs.items() if (grid := _grid(arrays)) is not None}
    return made._replace(shapes=shapes, grids=grids)


def _processor(kind: str, part: Part, config: PreTrainedConfig):
    what = f"what preprocesses {kind} for model.{kind}_tower cannot be loaded"
    _check_reads(kind, config)
    if config.model_type == ImpConfig.model_type:
        if isinstance(part, str):
            whole = foreign_code.load(ImpProcessor, part, what, local_files_only=True)
            return {"image": whole.image_processor, "video": whole.video_processor, "audio": whole.feature_extractor}[kind]
        return _of_imp(kind, config)
    if isinstance(part, str) and any(
        (Path(part) / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")
    ):
        return foreign_code.load(
            AutoFeatureExtractor if kind == "audio" else AutoImageProcessor, part, what, local_files_only=True
        )
    return _of_audio(config) if kind == "audio" else _of_pictures(config)


def _check_reads(kind: str, config: PreTrainedConfig) -> None:
    """Raise UserError for a model that is no encoder of such media."""
    reads = config.model_type in _AUDIO if kind == "audio" else hasattr(config, "image_size")
    if not reads and config.model_type != ImpConfig.model_type:
        raise UserError(
            f"model.{kind}_tower is no encoder of {kind}", got=f"a model of model_type {config.model_type}",
            allowed=_ENCODERS[kind], fix=f"--set model.{kind}_tower=FOLDER",
        )  # fmt: skip


def _of_imp(kind: str, config: ImpConfig):
    frames, height, width = config.vision_max
    if kind == "image":
        return ImpImageProcessor(size=(height, width), patch=config.vision_patch)
    if kind == "video":
        return ImpVideoProcessor(frames=frames, size=(height, width), patch=config.vision_patch)
    steps, mels = config.audio_max
    log_mel = {"mel_bins": mels}
    made = ImpFeatureExtractor(log_mel=log_mel, patch=config.audio_patch)
    return ImpFeatureExtractor(
        log_mel=log_mel, patch=config.audio_patch, seconds=steps * made.transform.hop_length / made.sampling_rate
    )


def _of_pictures(config: PreTrainedConfig):
    names = {"clip_vision_model": "CLIP", "siglip_vision_model": "Siglip", "videomae": "VideoMAE"}
    if config.model_type not in names:
        fix = "take the folder of the model, with its preprocessor_config.json"
        raise UserError("how pictures are preprocessed for this model is not known", got=config.model_type, fix=fix)
    size = config.image_size
    kind = get_image_processor_class_from_name(f"{names[config.model_type]}ImageProcessorPil")
    square = {"height": size, "width": size}
    return (
        kind(size=square) if config.model_type == "siglip_vision_model" else kind(size={"shortest_edge": size}, crop_size=square)
    )


def _of_audio(config: PreTrainedConfig):
    if config.model_type == "whisper":
        seconds = config.max_source_positions * 2 * 160 / 16000  # two frames of 10 ms become one position
        return WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=max(1, round(seconds)))
    return ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)


def _chunk_seconds(extractor) -> float:
    """Whisper's 30 s, and as much of others as they read at once."""
    if isinstance(extractor, ImpFeatureExtractor):
        return extractor.seconds
    if hasattr(extractor, "chunk_length"):
        return float(extractor.chunk_length)
    return extractor.max_length * 0.01  # frames of 10 ms


def _inputs(kind: str, made: MediaParts) -> dict[str, np.ndarray]:
    """The model's inputs of one medium, for their shapes."""
    picture = np.full((_PICTURE, _PICTURE, 3), 128, np.uint8)
    if kind == "image":
        return image_inputs(made.image_processor, [picture])
    if kind == "video":
        return video_inputs(made.video_processor or made.image_processor, [np.stack([picture] * made.frames)], made.frames)
    samples = round(made.chunk_seconds * made.feature_extractor.sampling_rate)
    return audio_inputs(made.feature_extractor, [np.zeros(samples, np.float32)])


def _grid(arrays: dict[str, np.ndarray]) -> list[int] | None:
    """Sizes of the axes of patches that have positions, those of one patch left out."""
    positions = next((value for name, value in arrays.items() if "positions" in name), None)
    if positions is None:
        return None
    sizes = [len(np.unique(axis)) for axis in positions[0].T]
    return [size for size in sizes if size > 1] or None
