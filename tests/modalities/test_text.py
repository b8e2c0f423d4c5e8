"""Texts to token ids of a fixed or the needed length."""

import numpy as np
import pytest
import torch

from imp_ds.errors import UserError
from imp_ds.modalities import text
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.tokenization_imp import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a red cat", "a blue dog", "the cat and the dog"], 60, max_length=8)


def test_a_length_pads_and_cuts_to_exactly_that(tokenizer):
    out = text.preprocess(["cat", "the cat and the dog and the red cat"], tokenizer, 5)
    assert out["input_ids"].shape == (2, 5) and out["input_ids"].dtype == np.int64
    count = len(tokenizer("cat")["input_ids"])
    assert out["attention_mask"][0].tolist() == [1] * count + [0] * (5 - count)
    assert out["input_ids"][0, count:].tolist() == [0] * (5 - count)
    assert out["attention_mask"][1].tolist() == [1] * 5


def test_without_a_length_the_maximum_of_the_tokenizer_decides(tokenizer):
    # the length of training: an expert's capacity is a share of the padded length
    assert text.preprocess(["cat", "a cat"], tokenizer)["input_ids"].shape == (2, 8)
    assert text.preprocess(["the cat and the dog " * 9], tokenizer)["input_ids"].shape == (1, 8)


def test_without_any_maximum_the_longest_text_decides():
    endless = train_tokenizer(["a red cat", "a blue dog", "the cat and the dog"], 60, max_length=10**30)
    short = text.preprocess(["cat", "a cat"], endless)
    assert short["input_ids"].shape[1] == len(endless("a cat")["input_ids"])


def test_the_embedding_refuses_more_words_than_it_has_places():
    config = ImpConfig.from_size("tiny", vocab_size=9, text_max=4)
    with pytest.raises(UserError, match="longer than the model reads"):
        text.TextEmbedding(config)(torch.ones(1, 5, dtype=torch.int64))


@pytest.mark.parametrize("texts", [[], [""], ["cat", "  "], [3], [None]])
def test_what_is_no_text_is_refused(texts, tokenizer):
    with pytest.raises(UserError):
        text.preprocess(texts, tokenizer)
