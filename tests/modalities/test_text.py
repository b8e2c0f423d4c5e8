"""Texts to token ids of a fixed or the needed length."""

import numpy as np
import pytest

from imp_ds.errors import UserError
from imp_ds.modalities import text
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


def test_without_a_length_the_longest_decides_up_to_the_maximum(tokenizer):
    short = text.preprocess(["cat", "a cat"], tokenizer)
    assert short["input_ids"].shape[1] == len(tokenizer("a cat")["input_ids"])
    assert text.preprocess(["the cat and the dog " * 9], tokenizer)["input_ids"].shape == (1, 8)


@pytest.mark.parametrize("texts", [[], [""], ["cat", "  "], [3], [None]])
def test_what_is_no_text_is_refused(texts, tokenizer):
    with pytest.raises(UserError):
        text.preprocess(texts, tokenizer)
