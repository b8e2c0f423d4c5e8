"""Text: token ids of any Hugging Face tokenizer, padded to the longest text that a task allows.

Shapes: B batch, L tokens of an example, D width, V words of the vocabulary.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.errors import UserError
from imp_ds.modalities.positions import FactoredPositions
from imp_ds.modalities.text import masking

INPUT_NAMES = ("input_ids", "attention_mask")
_LONGEST = 1 << 20  # tokenizers without a maximum say 1e30, which their own code cannot count to


class TokenTable(nn.Embedding):
    """The words' vectors. forward: ids [...] -> vectors [..., D]; or states [..., D], of floating point -> their product with
    the vector of every word, [..., V].

    Both are a forward of this module, since it is for the forward of its own module that ZeRO 3 gathers a weight.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight) if x.is_floating_point() else super().forward(x)


class TextEmbedding(nn.Module):
    """Token ids to tokens. forward takes `input_ids` [B, L], `attention_mask` [B, L] (1 = a word, 0 = padding), and
    `token_positions` [L] where a token's position in its text, from 0, is not its position in the sequence.

    Positions are scaled by the longest text, not by this one, so that a token's position reads the same bucket at any length.
    """

    def __init__(self, config):
        super().__init__()
        self.words = TokenTable(config.vocab_size, config.hidden_size)
        normed = config.text_positions == "factored"
        self.positions = FactoredPositions([config.text_max], config.hidden_size, config.layer_norm_eps, normed)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, token_positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        length, longest = input_ids.shape[1], self.positions.buckets[0]
        if token_positions is None:
            if length > longest:
                raise UserError("a text is longer than the model reads", got=f"{length} tokens", allowed=f"at most {longest}")
            token_positions = torch.arange(length, device=input_ids.device)
        shares = (token_positions.float() / longest).view(1, length, 1)
        tokens = self.words(input_ids) + self.positions(shares).to(self.words.weight.dtype)
        return tokens, None if attention_mask is None else attention_mask.bool()


def preprocess(
    texts: list[str], tokenizer, length: int | None = None, *, padding: bool | str | None = None, truncation: bool | str = True
) -> dict[str, np.ndarray]:
    """Texts to the model's inputs: `input_ids` and `attention_mask`, int64 [B, L].

    Args:
        tokenizer: a Hugging Face tokenizer with a padding token.
        length: L, longer texts are cut. None takes the tokenizer's own maximum, which training sets to the length it used:
            an expert's capacity is a share of the padded length, so another length would be another model. A tokenizer
            without a maximum pads to the longest text.
        padding, truncation: as Hugging Face tokenizers take them; None pads to `length`.

    Raises:
        UserError: something that is no text, texts that keep different lengths, or a text without a single token (its mean over
            no words has no value).
    """
    return _encode(texts, tokenizer, length, padding, truncation)[1]


def preprocess_masked(
    texts: list[str], tokenizer, length: int | None, rate: float, rngs: list[np.random.Generator]
) -> dict[str, np.ndarray]:
    """`preprocess`, with a share of the words hidden (`imp_ds.modalities.text.masking`), and `words`, int64 [B, L]: the ids of
    the hidden tokens, -100 elsewhere.

    Args:
        rate: share of the words.
        rngs: one for each text, of its sample.

    Raises:
        UserError: as `preprocess`, and for a tokenizer without a token that stands for a hidden word.
    """
    encoded, inputs = _encode(texts, tokenizer, length)
    mask_id, ordinary_V = masking.mask_id(tokenizer), masking.ordinary_tokens(tokenizer)
    vocabulary, ids_BL = np.flatnonzero(ordinary_V), inputs["input_ids"]
    ordinary_BL = ordinary_V[ids_BL] & (inputs["attention_mask"] > 0)
    labels_BL = np.empty_like(ids_BL)
    for row, rng in zip(range(len(ids_BL)), rngs, strict=True):
        if encoded.is_fast:
            tokens, word_ids = encoded.tokens(row), encoded.word_ids(row)
        else:
            tokens, word_ids = tokenizer.convert_ids_to_tokens(ids_BL[row].tolist()), None
        word_of_token_L = masking.number_words(tokens, word_ids, ordinary_BL[row])
        ids_BL[row], labels_BL[row] = masking.mask_words(ids_BL[row], word_of_token_L, rate, mask_id, vocabulary, rng)
    return {**inputs, "token_ids": labels_BL}


def preprocess_captions(texts: list[str], tokenizer, length: int) -> np.ndarray:
    """The target ids of captions, int64 [B, L]: those of the text and of its end, -100 after it. None of the
    tokenizer's own special tokens is among them.

    Args:
        length: L; a longer text is cut, and then has no end.

    Raises:
        UserError: as `preprocess`.
    """
    _check_texts(texts)
    end, said_BL = end_id(tokenizer), np.full((len(texts), length), masking.IGNORED)
    found = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
    for said_L, ids, text in zip(said_BL, found, texts):
        if not ids:
            raise _no_tokens(text)
        said_L[: len(ids) + 1] = [*ids, end][:length]
    return said_BL


def has_tokens(caption: str, tokenizer) -> bool:
    """Whether the tokenizer makes a token of a text, beside the special tokens that it puts around every text."""
    return bool(tokenizer(caption, add_special_tokens=False)["input_ids"])


def end_id(tokenizer) -> int:
    """The id of the token that ends a generated text: the tokenizer's end or separator token, or, where it has
    neither, the padding token, which is nothing that a text could hold."""
    ids = (getattr(tokenizer, name, None) for name in ("eos_token_id", "sep_token_id", "pad_token_id"))
    return next(found for found in ids if found is not None)


def _check_texts(texts) -> None:
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError("text must be a string or a list of strings", got=repr(texts)[:200])


def _no_tokens(text: str) -> UserError:
    return UserError("a text has no tokens", got=repr(text), fix="leave samples without a caption out")


def _encode(texts: list[str], tokenizer, length: int | None, padding: bool | str | None = None, truncation: bool | str = True):
    """What the tokenizer gives, and of it the model's inputs."""
    _check_texts(texts)
    maximum = length or min(tokenizer.model_max_length, _LONGEST)
    if padding is None or (padding == "max_length" and maximum == _LONGEST):
        padding = "max_length" if maximum < _LONGEST else "longest"
    bound = maximum if padding == "max_length" or truncation not in (False, None, "do_not_truncate") else None
    encoded = tokenizer(list(texts), padding=padding, truncation=truncation, max_length=bound, return_attention_mask=True)
    lengths = {len(ids) for ids in encoded["input_ids"]}
    if len(lengths) > 1:
        raise UserError(
            "the texts keep different lengths", got=f"{min(lengths)} to {max(lengths)} tokens with {padding=}, {truncation=}",
            allowed="texts that are padded or cut to one length", fix="pass padding=True, or truncation=True",
        )  # fmt: skip
    inputs = {name: np.array(encoded[name], dtype=np.int64) for name in INPUT_NAMES}
    empty = np.flatnonzero(inputs["attention_mask"].sum(1) == 0)
    if len(empty):
        raise _no_tokens(texts[empty[0]])
    return encoded, inputs
