"""Captioning: one pass against a pass for each word, shares, micro-batches, what is generated, and sixteen captions learned by
heart.

Shapes: B pictures, T words of a caption, L words so far, V words of the vocabulary, C width of the common space.
"""

import pytest
import torch
import torch.nn.functional as F

from helpers.pictures import CAPTIONS, TASK, TOKENIZER, batch_of, pictures, small_model
from imp_ds import ImpForPreTraining
from imp_ds.errors import UserError
from imp_ds.evaluation.captions import bleu4, cider
from imp_ds.families.imp.merging import merge
from imp_ds.modalities.text.masking import IGNORED
from imp_ds.models.imp.generation.caption_sequence import encode_captions, query_states
from imp_ds.models.imp.likelihood import encode_with_spe
from imp_ds.train.engine.micro_batches import MicroBatches

ROWS = [0, 5, 10, 15]
CONSTANT = dict(num_experts=4, moe_layers="all", conditional_linears=["qkv", "out", "up", "down"])
ROUTED = dict(num_experts=4, moe_layers="all", router="top_k", drop_tokens=False, group_examples=1)
ENCODERS = {
    "dense": {},
    "token": ROUTED,
    "context": dict(ROUTED, gate="context"),
    "modality": dict(CONSTANT, gate="modality"),
    "task": dict(CONSTANT, gate="task"),
    "attribute": dict(CONSTANT, gate="attribute"),
}


def vocabulary(model) -> torch.Tensor:
    """The unit vector of every word, as a text of its own, [V, C]."""
    ids_V1, condition = torch.arange(len(TOKENIZER))[:, None], model.imp.condition("text", TASK.name, target=True)
    return model.imp.likelihood(encode_with_spe(model.imp, [("text", {"input_ids": ids_V1}, condition)]).pooled_BD)


def word_by_word(model, row: int) -> list[torch.Tensor]:
    """-log p of each word of a picture's caption and of its end, each from a pass of its own."""
    imp, objective = model.imp, model.objectives[TASK.name].parts[0]
    words_VC, prefix = vocabulary(model), objective.conditioning_prefix(imp, TASK.name, "vision", pictures([row]))
    target = batch_of([row]).targets["caption"]
    target = target[target != IGNORED].tolist()
    losses = []
    for position, word in enumerate(target):
        before = torch.tensor(target[:position], dtype=torch.int64).view(1, 1, -1)
        state_1D = query_states(encode_captions(imp, prefix, before, range(position, position + 1)))[0, 0]
        cosines_V = (imp.likelihood(state_1D) * words_VC).sum(1)
        losses.append(F.cross_entropy(cosines_V * imp.likelihood.scales["caption"].log_scale.exp(), torch.tensor(word)))
    return losses


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_the_loss_of_one_pass_is_that_of_a_pass_for_each_word(encoder):
    model = small_model(**encoder, router_z_loss=0.0, router_balance=0.0).eval()
    batch = batch_of(ROWS)
    loss, metrics, _ = model(batch)
    each = [word_by_word(model, row) for row in ROWS]
    lengths = [len(losses) for losses in each]
    assert lengths == [8] * 4  # seven words and an end, of up to LENGTH
    expected = sum(sum(losses) / len(losses) for losses in each) / len(each)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert metrics.keys() >= {"loss/captioning", "accuracy/caption", "scale/caption"}
    assert metrics["scale/caption"].item() == pytest.approx(1 / 0.07, rel=1e-5)


def test_smoothing_shares_a_word_out_as_torch_does():
    model, batch = small_model().eval(), batch_of(ROWS)
    objective, target_BT = model.objectives[TASK.name].parts[0], batch.targets["caption"]
    objective.label_smoothing = 0.1
    encodings = model.encode(batch)
    states_BTD = query_states(encodings[objective.sequence])[:, 0]
    log_p_BTV = objective.log_probabilities(model.imp, states_BTD, objective.vectors(model.imp, encodings))
    loss_BT = F.cross_entropy(
        log_p_BTV.transpose(1, 2), target_BT, ignore_index=IGNORED, label_smoothing=0.1, reduction="none"
    )  # fmt: skip
    expected = (loss_BT.sum(1) / (target_BT != IGNORED).sum(1)).mean()
    torch.testing.assert_close(objective(model.imp, encodings, batch.targets)[0], expected)


def test_the_mean_of_equal_shares_is_the_whole():
    """Though the shares have different numbers of words: so ranks need to tell each other nothing of them."""
    model = small_model().eval()
    full = batch_of(range(16))
    full.targets["caption"][:8, 4:] = IGNORED
    halves = [full.map(lambda x, i=i: x.chunk(2)[i]) for i in range(2)]
    (a, found_a, _), (b, found_b, _) = (model(half) for half in halves)
    loss, found, _ = model(full)
    torch.testing.assert_close(loss, (a + b) / 2)
    torch.testing.assert_close(found["accuracy/caption"], (found_a["accuracy/caption"] + found_b["accuracy/caption"]) / 2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_batch_in_micro_batches_has_the_gradient_of_the_whole(checkpointing):
    noisy = dict(ENCODERS["attribute"], hidden_dropout=0.1, router_noise=1.0)
    model, found = small_model(**noisy).train(), []
    for count in (1, 4):
        model.zero_grad()
        if count == 1:
            loss, _, _ = model(batch_of(range(16)))
            loss.backward()
        else:
            if checkpointing:
                model.gradient_checkpointing_enable()
            parts = MicroBatches(model, batch_of(range(16)), count)
            loss, _, _ = parts.forward()
            for part in parts.losses():
                part.backward()
        found.append((loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("beam", [1, 3])
def test_the_score_of_what_is_generated_is_that_of_one_pass(beam):
    """Mean log-probability of its words, the end with them."""
    model = small_model().eval()
    objective, imp = model.objectives[TASK.name].parts[0], model.imp
    prefix, words_VC = objective.conditioning_prefix(imp, TASK.name, "vision", pictures(ROWS)), vocabulary(model)
    with torch.no_grad():
        ids_BL, score_B = objective.generate(imp, prefix, words_VC, size=beam, longest=6)
        end = model.config.end_token_id
        ended_BL = (ids_BL == end).cumsum(1) - (ids_BL == end).int() > 0
        target_BL = ids_BL.masked_fill(ended_BL, IGNORED)
        states_BLD = query_states(objective.encode_targets(imp, prefix, target_BL))[:, 0]
        log_p_BLV = objective.log_probabilities(imp, states_BLD, words_VC)
    for target_L, log_p_LV, score in zip(target_BL, log_p_BLV, score_B.tolist()):
        words = target_L[target_L != IGNORED]
        assert score == pytest.approx(log_p_LV[: len(words)].gather(1, words[:, None]).mean().item(), rel=1e-4)
        if beam == 1:
            assert words.tolist() == log_p_LV.argmax(1)[: len(words)].tolist()


def test_captions_are_learned_by_heart_and_said_by_a_loaded_model(tmp_path):
    model = small_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(120):
        loss, metrics, _ = model(batch_of(range(16), step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["accuracy/caption"] > 0.99
    model.save_pretrained(tmp_path)
    loaded = ImpForPreTraining.from_pretrained(tmp_path).eval()
    for beam in (1, 4):
        ids_BL = loaded.generate_captions(**pictures(range(16)), beam=beam)
        generated = TOKENIZER.batch_decode(ids_BL, skip_special_tokens=True)
        references = [[caption] for caption in CAPTIONS]
        assert bleu4(generated, references) > 0.95, generated
        assert cider(generated, references) > 9


def test_captions_of_another_modality_have_the_attributes_that_such_a_task_would_have():
    """Image captions were trained; recordings are captioned by the same words and queries."""
    model = small_model(**ENCODERS["attribute"]).eval()
    objective = model.objectives[TASK.name].parts[0]
    waveforms = {"input_features": torch.randn(2, 16, 16), "feature_positions": torch.rand(2, 16, 2)}
    own, other = (objective.conditioning_prefix(model.imp, TASK.name, modality, {}) for modality in ("vision", "audio"))
    bits = lambda condition: condition.known[0].nonzero().flatten().tolist()  # noqa: E731
    # input_vision 0, input_audio 1, input_text 2, target_text 5, token_vision 6, token_audio 7, token_text 8, causal 10
    assert bits(own.condition) == [0, 2, 5, 6] and bits(own.text_condition) == [0, 2, 5, 8, 10]
    assert bits(other.condition) == [1, 2, 5, 7] and bits(other.text_condition) == [1, 2, 5, 8, 10]
    assert model.generate_captions(**waveforms, longest=5, beam=2).shape[0] == 2


@pytest.mark.parametrize("gate", ["modality", "task", "attribute"])
def test_a_merged_model_says_the_same(gate):
    model = small_model(**dict(CONSTANT, gate=gate)).eval()
    merged = merge(model)
    torch.testing.assert_close(merged(batch_of(ROWS))[1]["loss/captioning"], model(batch_of(ROWS))[1]["loss/captioning"])
    inputs = dict(pictures(ROWS), beam=2, longest=6)
    assert torch.equal(merged.generate_captions(**inputs), model.generate_captions(**inputs))


def test_what_cannot_be_captioned_is_refused():
    model = small_model().eval()
    with pytest.raises(UserError, match="no task that generates captions"):
        model.generate_captions("another", **pictures(ROWS))
    with pytest.raises(UserError, match="no task that generates captions"):
        small_model(objectives={}).generate_captions(**pictures(ROWS))
    with pytest.raises(UserError, match="several tasks(.|\n)*allowed: a, b(.|\n)*--task a"):
        two = small_model(objectives={})
        two.objectives = torch.nn.ModuleDict({name: next(iter(model.objectives.values())) for name in "ab"})
        two.generate_captions(**pictures(ROWS))
    for inputs in ({}, {"input_ids": torch.ones(1, 3, dtype=torch.int64)}):
        with pytest.raises(UserError, match="captions are generated from one modality"):
            model.generate_captions(**inputs)
    with pytest.raises(UserError, match="nothing to search"):
        model.generate_captions(**pictures(ROWS), beam=0)
