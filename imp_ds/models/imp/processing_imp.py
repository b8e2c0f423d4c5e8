"""ImpProcessor: images, videos, audio and texts to the inputs of ImpModel."""

from typing import Any, Unpack

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessorMixin

from imp_ds import foreign_code
from imp_ds.errors import UserError
from imp_ds.modalities.modality import get_modality
from imp_ds.modalities.text import tokens as text_modality
from imp_ds.modalities.text.answer_mask import preprocess_with_mask
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.keywords import ImpProcessorKwargs, ImpTextKwargs, check_keywords, sort_keywords
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor
from imp_ds.overrides import parse_record

_PARTS = {"image_processor": ImpImageProcessor, "video_processor": ImpVideoProcessor, "feature_extractor": ImpFeatureExtractor}

_VIDEOS = "_videos"  # behind the names of videos that stand beside images


class ImpProcessor(ProcessorMixin):
    """The four preprocessors of an IMP model behind one call; saved and loaded as one folder.

    Args:
        image_processor, video_processor, feature_extractor: the classes of this package.
        tokenizer: any Hugging Face tokenizer with a padding token (see `imp_ds.modalities.text.tokenizers`).
        modalities: of further modalities by name: their `Processing`, or its fields.
    """

    valid_processor_kwargs = ImpProcessorKwargs
    text_kwargs = {"padding": "max_length", "truncation": True}  # the length of training

    def __init__(
        self, image_processor, video_processor, feature_extractor, tokenizer, chat_template=None, modalities: dict | None = None
    ):
        super().__init__(image_processor, video_processor, feature_extractor, tokenizer, chat_template=chat_template)
        self.modalities = {name: _processing(name, fields) for name, fields in (modalities or {}).items()}

    def to_dict(self) -> dict:
        """As transformers has it, with the fields of further modalities, where there are some."""
        found = super().to_dict()
        found.pop("modalities", None)
        if self.modalities:
            found["modalities"] = {name: part.model_dump(mode="json") for name, part in self.modalities.items()}
        return found

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        videos: Any | None = None,
        audio: Any | None = None,
        **kwargs: Unpack[ImpProcessorKwargs],
    ) -> BatchFeature:
        """Any of the modalities to one BatchFeature: `pixel_values` and `pixel_positions` (of images, or of videos without
        images), `pixel_values_videos` and `pixel_positions_videos` (of videos beside images), `input_features` and
        `feature_positions` (of audio), `input_ids` and `attention_mask` (of text).

        Args:
            images, videos, audio: arrays, paths, bytes or open files, one or a list; see the three preprocessors.
            text: one or a list.
            kwargs: samples of a further modality by its name, such as `sensors=`; text_kwargs, images_kwargs, videos_kwargs
                and audio_kwargs, dictionaries of keywords for that part (`imp_ds.models.imp.keywords`), common_kwargs for all; or
                the same keywords flat, for every part that takes them.
                `return_tensors` is "pt" by default.

        Raises:
            UserError: no input, a keyword that nothing takes or that is given twice, or an input that its preprocessor refuses.
        """
        more = {name: kwargs.pop(name) for name in self.modalities if kwargs.get(name) is not None}
        if images is None and videos is None and audio is None and text is None and not more:
            allowed = ", ".join(["images, videos, audio, text", *self.modalities])
            raise UserError("the processor was given nothing to process", allowed=f"at least one of {allowed}")
        of = {group: {"return_tensors": "pt", **own} for group, own in sort_keywords(kwargs).items()}
        inputs = {}
        if images is not None:
            inputs.update(self.image_processor(images, **of["images_kwargs"]))
        if videos is not None:
            found = self.video_processor(videos, **of["videos_kwargs"])
            inputs.update(found if images is None else {f"{name}{_VIDEOS}": value for name, value in found.items()})
        if audio is not None:
            inputs.update(self.feature_extractor(audio, **of["audio_kwargs"]))
        if text is not None:
            inputs.update(self._of_text([text] if isinstance(text, str) else text, of["text_kwargs"]))
        for name, given in more.items():
            tensors = of["text_kwargs"].get("return_tensors")
            inputs.update(BatchFeature(self.modalities[name].inputs(given), tensor_type=tensors))
        return BatchFeature(inputs)

    def _of_text(self, texts: list[str], given: dict) -> BatchFeature:
        """Padded as asked, or as the tokenizer was loaded (`from_pretrained(folder, padding=.., max_length=..)`), or as trained.

        A tokenizer's `max_length` counts only beside a `padding`: alone it is no wish, but the length of its last call, which
        the library writes into tokenizer.json.
        """
        check_keywords("text_kwargs", given, ImpTextKwargs)
        made = self.tokenizer.init_kwargs
        loaded = {name: made[name] for name in ("padding", "max_length") if name in made} if "padding" in made else {}
        options = {**self.text_kwargs, **loaded, **{name: value for name, value in given.items() if value is not None}}
        answer_mask, tensors, length = (options.pop(name, None) for name in ("answer_mask", "return_tensors", "max_length"))
        preprocess = preprocess_with_mask if answer_mask else text_modality.preprocess
        return BatchFeature(preprocess(texts, self.tokenizer, length, **options), tensor_type=tensors)

    @property
    def model_input_names(self) -> list[str]:
        names = [name for part in _PARTS for name in getattr(self, part).model_input_names]
        beside = [f"{name}{_VIDEOS}" for name in self.video_processor.model_input_names]
        more = [name for modality in self.modalities for name in get_modality(modality).inputs]
        return list(dict.fromkeys([*names, *beside, *text_modality.INPUT_NAMES, *more]))

    def check_argument_for_proper_class(self, argument_name, argument):
        """The base class looks its video classes up among those that need torchvision, which we do not."""
        expected = {**_PARTS, "tokenizer": PreTrainedTokenizerBase}.get(argument_name)
        if expected is None:
            return super().check_argument_for_proper_class(argument_name, argument)
        if not isinstance(argument, expected):
            raise UserError(f"unknown {argument_name}", got=type(argument).__name__, allowed=expected.__name__)
        return expected

    @staticmethod
    def get_possibly_dynamic_module(module_name):
        """The base class looks up here what a file in the folder calls an audio tokenizer, and loads it from wherever that file
        says: we have none."""
        raise UserError("a processor of this package has no audio tokenizer", got=module_name)

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """The base class loads each part through its Auto class; the one for videos needs torchvision."""
        kwargs = {**foreign_code.said(), **kwargs}
        parts = [part.from_pretrained(pretrained_model_name_or_path, **kwargs) for part in _PARTS.values()]
        return [*parts, AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)]


def _processing(modality: str, fields):
    """What preprocesses a modality, from its fields. Raises UserError for fields that it cannot have."""
    kind = get_modality(modality).Processing
    return fields if isinstance(fields, kind) else parse_record(kind, fields, f"the processor's {modality}")
