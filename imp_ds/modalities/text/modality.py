"""Text: captions and other texts, all that the program asks about them."""

import numpy as np

from imp_ds.costs import passes
from imp_ds.errors import UserError
from imp_ds.modalities.in_turn import in_turn
from imp_ds.modalities.modality import Modality, Preprocessed, register_modality
from imp_ds.modalities.text import captions, tokens
from imp_ds.modalities.text.answer_mask import preprocess_with_mask
from imp_ds.modalities.text.view import TextOptions, TextView


@register_modality
class Text(Modality):
    """Token ids of any Hugging Face tokenizer."""

    kind, is_standard = "text", True
    item_kinds = ("text",)
    what = "captions and other texts"
    column = "column of a caption or a list of captions (one is drawn each time)"
    missing = "no text"
    example = 'text=["a text"]'
    inputs = tokens.INPUT_NAMES
    part = "tokenizer"
    is_cheap, has_texts, names_a_file = True, True, False
    View, Options = TextView, TextOptions

    def read(self, value, where, row):
        return captions.captions(value, where)

    def decode(self, raws, view, rngs, cache, augment, wanted):
        def one_of(texts: list[str], rng) -> str:
            texts = captions.usable_captions(texts, wanted)
            return texts[0 if rng is None else int(rng.integers(len(texts)))]

        return in_turn(one_of, raws, rngs)

    def preprocess(self, samples, view, part, rngs, *, augment, text, empty):
        targets = {}
        if text.mask_at_answer:
            inputs = preprocess_with_mask(samples, part, view.length)
        elif text.mask_rate and rngs is not None:
            inputs = tokens.preprocess_masked(samples, part, view.length, text.mask_rate, rngs)
            targets["token_ids"] = inputs.pop("token_ids")
        else:
            inputs = tokens.preprocess(samples, part, view.length)
        if text.target_ids:
            targets["caption"] = tokens.preprocess_captions(samples, part, view.length)
        return Preprocessed(inputs, targets, padding=1.0 - float(inputs["attention_mask"].astype(np.float32).mean()))

    def embedding(self, config):
        return tokens.TextEmbedding(config)

    def most_tokens(self, config):
        return config.text_max

    def tokens(self, view, config, settings, path):
        if view.length > config.text_max:
            raise UserError(
                "a text view is longer than the model's texts", got=view.length, allowed=f"text_max = {config.text_max}",
                fix=f"change {path}.length or model.text_max",
            )  # fmt: skip
        return view.length

    def kernels(self, config, tokens, values, value_bytes):
        width = config.hidden_size
        table = config.vocab_size * width * value_bytes  # the gradient of the table is dense: filled with zeros, then added to
        return [passes("copy", table + 5 * tokens * width * value_bytes, 3)]

    def facts(self, raw):
        return {"captions": len(raw)}

    def captions(self, raw):
        return raw
