"""The processor of a run of IMP, from its configuration and corpus."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from imp_ds.config import RunConfig
from imp_ds.data.class_names import with_class_names
from imp_ds.data.corpus import all_captions
from imp_ds.data.decoding import decode
from imp_ds.data.reader import Reader
from imp_ds.families.imp import model_folder
from imp_ds.families.imp.pretrained.tower import is_tower
from imp_ds.modalities.decoding_settings import DecodingSettings
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.modality import Wanted, get_modality
from imp_ds.modalities.text.tokenizers import load_tokenizer, train_tokenizer
from imp_ds.modalities.views import Views
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.processing_imp import ImpProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor

_SAMPLES = 128  # enough for a mean and a spread over millions of values


def build_processor(run: RunConfig, readers: dict[str, list[Reader]]) -> ImpProcessor:
    """A processor with the run's tokenizer, patches and spectrogram, whose views default to those of the evaluations."""
    config = run.model.to_config(run.data.vocab_size, run.tasks)
    if run.data.tokenizer is not None:
        tokenizer = load_tokenizer(run.data.tokenizer)
    else:
        texts = chain(all_captions(readers), _candidate_texts(with_class_names(run, readers)))
        first = next(texts, None)
        texts = _names(run, readers) if first is None else chain([first], texts)
        tokenizer = train_tokenizer(texts, run.data.vocab_size, seed=run.data.seed)
    views = [*(entry.views for entry in run.evaluations), *(view for task in run.tasks for view in task.all_views)]
    image = next((v.vision for v in views if v.vision is not None and v.vision.frames == 1), None)
    clip_view = next((v.vision for v in views if v.vision is not None and v.vision.frames > 1), None)
    text = [v.text.length for v in views if v.text is not None]
    tokenizer.model_max_length = max(text, default=config.text_max)
    tokenizer.init_kwargs.pop("padding", None)  # a tokenizer of another model may bring its own: texts are padded as trained
    image_view = {} if image is None else dict(
        size=(image.height, image.width), keep_aspect=image.keep_aspect, naflex=image.naflex
    )
    video_view = {} if clip_view is None else dict(
        frames=clip_view.frames, sampling=clip_view.sampling, stride=clip_view.stride, size=(clip_view.height, clip_view.width),
        keep_aspect=clip_view.keep_aspect, naflex=clip_view.naflex,
    )  # fmt: skip
    return ImpProcessor(
        image_processor=ImpImageProcessor(patch=config.vision_patch, ground=run.data.decoding.alpha_ground, **image_view),
        video_processor=ImpVideoProcessor(patch=config.vision_patch, ground=run.data.decoding.alpha_ground, **video_view),
        feature_extractor=build_extractor(run, config, readers),
        tokenizer=tokenizer,
        modalities=build_processings(run, config, readers, views),
    )


def _candidate_texts(run: RunConfig) -> Iterator[str]:
    """What objectives put before the model beside the samples: the names of classes, in their templates."""
    for objective in (objective for task in run.tasks for objective in task.objectives):
        yield from objective.texts()


def _names(run: RunConfig, readers: dict[str, list[Reader]]) -> Iterator[str]:
    """Of classes and tasks: for a run that reads no text, whose processor has a tokenizer all the same."""
    for reader in chain(*readers.values()):
        yield from reader.class_names or []
    yield from (task.name for task in run.tasks)


def build_processings(run: RunConfig, config: ImpConfig, readers: dict[str, list[Reader]], views: list[Views]) -> dict:
    """What preprocesses the modalities that have no part of their own: of the model that the run starts from, or made from the
    first samples of its corpus."""
    names = [name for name in config.modalities if get_modality(name).part is None]
    before = _before(run) if names else None
    found = {} if before is None else {name: part for name, part in before.modalities.items() if name in names}
    for name in (name for name in names if name not in found):
        own = [view for of in views if (view := getattr(of, name)) is not None]
        samples = [
            sample
            for task in run.tasks if (view := getattr(task.views, name)) is not None
            for sample in _some(name, readers[task.name][0], view, run.data.decoding)
        ]  # fmt: skip
        found[name] = get_modality(name).processing(config, own, samples)
    return found


def _before(run: RunConfig) -> ImpProcessor | None:
    """The processor of the model that the run starts from, if it has one."""
    folder = None if run.train.init_from is None else Path(run.train.init_from)
    is_there = folder is not None and not is_tower(folder) and (folder / model_folder.PROCESSOR).is_file()
    return model_folder.load_processor(folder) if is_there else None


def build_extractor(run: RunConfig, config: ImpConfig, readers: dict[str, list[Reader]]) -> ImpFeatureExtractor:
    """The spectrogram of the run, standardised by the mean and spread of the first recordings of its corpus, or that of the model
    that it starts from."""
    audio = run.data.audio
    views = {task.name: task.views.audio for task in run.tasks if task.views.audio is not None}
    seconds = next((view.seconds for view in views.values()), 8.192)
    log_mel = dict(
        sampling_rate=audio.sampling_rate, frame_length=audio.frame_length, hop_length=audio.hop_length,
        mel_bins=audio.mel_bins, f_min=audio.min_frequency, f_max=audio.max_frequency,
    )  # fmt: skip
    extractor = ImpFeatureExtractor(log_mel=log_mel, seconds=seconds, patch=config.audio_patch, do_normalize=audio.normalize)
    if (processor := _before(run)) is not None:
        before = processor.feature_extractor
        extractor.mean, extractor.std, extractor.do_normalize = before.mean, before.std, before.do_normalize
        return extractor
    values = []
    for name, view in list(views.items())[:1]:
        for waveform, rate in _some("audio", readers[name][0], view, run.data.decoding):
            values.append(extractor([waveform], [rate], seconds=view.seconds, return_tensors="np")["input_features"])
    if values:
        extractor.mean, extractor.std = round(float(np.mean(values)), 4), round(float(np.std(values)), 4)
    return extractor


def _some(modality: str, reader: Reader, view, decoding: DecodingSettings) -> Iterator:
    """Samples of a modality spread over the source; those that cannot be read are passed over."""
    for row in range(0, len(reader), max(1, len(reader) // _SAMPLES)):
        try:
            yield decode(reader.read(row), Views(**{modality: view}), wanted=Wanted(settings=decoding))[modality]
        except BadSample:
            continue
