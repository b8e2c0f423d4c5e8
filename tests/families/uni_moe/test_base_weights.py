"""A language model's weights from a folder, against transformers' own loading.

Shapes: E experts, D width, F feed-forward width.
"""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers.language_models import HIDDEN, VOCAB, language_model
from imp_ds.errors import UserError
from imp_ds.families.arrival import Arrival
from imp_ds.families.uni_moe.assembly import PART, Assembly
from imp_ds.families.uni_moe.base_folder import BaseFolder
from imp_ds.families.uni_moe.family import UniMoeFamily
from imp_ds.families.uni_moe.parts import part_config
from imp_ds.models.uni_moe import UniMoeConfig, UniMoeForConditionalGeneration
from imp_ds.models.uni_moe.upcycling import from_base

IDS = torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))


def stored(folder, kind: str, dtype=torch.float32, shards: bool = False, **changes):
    model = language_model(kind, **changes).to(dtype)
    model.save_pretrained(folder, max_shard_size="10KB" if shards else "5GB")
    assert (folder / "model.safetensors.index.json").is_file() == shards
    return model


def assembly_of(folder, model, noise: float = 0.0, ep_size: int = 1, **settings) -> Assembly:
    parts = SimpleNamespace(language_model=str(folder), expert_noise=noise, experts={}, adapter=None)
    norm = {"norm_topk_prob": getattr(model.config, "norm_topk_prob", True)}
    config = UniMoeConfig(text_config=model.config, **norm | settings)
    return Assembly(SimpleNamespace(train=SimpleNamespace(seed=3, ep_size=ep_size), model=parts), config)


def finished(assembly: Assembly, read: bool = True, dtype=torch.float32, settle=lambda name, parameter: None):
    assembly.finish(Arrival(assembly.dtype_of(dtype), settle), read=read)
    return assembly.model.eval()


KINDS = {
    "llama": dict(num_experts=4), "llama, no experts": {}, 
    "qwen3, slices": dict(num_experts=4, moe_intermediate_size=HIDDEN // 2),
    "mistral, a layer": dict(num_experts=4, moe_layers=[1]), "mixtral": dict(num_experts=4), "qwen3_moe": dict(num_experts=4),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_answers_as_in_transformers(name, shards, tmp_path):
    """Copies and slices of a dense base too: their router does not matter, with two slices of one copy for each token."""
    model = stored(tmp_path, name.partition(",")[0], shards=shards)
    found = finished(assembly_of(tmp_path, model, **KINDS[name])).uni_moe
    assert not any(parameter.is_meta for parameter in [*found.parameters(), *found.buffers()])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(input_ids=IDS).logits
        torch.testing.assert_close(found(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_ranks_hold_what_one_process_holds(tmp_path, monkeypatch):
    """Two ranks of an expert group: experts, with noise, are the halves; routers and all else are the same, and as `build` draws
    them."""
    model = stored(tmp_path, "llama")
    whole = finished(assembly_of(tmp_path, model, noise=0.1, num_experts=4)).state_dict()
    fresh = UniMoeFamily().build(assembly_of(tmp_path, model, num_experts=4).model.config, seed=3, ep_size=1).state_dict()
    expected = from_base(model.state_dict(), assembly_of(tmp_path, model, num_experts=4).model.uni_moe.language_model, HIDDEN,
                         noise=0.1, seed=3)  # fmt: skip
    for rank in (0, 1):
        monkeypatch.setattr("imp_ds.families.build.rank", lambda rank=rank: rank)
        part = finished(assembly_of(tmp_path, model, noise=0.1, ep_size=2, num_experts=4)).state_dict()
        assert part.keys() == whole.keys() == fresh.keys()
        for name, tensor in part.items():
            own = whole[name][2 * rank : 2 * rank + 2] if ".experts." in name else whole[name]
            assert torch.equal(tensor, own), name
            base = expected.get(name.removeprefix(f"{PART}."))
            assert torch.equal(whole[name], fresh[name] if base is None else base), name


def test_what_is_not_read_is_as_build_draws_it(tmp_path):
    """Where a checkpoint fills it afterwards."""
    model = stored(tmp_path, "llama")
    found = finished(assembly_of(tmp_path, model, num_experts=4, modality_maps=True), read=False)
    expected = UniMoeFamily().build(found.config, seed=3, ep_size=1)
    assert all(
        torch.equal(one, other) for one, other in zip(found.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_parameters_arrive_one_by_one_in_their_type(tmp_path):
    """What is settled is whole, and what comes after it is not there yet. A frozen language model keeps the type of its files
    in an engine that computes in float32, its gates do not; one that is trained does not either."""
    model, seen = stored(tmp_path, "llama", torch.bfloat16), []
    assembly = assembly_of(tmp_path, model, num_experts=4)
    for name, parameter in assembly.model.named_parameters():
        parameter.requires_grad_(name.endswith("router.weight"))

    def settle(name: str, parameter: torch.nn.Parameter) -> None:
        assert not parameter.is_meta and parameter.isfinite().all() and parameter.any()
        assert parameter.requires_grad == name.endswith("router.weight")
        seen.append(name)
        later = [
            n for n, p in assembly.model.get_submodule(PART).named_parameters() if f"{PART}.{n}" not in seen and not p.is_meta
        ]
        assert len(later) <= 2  # of the same module

    finished(assembly, settle=settle)
    assert seen == [f"{PART}.{name}" for name, _ in assembly.model.get_submodule(PART).named_parameters()]
    types = {name: parameter.dtype for name, parameter in assembly.model.named_parameters()}
    assert {dtype for name, dtype in types.items() if not name.endswith("router.weight")} == {torch.bfloat16}
    assert {dtype for name, dtype in types.items() if name.endswith("router.weight")} == {torch.float32}
    with torch.no_grad():
        found = assembly.model.uni_moe(input_ids=IDS).logits
    assert (found - model(input_ids=IDS).logits).abs().max() < 0.3
    for engine in (torch.float32, torch.bfloat16):
        assert {p.dtype for p in finished(assembly_of(tmp_path, model, num_experts=4), dtype=engine).parameters()} == {engine}


def test_sources_are_what_lies_in_files_as_it_stands(tmp_path):
    """All but experts and fresh routers, by which a checkpoint may refer to them."""
    for kind, left in (("llama", ("experts", "router")), ("mixtral", ("experts",))):
        folder = tmp_path / kind
        model = finished(assembly := assembly_of(folder, stored(folder, kind, shards=True), num_experts=4))
        sources = assembly.sources()
        assert {n for n, _ in model.named_parameters() if n not in sources} == {
            n for n, _ in model.named_parameters() if any(word in n for word in left)
        }
        for name, (path, key) in sources.items():
            assert torch.equal(load_file(path)[key], model.get_parameter(name))


def test_a_tied_head_stays_the_embedding(tmp_path):
    model = stored(tmp_path, "qwen3", tie_word_embeddings=True)
    assembly = assembly_of(tmp_path, model, num_experts=4)
    for found in (finished(assembly), UniMoeFamily().build(assembly.model.config, seed=0, ep_size=1)):
        inner = found.uni_moe.language_model
        assert inner.lm_head.weight is inner.model.embed_tokens.weight
    assert torch.equal(assembly.model.uni_moe.language_model.lm_head.weight, model.lm_head.weight)


def test_the_language_model_of_an_exported_model_is_a_base(tmp_path):
    """A text-only one of ours, trained without experts, becomes one with experts; towers beside it are left alone."""
    text = language_model("llama").config
    vision = dict(
        model_type="clip_vision_model", hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    exported = UniMoeForConditionalGeneration(
        UniMoeConfig(text_config=text, vision_config=vision, towers={"image": "vision"})
    ).eval()
    exported.save_pretrained(tmp_path)
    found = part_config(str(tmp_path), "model.language_model")
    assert found.model_type == "llama"
    assembly = assembly_of(tmp_path, SimpleNamespace(config=found), num_experts=4)
    with torch.no_grad():
        expected = exported(input_ids=IDS).logits
        torch.testing.assert_close(finished(assembly).uni_moe(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)
    path, key = assembly.sources()[f"{PART}.model.norm.weight"]
    assert torch.equal(load_file(path)[key], exported.language_model.model.norm.weight)


def without(folder, name: str) -> None:
    left = {key: tensor for key, tensor in load_file(folder / "model.safetensors").items() if key != name}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})


def test_folders_that_do_not_fit_are_refused(tmp_path):
    model = stored(tmp_path, "llama")
    wider = language_model("llama", vocab_size=VOCAB + 3)
    with pytest.raises(UserError, match=rf"(?s)another shape.*embed_tokens.weight: \[{VOCAB}, 16\].*\[{VOCAB + 3}, 16\]"):
        assembly_of(tmp_path, wider)
    with pytest.raises(UserError, match=r"(?s)another shape.*mlp.gate_proj.weight: \[24, 16\]"):
        assembly_of(tmp_path, language_model("llama", intermediate_size=48), num_experts=4)
    without(tmp_path, "model.layers.1.self_attn.q_proj.weight")
    with pytest.raises(UserError, match="(?s)not in its folder.*layers.1.self_attn.q_proj.weight"):
        assembly_of(tmp_path, model)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{damage}")
    with pytest.raises(UserError, match="(?s)cannot be read.*model.safetensors"):
        BaseFolder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights in safetensors"):
        BaseFolder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(UserError, match="(?s)is missing.*model-1.safetensors"):
        BaseFolder(tmp_path)


def test_a_rank_reads_its_own_experts_alone(tmp_path, monkeypatch):
    """The second of two ranks: 2 of 4 for each of 3 matrices and 2 layers."""
    monkeypatch.setattr("imp_ds.families.build.rank", lambda: 1)
    assembly, read = assembly_of(tmp_path, stored(tmp_path, "mixtral"), ep_size=2, num_experts=4), []
    view = type(assembly.weights.base).read
    monkeypatch.setattr(BaseFolder, "read", lambda self, name, index=(): read.append(name) or view(self, name, index))
    finished(assembly_of(tmp_path, language_model("mixtral"), ep_size=2, num_experts=4))
    experts = [name for name in read if ".experts." in name]
    assert len(experts) == 12 and {name.split(".experts.")[1][0] for name in experts} == {"2", "3"}
