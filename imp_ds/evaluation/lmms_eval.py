"""Exported models that answer, in the harness lmms-eval (its own pins clash with ours: `pip install --no-deps lmms-eval`).

    python -m lmms_eval --model imp_ds --model_args pretrained=MODEL --tasks mmmu_val,librispeech --batch_size 8

lmms-eval finds this file by the entry point `lmms_eval.models` of imp_ds. What a task gives as images, videos and audio (pictures
of PIL, files, arrays with their rate) is read as training reads it.

Shapes: B conversations, L tokens of the longest prompt, T tokens of an answer, V words.
"""

import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model
from transformers import AutoModelForMultimodalLM, AutoProcessor

import imp_ds  # noqa: F401  its Auto classes
from imp_ds.errors import UserError
from imp_ds.modalities.audio.resampling import resample
from imp_ds.modalities.decoding_settings import DEFAULTS
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.messages.decoding import decode_medium
from imp_ds.modalities.messages.view import MessagesView

NAME = "imp_ds"
_DEFAULTS = {"max_new_tokens": 256, "temperature": 0.0}
_PASSED_ON = ("max_new_tokens", "num_beams", "top_p", "repetition_penalty", "length_penalty")
_IMAGE_FILES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tiff", ".webp")  # lmms-eval takes every other file for a video


def manifest():
    """How lmms-eval finds the model: the entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, chat_class_path=f"{__name__}.ExportedModel")


@register_model(NAME)
class ExportedModel(lmms):
    """A model that answers conversations.

    Args:
        pretrained: folder of an exported model.
        device: None: a GPU if there is one.
        dtype: of its parameters, "auto": as they are stored.
        batch_size: questions that are answered at once.
    """

    is_simple = False

    def __init__(
        self, pretrained: str, device: str | None = None, dtype: str = "auto", batch_size: int | str = 1, **unknown
    ) -> None:  # fmt: skip
        super().__init__()
        if unknown:
            raise UserError(
                "unknown arguments of the model", got=", ".join(unknown), allowed="pretrained, device, dtype, batch_size"
            )
        self.accelerator = None
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # a whole model for each process, and questions dealt to them
            from accelerate import Accelerator

            self.accelerator = Accelerator()
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        here = self.accelerator.device if self.accelerator else "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device or here)
        self.processor = AutoProcessor.from_pretrained(pretrained)
        self.model = AutoModelForMultimodalLM.from_pretrained(pretrained, dtype=dtype).to(self.device).eval()
        self.tokenizer, self.batch_size = self.processor.tokenizer, int(batch_size)
        self._view = MessagesView(
            frames=getattr(self.processor, "num_frames", 8), sampling_rate=getattr(self.processor, "sampling_rate", None) or 16000
        )

    def generate_until(self, requests) -> list[str]:
        """The answers to requests (context, doc_to_messages, generation kwargs, document, task, split), in their order."""
        answers: list[str] = [""] * len(requests)
        alike = defaultdict(list)  # requests with the same settings are answered together
        for place, request in enumerate(requests):
            alike[json.dumps(request.args[-4], sort_keys=True, default=str)].append(place)
        for places in alike.values():
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                for place, answer in zip(batch, self._generate([requests[place] for place in batch])):
                    answers[place] = answer
        return answers

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """Of requests (context, target, doc_to_visual, document, task, split) the log-probability of the target as the answer,
        and whether it is what would be answered."""
        return [self._likelihood(*request.args) for request in requests]

    def generate_until_multi_round(self, requests) -> list[str]:
        """Refused: of such tasks each turn depends on the answers before it."""
        raise UserError("tasks of several rounds are not answered", got="generate_until_multi_round", allowed="generate_until")

    def _generate(self, requests) -> list[str]:
        conversations = []
        for request in requests:
            doc_to_messages, _, doc, task, split = request.args[-5:]
            conversations.append(self._decoded(doc_to_messages(self.task_dict[task][split][doc])))
        given = {**_DEFAULTS, **requests[0].args[-4]}
        how = {name: given[name] for name in _PASSED_ON if given.get(name) is not None}
        if given.get("do_sample", True) and given["temperature"]:
            how |= {"do_sample": True, "temperature": given["temperature"]}
        else:
            how |= {"do_sample": False}
            how.pop("top_p", None)
        inputs = self._inputs(conversations)
        with torch.no_grad():
            ids_BT = self.model.generate(**inputs, **how)[:, inputs["input_ids"].shape[1] :]
        until = given.get("until") or []
        texts = self.tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
        return [_before(text, [until] if isinstance(until, str) else until).strip() for text in texts]

    def _likelihood(self, context: str, target, doc_to_visual, doc, task, split) -> tuple[float, bool]:
        document = self.task_dict[task][split][doc]
        target = (target(document) if callable(target) else target).strip()
        media = [{"type": _kind_of(visual), "url": visual} for visual in (doc_to_visual(document) or [])]
        turn = {"role": "user", "content": [*media, {"type": "text", "text": context}]}
        inputs = self._inputs([self._decoded([turn])])
        target_T = torch.tensor(self.tokenizer(target, add_special_tokens=False)["input_ids"], device=self.device)
        ids_BL = torch.cat([inputs["input_ids"], target_T[None]], dim=1)
        with torch.no_grad():
            logits_BLV = self.model(**inputs | {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}).logits
        log_p_TV = logits_BLV[0, -len(target_T) - 1 : -1].float().log_softmax(-1)
        log_p = log_p_TV.gather(1, target_T[:, None]).sum().item()
        return log_p, bool((log_p_TV.argmax(-1) == target_T).all())

    def _inputs(self, conversations: list[list[dict]]):
        padded = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        return self.processor.apply_chat_template(
            conversations, tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs=padded
        ).to(self.device)

    def _decoded(self, messages: list[dict]) -> list[dict]:
        """Messages of lmms-eval, whose parts have media under `url`, with media as arrays."""
        return [turn | {"content": [self._part(part) for part in _parts(turn["content"])]} for turn in messages]

    def _part(self, part: dict) -> dict:
        kind = part["type"]
        return part if kind == "text" else {"type": kind, kind: self._medium(kind, part["url"])}

    def _medium(self, kind: str, value) -> np.ndarray:
        """uint8 [H, W, 3], uint8 [T, H, W, 3], or float32 [N] at the processor's rate."""
        if isinstance(value, (str, Path)):
            try:
                return decode_medium(kind, Media(str(value), path=Path(value)), self._view, MediaCache(0), DEFAULTS)
            except BadSample as error:
                raise UserError(f"the {kind} of a task cannot be read", got=f"{value}: {error}") from None
        if kind == "image":
            return np.asarray(value.convert("RGB") if hasattr(value, "convert") else value)
        if kind == "audio":  # of a data set: its samples and their rate
            samples = np.asarray(value["array"], np.float32)
            mono_N = samples if samples.ndim == 1 else samples.mean(int(np.argmin(samples.shape)))
            return resample(mono_N, int(value["sampling_rate"]), self._view.sampling_rate)
        return np.stack([np.asarray(frame.convert("RGB") if hasattr(frame, "convert") else frame) for frame in value])


def _parts(content) -> list[dict]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _kind_of(visual) -> str:
    """Which kind of media a visual of lmms-eval is, as its own tasks tell them apart."""
    if isinstance(visual, (str, Path)):
        return "image" if str(visual).lower().endswith(_IMAGE_FILES) else "video"
    return "image" if hasattr(visual, "convert") else "audio"


def _before(text: str, ends: list[str]) -> str:
    """The text up to the first of the ends."""
    return min((text.split(end)[0] for end in ends if end), key=len, default=text)
