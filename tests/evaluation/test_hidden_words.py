"""The evaluator of hidden words: against a direct computation, in shares of two ranks, by hand, and what it refuses.

Shapes: L tokens of a text, V words of the vocabulary.
"""

from math import exp

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.grammar import SENTENCES, TASK, small_model
from imp_ds.errors import UserError
from imp_ds.evaluation import by_name
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.evaluation import masked_language
from imp_ds.families.imp.evaluation.masked_language import MaskedLanguageEvaluator
from imp_ds.modalities.text import tokens as text
from imp_ds.modalities.text.masking import IGNORED
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.tasks import Source

CAPTIONS = [*SENTENCES[:5], "", *SENTENCES[5:]]  # the row without a caption could not be read
TOKENIZER = train_tokenizer(SENTENCES, 80)


def record(**changes) -> Evaluation:
    source = Source(path="sentences", text="text")
    return Evaluation(**{**dict(name="words", modality="text", source=source, views=Views(text=TextView(length=6))), **changes})


def run(batch_size: int, **changes) -> dict[str, float]:
    evaluator = MaskedLanguageEvaluator(record(), TASK, CAPTIONS, TOKENIZER, batch_size=batch_size)
    with torch.no_grad():
        return by_name(evaluator.run(changes.get("model") or small_model(len(TOKENIZER)).eval()))


def hide(row: int) -> dict[str, torch.Tensor]:
    made = text.preprocess_masked([CAPTIONS[row]], TOKENIZER, 6, TASK.needs.mask_rate, [np.random.default_rng([0, row])])
    return {name: torch.from_numpy(values) for name, values in made.items()}


def test_results_equal_a_direct_computation():
    model, losses, hits = small_model(len(TOKENIZER)).eval(), [], []
    for row in (row for row, caption in enumerate(CAPTIONS) if caption):
        made = hide(row)
        with torch.no_grad():
            tokens_LD = model.imp.encode("text", {name: made[name] for name in text.INPUT_NAMES}).tokens_BLD[0]
            scores_LV = model.objectives["words"].parts[0].head(model.imp, tokens_LD).double()
        for scores_V, word in zip(scores_LV, made["token_ids"][0]):
            if word != IGNORED:
                losses.append(F.cross_entropy(scores_V, word).item())
                hits.append(scores_V.argmax().item() == word.item())
    assert len(losses) >= len(SENTENCES)
    expected = {"left_out/words": 1.0, "masked_language/words/accuracy": sum(hits) / len(hits),
                "masked_language/words/perplexity": exp(sum(losses) / len(losses))}  # fmt: skip
    found = run(7, model=model)
    assert found == pytest.approx(expected, rel=1e-5) and list(found) == list(expected)


def test_the_ranks_share_the_texts(monkeypatch):
    """Each of two ranks has its own texts, all together and none twice; a batch that is not full is filled up."""
    evaluator = MaskedLanguageEvaluator(record(), TASK, CAPTIONS, TOKENIZER, batch_size=3)
    monkeypatch.setattr(masked_language, "world_size", lambda: 2)
    seen = []
    for turn in range(3):  # 16 texts, 6 in a turn
        for rank in (0, 1):
            monkeypatch.setattr(masked_language, "rank", lambda rank=rank: rank)
            batch = evaluator._batch(turn)
            assert batch.inputs["text"]["input_ids"].shape == (3, 6)
            seen += [words_L for words_L in batch.targets["token_ids"] if (words_L != IGNORED).any()]
    rows = [row for row, caption in enumerate(CAPTIONS) if caption]
    torch.testing.assert_close(torch.stack(seen), torch.cat([hide(row)["token_ids"] for row in rows]))


def test_every_run_hides_the_same_words_in_any_batches():
    first = run(4)
    assert run(4) == first and run(16) == pytest.approx(first, rel=1e-5)


def test_a_head_that_always_says_one_word():
    model = small_model(len(TOKENIZER)).eval()
    (word,) = TOKENIZER("the")["input_ids"]
    model.objectives["words"].parts[0].head.bias.data[word] = 1e3
    targets = torch.cat([hide(row)["token_ids"] for row, caption in enumerate(CAPTIONS) if caption])
    found = run(4, model=model)
    assert found["masked_language/words/accuracy"] == (targets == word).sum() / (targets != IGNORED).sum() > 0
    assert found["masked_language/words/perplexity"] > 1e100


def test_what_is_refused():
    with pytest.raises(UserError, match="lacks a view"):
        MaskedLanguageEvaluator(record(views=Views()), TASK, CAPTIONS, TOKENIZER)
    with pytest.raises(UserError, match="hides no words"):
        MaskedLanguageEvaluator(record(), TASK.model_copy(update={"objectives": []}), CAPTIONS, TOKENIZER)
    with pytest.raises(UserError, match="measures nothing"):
        MaskedLanguageEvaluator(record(), TASK, ["", ""], TOKENIZER)
    special = MaskedLanguageEvaluator(record(), TASK, ["<mask>"], TOKENIZER)
    with pytest.raises(UserError, match="no word of its texts can be hidden"):
        next(special.run(small_model(len(TOKENIZER)).eval()))
