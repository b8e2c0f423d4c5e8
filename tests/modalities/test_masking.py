"""Which words of a text are hidden: how many, which, and what stands in their place; word boundaries of every kind of tokenizer.

Shapes: B texts, L tokens of a text, W words of it.
"""

import json

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, trainers
from transformers import BertTokenizer, ByT5Tokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, T5Tokenizer

from imp_ds.errors import UserError
from imp_ds.modalities.text import tokens as text
from imp_ds.modalities.text.masking import IGNORED, mask_id, mask_words, most_hidden, number_words
from imp_ds.modalities.text.tokenizers import train_tokenizer

CORPUS = ["a red cat, two unbelievable dogs.", "a blue dog", "the cat and the dog"] * 3
SENTENCE = "the dogs cat, red"
LENGTH = 24


def ours():
    return train_tokenizer(CORPUS, 40)


def unsplit():
    """SentencePiece without cuts before its merges, as Llama's and Gemma's: its own word_ids see one word."""
    tokenizer = Tokenizer.from_str(ours().backend_tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")


def t5():
    full = Tokenizer(models.Unigram())
    full.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    full.train_from_iterator(CORPUS, trainer)
    return T5Tokenizer(vocab=[tuple(piece) for piece in json.loads(full.to_str())["model"]["vocab"]])


def bert():
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the dog ##s cat , re ##d a blue".split()
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def gpt2():
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=262, special_tokens=["<|endoftext|>"])
    model = json.loads(trained._tokenizer.to_str())["model"]
    tokenizer = GPT2Tokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


TOKENIZERS = {make.__name__: make for make in (ours, unsplit, t5, bert, gpt2)}


def words_of(tokenizer, sentence: str, length: int = LENGTH) -> list[str]:
    """The words that are hidden together, found by hiding one at a time: as the text that their tokens say."""
    found = {}
    rngs = [np.random.default_rng(i) for i in range(60)]
    out = text.preprocess_masked([sentence] * len(rngs), tokenizer, length, 1e-3, rngs)
    for words_L in out["token_ids"]:
        places = np.flatnonzero(words_L != IGNORED)
        assert (np.diff(places) == 1).all()
        found[places[0]] = "".join(tokenizer.convert_ids_to_tokens(words_L[places].tolist()))
    return [found[place].strip("\u2581\u0120").replace("##", "") for place in sorted(found)]


@pytest.mark.parametrize("name, expected", [
    ("ours", ["the", "dogs", "cat,", "red"]),
    ("unsplit", ["the", "dogs", "cat,", "red"]),
    ("t5", ["the", "dogs", "cat,", "red"]),
    ("bert", ["the", "dogs", "cat", ",", "red"]),  # WordPiece and byte-level tokenizers cut at punctuation
    ("gpt2", ["the", "dogs", "cat", ",", "red"]),
])  # fmt: skip
def test_words_of_each_kind_of_tokenizer(name, expected):
    tokenizer = TOKENIZERS[name]()
    assert words_of(tokenizer, SENTENCE) == expected
    assert len(tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]) > len(expected)  # some words have several tokens


def test_numbers_by_hand():
    yes = np.ones(6, dtype=bool)
    spaces = ["\u2581a", "b", "\u2581", "c", "\u2581d", "e"]
    assert number_words(spaces, None, yes).tolist() == [0, 0, 1, 1, 2, 2]  # a tokenizer of Python tells no words
    assert number_words(spaces, [0] * 6, yes).tolist() == [0, 0, 1, 1, 2, 2]
    assert number_words(["a", "b", "c", "d", "e", "f"], [0, 0, 1, 1, 1, 2], yes).tolist() == [0, 0, 1, 1, 1, 2]
    # an unknown piece is of no word, and parts none
    inside = np.array([True, False, True, True, True, False])
    assert number_words(spaces, None, inside).tolist() == [0, -1, 1, 1, 2, -1]
    assert number_words(["[CLS]", "a", "##b", "c", "[SEP]", "[PAD]"], [None, 0, 0, 1, None, None],
                        np.array([False, True, True, True, False, False])).tolist() == [-1, 0, 0, 1, -1, -1]  # fmt: skip
    assert number_words(spaces, None, ~yes).tolist() == [-1] * 6


def test_a_run_without_spaces_is_a_word_for_each_of_its_tokens():
    """Eight tokens are a word still; nine, as a script without spaces has them, are none."""
    pieces = ["\u2581", *"abcdefg", "\u2581x", "y"]
    assert number_words(pieces, None, np.ones(10, dtype=bool)).tolist() == [0] * 8 + [1, 1]
    pieces = ["\u2581", *"abcdefgh", "\u2581x", "y"]
    assert number_words(pieces, None, np.ones(11, dtype=bool)).tolist() == [*range(9), 9, 9]


MASK, VOCABULARY = 2, np.arange(5, 40)
# words of 1, 2 and 3 tokens in turn, 20 of each: 120 tokens; a special token before and after, then padding
SIZES = [1 + i % 3 for i in range(60)]
WORDS = np.array([-1, *np.repeat(np.arange(60), SIZES), -1, *[-1] * 6])
IDS = np.where(WORDS >= 0, 5 + WORDS % 35, 0)


def draws(rate: float, times: int = 400):
    return [mask_words(IDS, WORDS, rate, MASK, VOCABULARY, np.random.default_rng(i)) for i in range(times)]


def test_so_many_whole_words_are_hidden():
    for masked, targets in draws(0.15):
        hidden = targets != IGNORED
        words = set(WORDS[hidden])
        assert len(words) == round(0.15 * 60) == 9
        assert -1 not in words and hidden.sum() == sum(SIZES[word] for word in words)
        assert (targets[hidden] == IDS[hidden]).all() and (masked[~hidden] == IDS[~hidden]).all()


def test_eight_of_ten_become_the_mask_one_another_word_one_stays_and_each_word_as_a_whole():
    counts, places = {"mask": 0, "same": 0, "other": 0}, np.zeros(60)
    for masked, targets in draws(0.15):
        for word in set(WORDS[targets != IGNORED]):
            before, after = IDS[WORDS == word], masked[WORDS == word]
            places[word] += 1
            if (after == MASK).all():
                counts["mask"] += 1
            elif (after == before).all():
                counts["same"] += 1
            else:  # no token of it is what it was
                assert (after != before).all() and np.isin(after, VOCABULARY).all()
                counts["other"] += 1
    # 3600 words: four standard deviations are 96 at a share of 0.8 and 72 at 0.1; each word 60 times, +- 30
    assert counts["mask"] == pytest.approx(2880, abs=96)
    assert counts["same"] == pytest.approx(360, abs=72) and counts["other"] == pytest.approx(360, abs=72)
    assert places.min() > 30 and places.max() < 90


def test_every_other_token_is_as_likely():
    ids, words = np.full(8, 5), np.zeros(8, dtype=int)
    seen = [mask_words(ids, words, 0.15, MASK, np.array([5, 6, 7]), np.random.default_rng(i))[0] for i in range(3000)]
    other = np.concatenate([masked for masked in seen if not np.isin(masked, (MASK, 5)).any()])
    assert set(other) == {6, 7} and (other == 6).mean() == pytest.approx(0.5, abs=0.05)


def test_at_least_one_word_is_hidden_and_none_where_there_is_none():
    words = np.array([-1, 0, 1, -1])
    masked, targets = mask_words(np.array([1, 8, 9, 0]), words, 0.01, MASK, VOCABULARY, np.random.default_rng(0))
    assert (targets != IGNORED).sum() == 1
    masked, targets = mask_words(np.array([1, 1, 0]), np.full(3, -1), 0.5, MASK, VOCABULARY, np.random.default_rng(0))
    assert masked.tolist() == [1, 1, 0] and targets.tolist() == [IGNORED] * 3


def test_no_text_has_more_hidden_tokens_than_are_computed():
    # 30 words of 4 tokens; half of them would be 60 tokens: all of them fit, since twice half of 120 is the whole text
    words = np.repeat(np.arange(30), 4)
    assert [most_hidden(*of) for of in ((120, 0.5), (100, 0.15), (16, 0.15), (5, 0.9))] == [120, 30, 8, 5]
    _, targets = mask_words(words, words, 0.5, MASK, VOCABULARY, np.random.default_rng(0))
    assert (targets != IGNORED).sum() == 60
    # 20 words of one token, 5 of eight: 25 * 0.3 = 8 words, at most 2 * 0.3 * 60 = 36 tokens, so four of the five at most
    words = np.concatenate([np.arange(20), 20 + np.repeat(np.arange(5), 8)])
    counts = []
    for i in range(2000):
        _, targets = mask_words(words, words, 0.3, MASK, VOCABULARY, np.random.default_rng(i))
        hidden = words[targets != IGNORED]
        assert len(hidden) <= 36 and len(set(hidden)) == 8
        counts.append(len(hidden))
    assert max(counts) == 36


def test_a_text_is_masked_the_same_in_any_company():
    tokenizer = ours()
    alone = text.preprocess_masked([SENTENCE], tokenizer, LENGTH, 0.3, [np.random.default_rng(7)])
    rngs = [np.random.default_rng(i) for i in (3, 7, 4)]
    among = text.preprocess_masked(["a blue dog", SENTENCE, "a red cat"], tokenizer, LENGTH, 0.3, rngs)
    for name, values in alone.items():
        np.testing.assert_array_equal(among[name][1], values[0])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_to_masked_inputs(name):
    tokenizer = TOKENIZERS[name]()
    texts = [SENTENCE, "a blue dog"] * 200
    plain = text.preprocess(texts, tokenizer, LENGTH)
    out = text.preprocess_masked(texts, tokenizer, LENGTH, 0.3, [np.random.default_rng(i) for i in range(400)])
    keys = ("input_ids", "attention_mask", "token_ids")
    assert all(out[key].shape == (400, LENGTH) and out[key].dtype == np.int64 for key in keys)
    np.testing.assert_array_equal(out["attention_mask"], plain["attention_mask"])
    hidden = out["token_ids"] != IGNORED
    np.testing.assert_array_equal(np.where(hidden, out["token_ids"], out["input_ids"]), plain["input_ids"])
    special = np.isin(plain["input_ids"], tokenizer.all_special_ids)
    assert not hidden[special | (plain["attention_mask"] == 0)].any() and hidden.any(1).all()
    read = out["input_ids"][hidden]
    assert (read == mask_id(tokenizer)).any() and (read == out["token_ids"][hidden]).any()
    assert not np.isin(read[read != mask_id(tokenizer)], tokenizer.all_special_ids).any() and read.max() < len(tokenizer)


def test_a_tokenizer_without_words_masks_its_tokens():
    tokenizer = ByT5Tokenizer()  # bytes, in Python
    out = text.preprocess_masked(["a red cat, a dog"], tokenizer, 20, 0.25, [np.random.default_rng(0)])
    assert (out["token_ids"] != IGNORED).sum() == 4  # a quarter of 16 bytes


def test_which_token_stands_for_a_hidden_word():
    assert ours().mask_token_id == mask_id(ours()) == 2
    assert mask_id(bert()) == 4
    lent = t5()
    assert lent.mask_token is None and lent.convert_ids_to_tokens(mask_id(lent)) == "<extra_id_0>"
    none = gpt2()
    none.mask_token = None
    with pytest.raises(UserError, match="(?s)no token that stands for a hidden word.*add_special_tokens"):
        text.preprocess_masked(["a cat"], none, LENGTH, 0.3, [np.random.default_rng(0)])
