"""Masked language modelling: against a loop in float64, by hand, in shares, and on a grammar that can be learned.

Shapes: B texts, L tokens of a text, D width, V words of the vocabulary.
"""

import json
from math import log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from helpers.grammar import SENTENCES, TASK, small_model
from imp_ds import ImpForPreTraining
from imp_ds.config import DataSettings
from imp_ds.data.corpus import all_captions, open_corpus
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.modalities.text import tokens as text
from imp_ds.modalities.text.masking import IGNORED, most_hidden
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.objectives import MaskedLanguage, build_objective
from imp_ds.tasks import Batch

WIDTH, VOCABULARY, LENGTH = 6, 11, 30
CONFIG = SimpleNamespace(hidden_size=WIDTH, vocab_size=VOCABULARY, layer_norm_eps=1e-6)
SPEC = MaskedLanguage(rate=0.2).model_dump()


class Table(nn.Module):
    """What the objective needs of a model: the words' vectors."""

    def __init__(self):
        super().__init__()
        self.words = nn.Parameter(torch.randn(VOCABULARY, WIDTH))

    def score_tokens(self, states_ND):
        return states_ND @ self.words.T / WIDTH**0.5


def build():
    torch.manual_seed(0)
    objective, model = build_objective(SPEC, CONFIG), Table()
    for parameter in (objective.head.bias, objective.head.norm.weight, objective.head.norm.bias):
        nn.init.normal_(parameter)
    return objective, model


def hide(*hidden: dict[int, int]) -> torch.Tensor:
    """Targets [B, L] from {place: word} of each text."""
    labels_BL = torch.full((len(hidden), LENGTH), IGNORED)
    for row, places in enumerate(hidden):
        for place, word in places.items():
            labels_BL[row, place] = word
    return labels_BL


HIDDEN = hide({0: 3, 7: 10, 29: 0}, {5: 1}, {}, {place: place % VOCABULARY for place in range(10, 22)})


def run(objective, model, tokens_BLD, labels_BL):
    return objective(model, {"text": SimpleNamespace(tokens_BLD=tokens_BLD)}, {"token_ids": labels_BL})


def by_definition(objective, model, tokens_BLD, labels_BL):
    """-log p of each hidden token, its mean over each text, and the mean of these."""
    head, of_texts = objective.head, []
    for tokens_LD, words_L in zip(tokens_BLD, labels_BL):
        losses = []
        for state_D, word in zip(tokens_LD, words_L.tolist()):
            if word != IGNORED:
                x_D = head.dense.weight @ state_D + head.dense.bias
                x_D = 0.5 * x_D * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x_D + 0.044715 * x_D**3)))
                x_D = (x_D - x_D.mean()) / (x_D.var(unbiased=False) + 1e-6).sqrt() * head.norm.weight + head.norm.bias
                scores_V = torch.stack([(x_D * vector_D).sum() / WIDTH**0.5 for vector_D in model.words]) + head.bias
                losses.append(scores_V.exp().sum().log() - scores_V[word])
        of_texts.append(sum(losses) / len(losses) if losses else torch.zeros(()))
    return sum(of_texts) / len(of_texts)


def test_loss_and_gradients_equal_a_loop_in_float64():
    objective, model = build()
    tokens_BLD = torch.randn(4, LENGTH, WIDTH, requires_grad=True)
    loss, metrics = run(objective, model, tokens_BLD, HIDDEN)
    loss.backward()
    exact_objective, exact_model = build()
    exact_objective, exact_model = exact_objective.double(), exact_model.double()
    exact_BLD = tokens_BLD.detach().double().requires_grad_()
    expected = by_definition(exact_objective, exact_model, exact_BLD, HIDDEN)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    got = [tokens_BLD, *objective.parameters(), *model.parameters()]
    for value, exact in zip(got, [exact_BLD, *exact_objective.parameters(), *exact_model.parameters()], strict=True):
        assert exact.grad.abs().max() > 0
        torch.testing.assert_close(value.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)
    assert (tokens_BLD.grad[HIDDEN == IGNORED] == 0).all()  # what is not hidden teaches nothing
    assert metrics.keys() == {"accuracy/masked_language"} and not metrics["accuracy/masked_language"].requires_grad


def test_each_text_counts_the_same_by_hand():
    # states of zero are normed to the norm's bias, here zero too, so the scores are the bias: ln 4 for word 3, 0 for the others
    objective, model = build()
    nn.init.zeros_(objective.head.dense.bias), nn.init.zeros_(objective.head.norm.bias)
    objective.head.bias.data = torch.zeros(VOCABULARY).index_fill(0, torch.tensor(3), log(4))
    loss, metrics = run(objective, model, torch.zeros(3, LENGTH, WIDTH), hide({0: 3, 1: 5}, {9: 3}, {}))
    # word 3 has 4 / 14, another 1 / 14; the third text has nothing to be found
    assert loss.item() == pytest.approx(((log(14 / 4) + log(14)) / 2 + log(14 / 4) + 0) / 3, rel=1e-5)
    assert metrics["accuracy/masked_language"].item() == pytest.approx((0.5 + 1 + 0) / 3)


def test_the_mean_of_equal_shares_is_the_whole():
    """So ranks and micro-batches need to exchange nothing."""
    objective, model = build()
    tokens_BLD = torch.randn(4, LENGTH, WIDTH)
    full = run(objective, model, tokens_BLD, HIDDEN)
    parts = [run(objective, model, tokens_BLD[rows], HIDDEN[rows]) for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(full[0], (parts[0][0] + parts[1][0]) / 2)
    torch.testing.assert_close(*(sum(m["accuracy/masked_language"] for _, m in of) / len(of) for of in ([full], parts)))


def test_a_fixed_number_of_tokens_is_computed():
    objective, model = build()
    rows = []
    objective.head.dense.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    for labels_BL in (HIDDEN, hide({}, {}, {}, {})):
        run(objective, model, torch.randn(4, LENGTH, WIDTH), labels_BL)
    assert rows == [4 * most_hidden(LENGTH, 0.2)] * 2 == [48, 48]


def test_the_loss_is_float32_in_a_bfloat16_model():
    objective, model = build()
    loss, _ = run(objective.bfloat16(), model.bfloat16(), torch.randn(4, LENGTH, WIDTH).bfloat16(), HIDDEN)
    assert loss.dtype == torch.float32


def batch_of(tokenizer, step: int) -> Batch:
    rngs = [np.random.default_rng([step, row]) for row in range(len(SENTENCES))]
    made = text.preprocess_masked(SENTENCES, tokenizer, TASK.views.text.length, TASK.needs.mask_rate, rngs)
    made = {name: torch.from_numpy(values) for name, values in made.items()}
    return Batch(TASK.name, {"text": {name: made[name] for name in text.INPUT_NAMES}}, {"token_ids": made["token_ids"]})


def test_a_task_of_text_alone_learns_a_grammar(tmp_path):
    """One of three words is hidden: an animal tells its audio, and the recording its animal; article or not is a toss-up. The
    batches are those of training, read from a file of texts."""
    (tmp_path / "sentences" / "train").mkdir(parents=True)
    lines = (json.dumps({"text": sentence}) for sentence in SENTENCES)
    (tmp_path / "sentences" / "train" / "metadata.jsonl").write_text("\n".join(lines))
    data = DataSettings(root=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    readers = open_corpus(SimpleNamespace(data=data, tasks=[TASK]))
    tokenizer = train_tokenizer(all_captions(readers), 80)
    schedule, collator = SimpleNamespace(at=lambda step: (TASK.name, step)), Collator(SimpleNamespace(tokenizer=tokenizer))
    batches = StepBatches([TASK], schedule, readers, collator, seed=0)
    model = small_model(len(tokenizer)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(150):
        loss, metrics, _ = model(batches[step])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(metrics["loss/masked_language"].item())
    # at the start scores have about unit variance, so the loss is near ln V + 1/2
    assert losses[0] == pytest.approx(log(len(tokenizer)) + 0.5, abs=1.0)
    # a third of the hidden words are articles, of which ln 2 each is left: 0.23 in all is the least
    assert 0.2 < np.mean(losses[-20:]) < 0.45


def test_words_that_are_read_and_words_that_are_found_share_their_vectors(tmp_path):
    """The table gets gradients from both sides, is saved once, and head and table come back from the folder."""
    tokenizer = train_tokenizer(SENTENCES, 80)
    model, batch = small_model(len(tokenizer)), batch_of(tokenizer, 0)
    model(batch)[0].backward()
    table, read = model.imp.embeddings["text"].words.weight, batch.inputs["text"]["input_ids"].unique()
    assert not torch.isin(torch.arange(len(tokenizer)), read).all()
    assert (table.grad.abs().sum(1) > 0).all()  # words that nobody read too
    model.save_pretrained(tmp_path)
    again = ImpForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(again(batch)[0], model.eval()(batch)[0])
    assert again.objectives["words"].parts[0].hidden.rate == 0.34
