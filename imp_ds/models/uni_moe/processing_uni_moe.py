"""UniMoeProcessor: conversations with images, videos and audio to the inputs of UniMoeForConditionalGeneration.

Placeholders in the text are expanded by the hooks of transformers' ProcessorMixin, so `apply_chat_template` works as for any
model; training encodes by `encode`, which calls it.
"""

from itertools import groupby
from os import PathLike
from os.path import isfile

import numpy as np
from jinja2 import TemplateError
from transformers.processing_utils import ProcessorMixin

from imp_ds.errors import UserError
from imp_ds.modalities.audio.resampling import resample
from imp_ds.modalities.decoding_settings import DEFAULTS
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.messages.features import MediaFeatures
from imp_ds.modalities.vision.picture_files import is_file
from imp_ds.models.imp.media_files import audio_of, image_of, video_of
from imp_ds.models.uni_moe.batch_rows import MEDIA_INPUTS, pack, padded
from imp_ds.models.uni_moe.chat_template import CHAT_TEMPLATE, TOKENS
from imp_ds.models.uni_moe.chunked_loss import NO_LOSS
from imp_ds.models.uni_moe.configuration_uni_moe import MEDIA
from imp_ds.models.uni_moe.media_processors import audio_inputs, cut, image_inputs, media_processor, video_inputs
from imp_ds.models.uni_moe.towers import INPUTS

_OWN_SIZE = (1 << 20, 1 << 20)  # of a video's frames: none is decoded at less


class UniMoeProcessor(ProcessorMixin):
    """Saved and loaded as one folder.

    Args:
        tokenizer: a fast one; <image>, <video> and <audio> become special tokens of it.
        image_processor, video_processor, feature_extractor: of the towers; None: such media are not read. Without a
            video_processor the frames of a video go through the image_processor.
        media_tokens: tokens of an image, a video and a chunk of audio in the language model: {"image": 16, ...}.
        num_frames: of a video, evenly spaced.
        chunk_seconds: audio is cut into chunks of so many seconds, each with its own tokens.
        chunk_overlap: share of a chunk that the next one repeats, so that what lies across the end of one is whole in another.
    """

    def __init__(
        self, tokenizer, image_processor=None, video_processor=None, feature_extractor=None, chat_template=None,
        media_tokens=None, num_frames=8, chunk_seconds=30.0, chunk_overlap=0.0,
    ):  # fmt: skip
        self.image_processor, self.video_processor = media_processor(image_processor), media_processor(video_processor)
        self.feature_extractor = media_processor(feature_extractor)
        self.media_tokens, self.num_frames = dict(media_tokens or {}), num_frames
        self.chunk_seconds, self.chunk_overlap = chunk_seconds, chunk_overlap
        for kind in MEDIA:
            setattr(self, f"{kind}_token", TOKENS[kind])
        missing = [token for token in TOKENS.values() if token not in tokenizer.get_vocab()]
        if missing:
            tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
        for kind in MEDIA:
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(TOKENS[kind]))
        super().__init__(tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["tokenizer"]  # the other parts may be None, and are saved with their fields

    def to_dict(self) -> dict:
        """As transformers has it, with the fields of each part."""
        parts = {name: getattr(self, name) for name in ("image_processor", "video_processor", "feature_extractor")}
        found = super().to_dict()
        return found | {name: None if part is None else part.to_dict() for name, part in parts.items()}

    @property
    def conversations(self) -> "UniMoeProcessor":
        """What preprocesses the modality `messages`."""
        return self

    @property
    def sampling_rate(self) -> int | None:
        """Of audio, in samples a second; None: audio is not read."""
        return getattr(self.feature_extractor, "sampling_rate", None)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *(name for names in INPUTS.values() for name in names)]

    # the hooks of ProcessorMixin: each kind of media to inputs, and to the text that takes its placeholder's place

    def _process_images(self, images, **kwargs):
        return self._processed("image", _flat(images))

    def _process_videos(self, videos, **kwargs):
        return self._processed("video", _flat(videos))

    def _process_audio(self, audio, **kwargs):
        return self._processed("audio", list(audio))

    def _processed(self, kind: str, media: list) -> tuple[dict[str, np.ndarray], list[str]]:
        inputs, counts = self.media_inputs(kind, media)
        return inputs, [self._expanded(kind, count) for count in counts]

    def media_inputs(self, kind: str, media: list) -> tuple[dict[str, np.ndarray], list[int]]:
        """Media of a kind to the model's inputs, [N, ...], and how many of these each becomes: audio one for each chunk. What
        towers have made of them already (MediaFeatures) becomes `image_features`, `video_features`, `audio_features`. Files
        are read as training reads them."""
        part = self._part(kind)
        if media and all(isinstance(one, MediaFeatures) for one in media):
            return {f"{kind}_features": np.concatenate(media).view(np.ndarray)}, [len(one) for one in media]
        media = [self._opened(kind, one) for one in media]
        if kind == "image":
            return image_inputs(part, media), [1] * len(media)
        if kind == "video":
            return video_inputs(part, [np.asarray(video) for video in media], self.num_frames), [1] * len(media)
        clips = [self._chunks(np.asarray(clip, dtype=np.float32)) for clip in media]
        return audio_inputs(part, [chunk for clip in clips for chunk in clip]), [len(clip) for clip in clips]

    def _opened(self, kind: str, medium):
        """What a file holds, read as training reads it; anything else as it is. Raises UserError for one that cannot be read."""
        if kind == "image":  # a string that names no file is for transformers to fetch
            return image_of(medium) if isinstance(medium, (str, PathLike)) and isfile(medium) else medium
        if not is_file(medium):
            return medium
        if kind == "audio":
            return resample(*audio_of(medium), self.feature_extractor.sampling_rate)
        return video_of(medium, self.num_frames, "uniform", 1, _OWN_SIZE, DEFAULTS.alpha_ground)

    def preprocessing(self, kind: str) -> dict:
        """What the model's inputs of a kind of media follow from."""
        chunks = {"chunk_seconds": self.chunk_seconds, "chunk_overlap": self.chunk_overlap}
        return {"part": self._part(kind).to_dict(), "frames": self.num_frames} | chunks

    @property
    def chunk_step_seconds(self) -> float:
        """Between the beginnings of two chunks of audio."""
        return self.chunk_seconds * (1 - self.chunk_overlap)

    def _chunks(self, clip: np.ndarray) -> list[np.ndarray]:
        rate = self.feature_extractor.sampling_rate
        return cut(clip, round(self.chunk_seconds * rate), max(1, round(self.chunk_step_seconds * rate)))

    def _part(self, kind: str):
        parts = {"image": self.image_processor, "audio": self.feature_extractor}
        part = parts[kind] if kind in parts else self.video_processor or self.image_processor
        if part is None or kind not in self.media_tokens:
            raise UserError(f"the model does not read this kind of media: {kind}", allowed=", ".join(self.media_tokens) or "text")
        return part

    def _expanded(self, kind: str, times: int = 1) -> str:
        return TOKENS[kind] * (times * self.media_tokens[kind])

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Texts as a list of their own; images from files, where they are named."""
        text = [text] if isinstance(text, str) else None if text is None else list(text)
        if images is not None and hasattr(self.image_processor, "fetch_images"):
            images = [self._opened("image", image) for image in _flat(images if isinstance(images, (list, tuple)) else [images])]
            images = self.image_processor.fetch_images(images)
        return images, text, videos, audio

    # conversations

    def apply_chat_template(self, conversation, *args, **kwargs):
        """As transformers has it. Raises UserError for media that the model does not read, which it would leave out."""
        is_one = not conversation or isinstance(conversation[0], dict)
        turns = conversation if is_one else [turn for one in conversation for turn in one]
        for kind in _kinds(turns):
            self._part(kind)
        if kwargs.get("tokenize"):
            conversation = self._with_audio(conversation) if is_one else [self._with_audio(one) for one in conversation]
        return super().apply_chat_template(conversation, *args, **kwargs)

    def _with_audio(self, turns: list[dict]) -> list[dict]:
        """The conversation with what files of audio hold: transformers would read them by packages of its own."""

        def part(given: dict) -> dict:
            named = [given[key] for key in ("audio", "path", "url") if given.get("type") == "audio" and key in given]
            return {"type": "audio", "audio": self._opened("audio", named[0])} if named else given

        return [t if isinstance(t["content"], str) else t | {"content": [part(one) for one in t["content"]]} for t in turns]

    def encode(
        self, samples: list[list[dict]], *, length: int, loss: str = "all", rows: int | None = None
    ) -> dict[str, np.ndarray]:
        """Conversations, decoded, to inputs and labels, padded on the right.

        Args:
            samples: each a list of messages with content parts, media as arrays.
            length: the most token ids of one.
            loss: "all": on what the assistant says in every turn; "last": in the last one. A message with "loss": False has none.
            rows: into how many rows they are packed (`imp_ds.models.uni_moe.batch_rows`); None: a row for each, R = B.

        Returns `input_ids`, `attention_mask`, `labels` [R, L], and of packed rows `position_ids`; media [R, n, ...] by the names
        of `INPUTS`, and how many of them a row has, `image_count`, `video_count`, `audio_count` [R] (of audio: chunks). Raises
        UserError for one that is longer.
        """
        each = [self._encoded(sample, loss) for sample in samples]
        most = max(len(found["input_ids"]) for found in each)
        if most > length:
            raise UserError(
                "a conversation is longer than the view", got=f"{most} tokens", allowed=f"{length}", fix="raise its length"
            )
        return padded(each if rows is None else pack(each, rows), self.tokenizer.pad_token_id)

    def prompt(self, conversation: list[dict]) -> dict[str, np.ndarray]:
        """What is to be answered: `input_ids` [L] up to where the assistant begins, and media, flat, [N, ...]."""
        found = self.apply_chat_template(conversation, tokenize=True, return_dict=True, add_generation_prompt=True)
        return {name: np.asarray(value) for name, value in found.items()} | {"input_ids": np.asarray(found["input_ids"])[0]}

    def conversation_tokens(self, sample: list[dict]) -> int:
        """How many token ids a conversation has, media with theirs; nothing of them is preprocessed. Raises BadSample for media
        that the model does not read, and for turns that the chat template does not have in this order."""
        if unread := [kind for kind in _kinds(sample) if kind not in self.media_tokens]:
            raise BadSample("media not read", f"{unread[0]}; the model reads {', '.join(self.media_tokens) or 'text alone'}")
        try:
            text = self.apply_chat_template(sample)
        except TemplateError as error:  # such as of roles that do not take turns
            raise BadSample("refused by the chat template", str(error)) from None
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        media = [part for part in _parts(sample) if part["type"] in MEDIA]
        more = sum(self._count(part) * self.media_tokens[part["type"]] - 1 for part in media)
        return len(ids) + more

    def _count(self, part: dict) -> int:
        if part["type"] != "audio" or self.feature_extractor is None:
            return 1
        return len(part["audio"]) if isinstance(part["audio"], MediaFeatures) else len(self._chunks(part["audio"]))

    def _encoded(self, sample: list[dict], loss: str) -> dict:
        found = self.apply_chat_template([sample], tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = found["input_ids"][0], np.asarray(found["assistant_masks"][0], dtype=bool)
        turns = [message for message in sample if message["role"] == "assistant"]
        runs = mark_runs(mask)
        if len(runs) != len(turns):
            got, allowed = f"{len(runs)} texts between its marks", f"{len(turns)}, one for each turn of the assistant"
            raise UserError("the chat template does not mark each answer of a conversation by itself", got=got, allowed=allowed)
        if loss == "last":
            runs, turns = runs[-1:], turns[-1:]
        labels = np.full(len(ids), NO_LOSS, np.int64)
        for (begin, end), turn in zip(runs, turns, strict=True):
            if turn.get("loss", True):
                labels[begin:end] = ids[begin:end]
        media = {name: found[name] for names in MEDIA_INPUTS.values() for name in names if name in found}
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, **media}


def _parts(turns: list[dict]) -> list[dict]:
    """The content parts of a conversation."""
    return [part for turn in turns if not isinstance(turn["content"], str) for part in turn["content"]]


def _kinds(turns: list[dict]) -> list[str]:
    """The kinds of media in a conversation."""
    found = {part["type"] for part in _parts(turns)}
    return [kind for kind in MEDIA if kind in found]


def _flat(media) -> list:
    return [one for entry in media for one in (entry if isinstance(entry, (list, tuple)) else [entry])]


def mark_runs(mask) -> list[tuple[int, int]]:
    """(begin, end) of each run of what is true: of an answer's tokens in the mask of a chat template."""
    found, place = [], 0
    for value, group in groupby(mask):
        begin, place = place, place + len(list(group))
        if value:
            found.append((begin, place))
    return found
