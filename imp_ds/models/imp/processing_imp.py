"""ImpProcessor: images, films, sounds and texts to the inputs of ImpModel."""

from transformers import AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from imp_ds import foreign_code
from imp_ds.errors import UserError
from imp_ds.modalities import marking
from imp_ds.modalities import text as text_modality
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.keywords import keywords_of, sort_keywords
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor

_PARTS = {"image_processor": ImpImageProcessor, "video_processor": ImpVideoProcessor, "feature_extractor": ImpFeatureExtractor}


class ImpProcessor(ProcessorMixin):
    """The four preprocessors of an IMP model behind one call; saved and loaded as one folder.

    Args:
        image_processor, video_processor, feature_extractor: the classes of this package.
        tokenizer: any Hugging Face tokenizer with a padding token (`tokenization_imp.train_tokenizer`, `load_tokenizer`).
    """

    def __init__(self, image_processor, video_processor, feature_extractor, tokenizer, chat_template=None):
        super().__init__(image_processor, video_processor, feature_extractor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images=None,
        text=None,
        videos=None,
        audio=None,
        *,
        marked: bool = False,
        text_kwargs=None,
        images_kwargs=None,
        videos_kwargs=None,
        audio_kwargs=None,
        common_kwargs=None,
        **kwargs,
    ) -> BatchFeature:
        """Any of the modalities to one BatchFeature: `pixel_values` and `pixel_positions` (of images or videos),
        `input_features` and `feature_positions` (of audio), `input_ids` and `attention_mask` (of text).

        Args:
            marked: for tasks whose answer is read at a mark: each text has one, where it says [MASK], else at its end.
            text_kwargs: `max_length` (pads and cuts the texts to that many tokens; None takes the length of training), `padding`
                and `truncation` as of Hugging Face tokenizers.
            images_kwargs, videos_kwargs, audio_kwargs: keywords for the preprocessor of that modality.
            common_kwargs: `return_tensors`, "pt" by default.
            kwargs: any of these without its dictionary, such as `sampling_rate` of the sounds or `size`: for all that take it.

        Raises:
            UserError: no input, images and videos in one call, a keyword that nothing takes or that is given twice, or an input
                that its preprocessor refuses.
        """
        if images is not None and videos is not None:
            raise UserError("images and videos are the same input of the model (pixel_values)", fix="call the processor twice")
        if images is None and videos is None and audio is None and text is None:
            raise UserError("the processor was given nothing to process", allowed="images, videos, audio or text")
        groups = {
            "text_kwargs": text_kwargs, "images_kwargs": images_kwargs, "videos_kwargs": videos_kwargs,
            "audio_kwargs": audio_kwargs, "common_kwargs": common_kwargs,
        }  # fmt: skip
        of = sort_keywords(groups, kwargs, self._keywords())
        inputs = {}
        if images is not None:
            inputs.update(self.image_processor(images, **of["images_kwargs"]))
        if videos is not None:
            inputs.update(self.video_processor(videos, **of["videos_kwargs"]))
        if audio is not None:
            inputs.update(self.feature_extractor(audio, **of["audio_kwargs"]))
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            preprocess = marking.preprocess_marked if marked else text_modality.preprocess
            options = dict(of["text_kwargs"])
            inputs.update(preprocess(texts, self.tokenizer, options.pop("max_length", None), **options))
        return BatchFeature(inputs, tensor_type=of["common_kwargs"].get("return_tensors", "pt"))

    def _keywords(self) -> dict[str, list[str]]:
        """The keywords of each dictionary; how tensors are returned is one for all."""
        calls = {
            "images_kwargs": self.image_processor.preprocess, "videos_kwargs": self.video_processor.preprocess,
            "audio_kwargs": self.feature_extractor.__call__,
        }  # fmt: skip
        taken = {group: [name for name in keywords_of(call) if name != "return_tensors"] for group, call in calls.items()}
        return {"text_kwargs": ["max_length", "padding", "truncation"], **taken, "common_kwargs": ["return_tensors"]}

    @property
    def model_input_names(self) -> list[str]:
        names = [name for part in _PARTS for name in getattr(self, part).model_input_names]
        return list(dict.fromkeys([*names, *text_modality.INPUT_NAMES]))

    def check_argument_for_proper_class(self, argument_name, argument):
        """The base class looks its video classes up among those that need torchvision, which we do not."""
        if argument_name in _PARTS:
            if not isinstance(argument, _PARTS[argument_name]):
                raise UserError(f"unknown {argument_name}", got=type(argument).__name__, allowed=_PARTS[argument_name].__name__)
            return _PARTS[argument_name]
        return super().check_argument_for_proper_class(argument_name, argument)

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """The base class loads each part through its Auto class; the one for films needs torchvision."""
        kwargs = {**foreign_code.said(), **kwargs}
        parts = [part.from_pretrained(pretrained_model_name_or_path, **kwargs) for part in _PARTS.values()]
        return [*parts, AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)]
