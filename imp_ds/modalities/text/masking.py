"""Which words of a text are hidden, to be found (BERT, arXiv 1810.04805, section 3.1; whole words as in its later release and
in Uni-Perceiver, arXiv 2112.01522).

A token starts a word where the tokenizer's own pre-tokenizer starts one, or with "▁", by which SentencePiece writes a space.
Either alone is not enough: WordPiece and byte-level tokenizers have no "▁", and to a SentencePiece tokenizer that cuts nothing
before its merges a whole text is one word. Special, unknown and padding tokens belong to no word.

Shapes: L tokens of a text, W words of it, V ordinary tokens of the vocabulary.
"""

import math

import numpy as np

from imp_ds.errors import UserError

IGNORED = -100  # the target of what is not to be found: torch's cross-entropy knows it
LONGEST_WORD = 8  # tokens
_SPACE = "\u2581"
_MASKED, _OTHER, _SAME = 1, 2, 3  # what stands in the place of a hidden word
_SHARES = (0.8, 0.9)  # of _MASKED; of _MASKED and _OTHER


def most_hidden(length: int, rate: float) -> int:
    """The most tokens that are hidden of a text padded to `length`: twice what is hidden on average of a full one, or one word.

    A bound lets the scores of all tokens, the largest tensor of the step, be computed for so many tokens of each text: a shape
    that depends on no values, for which the host waits for no device.
    """
    return min(length, max(LONGEST_WORD, math.ceil(2 * rate * length)))


def mask_words(
    ids_L: np.ndarray, word_of_token_L: np.ndarray, rate: float, mask_id: int, vocabulary_V: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What the model reads, and what it is to find: ids and targets, int64 [L].

    max(1, round(rate * W)) words are drawn uniformly; of them 80% become the mask token, 10% other tokens, 10% stay, decided
    for each word. A word that would bring the text above `most_hidden` is passed over, as in BERT's release.

    Args:
        word_of_token_L: number of the word that each token belongs to, from `number_words`; -1: never hidden.
        vocabulary_V: the tokens from which others are drawn, V >= 2; each token of a word becomes one that it is not.
        rng: the sample's own; the same draws whatever stands in the text's company.
    """
    drawn = _draw_words(word_of_token_L, rate, rng)
    place_W1 = np.zeros(word_of_token_L.max(initial=-1) + 2, np.int8)  # the last place is that of the tokens of no word
    place_W1[drawn] = _MASKED + np.searchsorted(_SHARES, rng.random(len(drawn)), side="right")
    place_L = place_W1[word_of_token_L]
    masked_L = np.where(place_L == _MASKED, mask_id, ids_L)
    other = place_L == _OTHER
    masked_L[other] = _others(ids_L[other], vocabulary_V, rng)
    return masked_L, np.where(place_L > 0, ids_L, IGNORED)


def _draw_words(word_of_token_L: np.ndarray, rate: float, rng: np.random.Generator) -> list[int]:
    size_W = np.bincount(word_of_token_L[word_of_token_L >= 0])
    wanted, room, drawn = max(1, round(rate * len(size_W))), most_hidden(len(word_of_token_L), rate), []
    for word in rng.permutation(len(size_W)):
        if len(drawn) == wanted:
            break
        if size_W[word] <= room:
            room -= size_W[word]
            drawn.append(int(word))
    return drawn


def _others(ids: np.ndarray, vocabulary_V: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each token one of the others, uniformly: the last of the vocabulary stands in for the token itself."""
    drawn = vocabulary_V[rng.integers(len(vocabulary_V) - 1, size=len(ids))]
    return np.where(drawn == ids, vocabulary_V[-1], drawn)


def number_words(tokens: list[str], word_ids: list[int | None] | None, ordinary_L: np.ndarray) -> np.ndarray:
    """The number of each token's word, from 0 in the order of the text, int64 [L]; -1 for tokens that are not ordinary.

    A run of more than LONGEST_WORD tokens is no word (scripts without spaces, addresses, hashes): its tokens are one each.

    Args:
        tokens: the pieces as the vocabulary writes them.
        word_ids: by the tokenizer's pre-tokenizer, None where it tells nothing.
        ordinary_L: False for special, unknown and padding tokens.
    """
    starts_L = np.array([token.startswith(_SPACE) for token in tokens])
    if word_ids is not None:
        starts_L[1:] |= np.array([a != b for a, b in zip(word_ids, word_ids[1:])], dtype=bool)
    run_L = np.cumsum(starts_L)
    too_long = np.bincount(run_L[ordinary_L], minlength=run_L[-1] + 1) > LONGEST_WORD
    word_L = np.cumsum(starts_L | too_long[run_L])
    number_L = np.full(len(tokens), -1)
    number_L[ordinary_L] = np.unique(word_L[ordinary_L], return_inverse=True)[1]
    return number_L


def mask_id(tokenizer) -> int:
    """The id of the token that stands for a hidden word; T5's tokenizers, which have none, lend <extra_id_0>.

    Raises UserError for a tokenizer without either.
    """
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    lent = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    if lent is None or lent == tokenizer.unk_token_id:
        raise UserError(
            "the tokenizer has no token that stands for a hidden word",
            got=tokenizer.name_or_path or type(tokenizer).__name__,
            allowed="one with a mask token, or with <extra_id_0>",
            fix='tokenizer.add_special_tokens({"mask_token": "<mask>"}), save_pretrained(DIR), and data.tokenizer=DIR; '
            "or no data.tokenizer: one that is trained on the captions has a mask token",
        )
    return lent


def ordinary_tokens(tokenizer) -> np.ndarray:
    """Of every id of the vocabulary, whether it can be hidden and found: all but special, unknown and padding tokens, bool."""
    ordinary = np.ones(len(tokenizer), dtype=bool)
    ordinary[tokenizer.all_special_ids] = False
    return ordinary
