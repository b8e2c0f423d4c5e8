"""Texts with a place where their answer is read: the state of one token, the tokenizer's mask token (Uni-Perceiver, release: its
`spe_index` in questions and in the texts of GLUE).

Shapes: B texts, L tokens of a text.
"""

import numpy as np

from imp_ds.modalities.text import masking
from imp_ds.modalities.text.tokens import preprocess

MASK_TEXT = "[MASK]"  # in a text, whatever the tokenizer calls its mask token


def preprocess_with_mask(texts: list[str], tokenizer, length: int | None = None, **options) -> dict[str, np.ndarray]:
    """`text.preprocess` of texts that all have the mask token: in the place of MASK_TEXT, or at the end of a text without it.

    options: `padding` and `truncation` of `text.preprocess`.

    A text that is so long that its mask would be cut off has it instead of its last token that is left. Raises UserError as
    `text.preprocess`, and for a tokenizer without a token that stands for a hidden word.
    """
    mask_id = masking.mask_id(tokenizer)
    token = tokenizer.convert_ids_to_tokens(mask_id)
    masked = [text.replace(MASK_TEXT, token) if MASK_TEXT in text else f"{text} {token}" for text in texts]
    inputs = preprocess(masked, tokenizer, length, **options)
    ids_BL, special = inputs["input_ids"], list({*tokenizer.all_special_ids} - {tokenizer.unk_token_id})
    for ids_L, mask_L in zip(ids_BL, inputs["attention_mask"]):
        if mask_id not in ids_L:
            words = np.flatnonzero((mask_L > 0) & ~np.isin(ids_L, special))
            ids_L[words[-1]] = mask_id
    return inputs
