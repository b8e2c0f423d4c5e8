"""Several segments as one sequence: what sees what, and that a segment alone is what it was.

Shapes: B batch, L tokens of a sequence, D width.
"""

import pytest
import torch
import torch.nn.functional as F

from helpers.small_model import EXPERTS, IMAGE, WORDS, assert_near, caption, small_model
from imp_ds.moe.conditional import SequenceFacts
from imp_ds.randomness import sample_keys

IMAGE_TOKENS, WORD_TOKENS = 4, 6


@pytest.mark.parametrize("experts", [{}, EXPERTS])
def test_a_segment_alone_is_its_encoding(experts):
    model = small_model(**experts)
    alone, one = model.encode("text", WORDS), model.encode_segments([("text", WORDS, None)])
    assert torch.equal(alone.tokens_BLD, one.tokens_BLD) and torch.equal(alone.pooled_BD, one.pooled_BD)
    assert one.lengths == (WORD_TOKENS,)


def test_segments_that_do_not_see_each_other_are_as_if_alone():
    """Each with its own positions, linear layers before and after the blocks, and padding."""
    model = small_model()
    mask_LL = torch.block_diag(torch.ones(4, 4), torch.ones(6, 6)).bool()
    both = model.encode_segments([("vision", IMAGE, None), ("text", WORDS, None)], mask_LL=mask_LL)
    assert both.lengths == (IMAGE_TOKENS, WORD_TOKENS)
    image_BLD, words_BLD = both.tokens_BLD.split(both.lengths, dim=1)
    assert_near(image_BLD, model.encode("vision", IMAGE).tokens_BLD)
    valid_BL = WORDS["attention_mask"].bool()
    assert_near(words_BLD[valid_BL], model.encode("text", WORDS).tokens_BLD[valid_BL])
    assert torch.equal(both.valid_BL, torch.cat([torch.ones(3, 4).bool(), valid_BL], dim=1))
    assert_near(both.pooled_BD[1], torch.cat([image_BLD[1], words_BLD[1, :3]]).mean(0))


def test_without_a_mask_everyone_sees_everyone():
    model = small_model()
    parts = [("vision", IMAGE, None), ("text", WORDS, None)]
    free, full = model.encode_segments(parts), model.encode_segments(parts, mask_LL=torch.ones(10, 10).bool())
    assert_near(free.tokens_BLD[free.valid_BL], full.tokens_BLD[full.valid_BL])
    assert (free.tokens_BLD[:, :4] - model.encode("vision", IMAGE).tokens_BLD).abs().max() > 1e-3


def test_attention_under_a_mask_is_that_of_the_definition():
    """One layer of attention in float64 by hand: softmax over what the row sees and what is no padding."""
    attention, generator = small_model().double().blocks[0].attention, torch.Generator().manual_seed(0)
    x_BLD = torch.randn(2, 5, 32, dtype=torch.float64, generator=generator)
    valid_BL = torch.tensor([[True] * 5, [True, True, True, False, False]])
    mask_LL = torch.ones(5, 5).tril().bool()
    found_BLD, _ = attention(x_BLD, SequenceFacts(valid_BL, mask_LL))
    for sample in range(2):
        query, key, value = (x_BLD[sample] @ attention.qkv.weight.T).view(5, 3, 4, 8).unbind(1)
        for row in range(int(valid_BL[sample].sum())):
            seen = [column for column in range(row + 1) if valid_BL[sample, column]]
            scores_HL = torch.stack([(query[row] * key[column]).sum(1) for column in seen], 1) / 8**0.5
            mixed_HW = torch.einsum("hl,lhw->hw", scores_HL.softmax(1), value[seen])
            assert_near(found_BLD[sample, row], mixed_HW.flatten() @ attention.out.weight.T, 1e-12)


def test_no_word_and_no_query_sees_what_follows():
    model = small_model()
    before = caption(model).tokens_BLD
    for place in range(1, 5):
        ids_BL = WORDS["input_ids"].clone()
        ids_BL[0, place] = 48
        changed_L = (caption(model, {**WORDS, "input_ids": ids_BL}).tokens_BLD - before)[0].abs().amax(1) > 1e-6
        words_L, queries_L = changed_L[4:10], changed_L[10:]
        assert not changed_L[:4].any()
        # beyond the five words is padding, which nobody reads; it sees what is before it like any other
        assert words_L[:5].tolist() == [other >= place for other in range(5)]
        assert queries_L[:5].tolist() == [other > place for other in range(5)]


def test_what_sees_nothing_but_padding_is_finite_and_harms_nobody():
    """The second segment is all padding for the last sample, and may see itself alone."""
    model = small_model()
    words = {**WORDS, "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0], [0] * 6])}
    mask_LL = torch.block_diag(torch.ones(4, 4), torch.ones(6, 6)).bool()
    encoding = model.encode_segments([("vision", IMAGE, None), ("text", words, None)], mask_LL=mask_LL)
    assert encoding.tokens_BLD.isfinite().all()
    assert_near(encoding.tokens_BLD[:, :4], model.encode("vision", IMAGE).tokens_BLD)
    encoding.pooled_BD.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_experts_and_checkpointing_work_on_segments():
    model, found = small_model(**EXPERTS, hidden_dropout=0.1, router_noise=1.0).train(), []
    for checkpointed in (False, True):
        model.zero_grad()
        if checkpointed:
            model.gradient_checkpointing_enable()
        parts = [("vision", IMAGE, None), ("text", WORDS, None)]
        encoding = model.encode_segments(parts, sample_keys(0, 0, 0, 3))
        assert len(encoding.reports) == 2
        (F.mse_loss(encoding.pooled_BD, torch.ones(3, 32)) + model.router_loss(encoding)).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert_near(found[1][name], gradient, 1e-6)
