"""Marks in texts: where they are put, and that they are always there."""

from imp_ds.modalities.text.answer_mask import preprocess_with_mask
from imp_ds.modalities.text.tokenizers import train_tokenizer

TOKENIZER = train_tokenizer(["the dog barks", "the cat meows", "which animal is it"], 80)


def words(text: str, length: int = 6) -> list[str]:
    inputs = preprocess_with_mask([text], TOKENIZER, length)
    assert (inputs["input_ids"] == TOKENIZER.mask_token_id).sum() == 1
    spelled = TOKENIZER.decode(inputs["input_ids"][0][inputs["attention_mask"][0] > 0])
    return spelled.replace("<mask>", " <mask> ").split()


def test_a_mask_stands_where_the_text_has_it_or_at_the_end():
    assert words("the [MASK] barks") == ["the", "<mask>", "barks"]
    assert words("the dog barks") == ["the", "dog", "barks", "<mask>"]


def test_a_text_that_is_too_long_has_its_mask_in_the_last_place():
    assert words("which animal is it", length=4) == ["which", "animal", "is", "<mask>"]
    assert words("the dog [MASK]", length=2) == ["the", "<mask>"]
