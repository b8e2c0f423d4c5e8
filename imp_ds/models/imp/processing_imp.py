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
        sampling_rate=None,
        max_length=None,
        marked: bool = False,
        return_tensors="pt",
        images_kwargs=None,
        videos_kwargs=None,
        audio_kwargs=None,
    ) -> BatchFeature:
        """Any of the modalities to one BatchFeature: `pixel_values` and `pixel_positions` (of images or videos),
        `input_features` and `feature_positions` (of audio), `input_ids` and `attention_mask` (of text).

        Args:
            sampling_rate: of the sounds, one number or one for each.
            max_length: pads and cuts the texts to that many tokens; None takes the length of training.
            marked: for tasks whose answer is read at a mark: each text has one, where it says [MASK], else at its end.
            images_kwargs, videos_kwargs, audio_kwargs: keywords for the preprocessor of that modality.

        Raises:
            UserError: no input, images and videos in one call, or an input that its preprocessor refuses.
        """
        if images is not None and videos is not None:
            raise UserError("images and videos are the same input of the model (pixel_values)", fix="call the processor twice")
        if images is None and videos is None and audio is None and text is None:
            raise UserError("the processor was given nothing to process", allowed="images, videos, audio or text")
        inputs = {}
        if images is not None:
            inputs.update(self.image_processor(images, **(images_kwargs or {})))
        if videos is not None:
            inputs.update(self.video_processor(videos, **(videos_kwargs or {})))
        if audio is not None:
            inputs.update(self.feature_extractor(audio, sampling_rate, **(audio_kwargs or {})))
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            preprocess = marking.preprocess_marked if marked else text_modality.preprocess
            inputs.update(preprocess(texts, self.tokenizer, max_length))
        return BatchFeature(inputs, tensor_type=return_tensors)

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
