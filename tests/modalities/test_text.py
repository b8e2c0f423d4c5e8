"""Texts to token ids of a fixed or the needed length."""

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from imp_ds.errors import UserError
from imp_ds.modalities.text import masking
from imp_ds.modalities.text import tokens as text
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.models.imp.configuration_imp import ImpConfig


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


def test_a_caption_is_its_words_and_an_end(tokenizer):
    ids = tokenizer("a red cat")["input_ids"]
    said_BL = text.preprocess_captions(["a red cat", "the cat and the dog and the red cat"], tokenizer, len(ids) + 2)
    # this tokenizer has no end token: padding, which no text holds, ends one
    assert text.end_id(tokenizer) == tokenizer.pad_token_id == 0
    assert said_BL.dtype == np.int64 and said_BL[0].tolist() == [*ids, 0, masking.IGNORED]
    assert said_BL[1].tolist() == tokenizer("the cat and the dog and the red cat")["input_ids"][: len(ids) + 2]  # cut: no end
    full = text.preprocess_captions(["a red cat"], tokenizer, len(ids) + 1)
    assert full[0].tolist() == [*ids, 0]


def test_a_caption_ends_as_its_tokenizer_ends_texts_and_has_no_other_marks():
    marking = train_tokenizer(["a red cat", "a blue dog", "the cat and the dog"], 60)
    marking.add_special_tokens({"eos_token": "</s>", "cls_token": "<s>"})
    ids = marking("a red cat")["input_ids"]
    marks = [("<s>", marking.cls_token_id), ("</s>", marking.eos_token_id)]
    marking.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    assert marking("a red cat")["input_ids"] == [marking.cls_token_id, *ids, marking.eos_token_id]
    said_BL = text.preprocess_captions(["a red cat"], marking, len(ids) + 1)
    assert said_BL[0].tolist() == [*ids, marking.eos_token_id]


@pytest.mark.parametrize("texts", [[], [""], ["cat", "  "], [3], [None]])
def test_what_is_no_caption_is_refused(texts, tokenizer):
    with pytest.raises(UserError):
        text.preprocess_captions(texts, tokenizer, 5)


def test_places_may_be_given():
    embedding = text.TextEmbedding(ImpConfig.from_size("tiny", vocab_size=9, text_max=4))
    ids_BL = torch.tensor([[3, 5, 7]])
    usual, _ = embedding(ids_BL)
    again, _ = embedding(torch.tensor([[7, 5, 3, 5, 7]]), token_positions=torch.tensor([2, 1, 0, 1, 2]))
    assert torch.equal(again, usual[:, [2, 1, 0, 1, 2]])
