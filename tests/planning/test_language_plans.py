"""Plans of language models: one that takes positions from its mask, words for parts, experts that it cannot be cut into."""

import io

import pytest
from rich.console import Console

from helpers.language_models import language_model
from helpers.talking import make_run
from imp_ds.errors import UserError
from imp_ds.objectives import Contrastive, NextToken
from imp_ds.planning.plan import plan
from imp_ds.planning.table import show

OPT = {
    "model_type": "opt", "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 128, "word_embed_proj_dim": 32,
}  # fmt: skip


def test_a_model_whose_positions_come_from_the_mask_is_planned(tmp_path):
    """A layer: four products of 32 x 32 and two of 32 x 48, each with a bias, and two norms of 2 x 32."""
    run = make_run(tmp_path, towers=(None, None))
    run.model.language_model = OPT
    found, out = plan(run, 1, 1), io.StringIO()
    assert found.parameters.encoder == 2 * (4 * (32 * 32 + 32) + 2 * 32 * 48 + 48 + 32 + 2 * 2 * 32)
    show(found, Console(file=out, width=150))
    assert "layers, with their experts" in out.getvalue() and "encoder" not in out.getvalue()


def test_experts_that_a_model_cannot_be_cut_into_are_refused_by_the_plan(tmp_path):
    """A feed-forward of 24: 7 does not divide it, 8 makes three slices, of which four experts are no whole copies."""
    language_model("llama", max_position_embeddings=128).save_pretrained(tmp_path / "base")
    run = make_run(tmp_path, num_experts=4, towers=(None, None)).override([f"model.language_model={tmp_path / 'base'}"])
    for width in (7, 8):
        with pytest.raises(UserError, match=f"(?s)no slices of the dense.*4 experts of width {width}, a dense width of 24"):
            plan(run.override([f"model.expert_intermediate_size={width}"]), 1, 1)
    whole = run.override(["model.expert_intermediate_size=8", "model.num_experts=6"])
    assert plan(whole, 1, 1).parameters.one_expert == 3 * 16 * 8


def test_an_objective_says_itself_which_models_compute_it(tmp_path):
    config = make_run(tmp_path).model.to_config(70, [])
    NextToken().check_model(config, "talk")
    with pytest.raises(UserError, match="(?s)task talk: models of the family uni_moe do not compute this.*contrastive"):
        Contrastive(pairs=[("vision", "text")]).check_model(config, "talk")
