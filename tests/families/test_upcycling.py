"""Upcycling: the dense outputs where the combine weights allow it, noise and seeds, what is refused, and the command's folder.

Shapes: B batch, L tokens of an example, D width, F feed-forward width, E experts.
"""

import json

import pytest
import torch

from imp_ds import ImpConfig, ImpForPreTraining, ImpModel, ImpProcessor
from imp_ds.commands.upcycle_command import upcycle_folder
from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.errors import UserError
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.families.imp.upcycling import upcycle
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.models.imp import ImpFeatureExtractor, ImpImageProcessor, ImpVideoProcessor
from imp_ds.objectives import Contrastive, task_entry
from imp_ds.tasks import Source, Task

SMALL = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, vision_patch=(2, 4, 4),
    vision_max=(8, 32, 32), audio_patch=(4, 4), audio_max=(32, 16), vocab_size=50, text_max=64, common_dim=24,
)  # fmt: skip


def dense_model(kind=ImpModel, **changes):
    torch.manual_seed(0)
    return kind(ImpConfig(**{**SMALL, **changes})).eval()


def some_inputs() -> dict[str, torch.Tensor]:
    """Two examples of each modality; the texts are padded."""
    draw = torch.Generator().manual_seed(1)
    valid_BL = torch.arange(9) < torch.tensor([[9], [4]])
    return dict(
        pixel_values=torch.randint(0, 256, (2, 12, 96), dtype=torch.uint8, generator=draw),
        pixel_positions=torch.rand(2, 12, 3, generator=draw),
        input_features=torch.randn(2, 8, 16, generator=draw), feature_positions=torch.rand(2, 8, 2, generator=draw),
        input_ids=torch.randint(1, 50, (2, 9), generator=draw) * valid_BL, attention_mask=valid_BL.long(),
    )  # fmt: skip


def outputs(model, task: str | None = None) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        out = model(**some_inputs(), task=task)
    return {f"{m}_pooled": out[f"{m}_pooled"] for m in ("vision", "audio", "text")} | out.embeddings


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, float]:
    assert a.keys() == b.keys() and len(a) == 9  # three modalities and three pairs in both directions
    return {name: (a[name] - b[name]).abs().max().item() for name in a}


def experts_of(model, layer: int = 3):
    return model.base_model.blocks[layer].feed_forward.experts


# capacity_factor = num_experts: every expert takes every token, and the softmax sums to 1
FULL = {"copies": dict(slices=1), "two copies in three slices": dict(slices=3), "one copy in six slices": dict(slices=6)}


class TestOutputs:
    @pytest.mark.parametrize("changes", FULL.values(), ids=FULL.keys())
    def test_equal_the_dense_model_under_full_weights(self, changes):
        dense = dense_model()
        sparse = upcycle(dense, num_experts=6, moe_layers=[1, 3], capacity_factor=6.0, group_examples=1, **changes)
        assert sparse.config.moe_layer_indices == [1, 3] and experts_of(sparse).w1.shape == (6, 32, 48 // changes["slices"])
        assert max(difference(outputs(dense), outputs(sparse)).values()) < 1e-6

    @pytest.mark.parametrize("slices, chosen", [(1, 2), (1, 3), (3, 3), (2, 4)])
    def test_equal_the_dense_model_under_top_k_of_whole_copies(self, slices, chosen):
        """Renormalised weights sum to 1 for two experts of six already; with slices, whole copies have to be chosen."""
        dense = dense_model()
        sparse = upcycle(dense, num_experts=6, slices=slices, router="top_k", experts_per_token=chosen, drop_tokens=False)
        assert max(difference(outputs(dense), outputs(sparse)).values()) < 1e-6

    def test_differ_where_an_expert_or_a_weight_is_missing(self):
        """The comparison above is able to fail: by one slice, by its scale, and by the capacity."""
        dense = dense_model()
        for change in (lambda e: e.w1[4].zero_(), lambda e: e.w2[4].div_(3)):
            sparse = upcycle(dense, num_experts=6, slices=3, capacity_factor=6.0)
            with torch.no_grad():
                change(experts_of(sparse))
            assert min(difference(outputs(dense), outputs(sparse)).values()) > 1e-4
        sparse = upcycle(dense, num_experts=6, capacity_factor=1.0)
        assert min(difference(outputs(dense), outputs(sparse)).values()) > 1e-3

    def test_a_pretraining_model_keeps_its_heads(self):
        objectives = {"speech": task_entry([{"kind": "classification", "modality": "audio", "num_classes": 3}])}
        dense = dense_model(ImpForPreTraining, objectives=objectives)
        sparse = upcycle(dense, num_experts=2, capacity_factor=2.0)
        assert type(sparse) is ImpForPreTraining and sparse.config.moe_layer_indices == [2, 3]  # the last half
        assert max(difference(outputs(dense.imp), outputs(sparse.imp)).values()) < 1e-6
        new, old = dict(sparse.named_parameters()), dict(dense.named_parameters())
        assert "objectives.speech.parts.0.head.weight" in old
        changed = {name for name in new if name not in old or not torch.equal(new[name], old[name])}
        assert changed == {
            f"imp.blocks.{i}.feed_forward.{part}" for i in (2, 3) for part in ("experts.w1", "experts.w2", "router.weight")
        }

    @pytest.mark.parametrize("qk_norm", [False, True])
    def test_survive_the_disk_with_the_dense_models_own_norms(self, tmp_path, qk_norm):
        """qk_norm defaults to on for encoders with experts: it has to be the dense model's on both sides of the disk."""
        dense = dense_model(qk_norm=qk_norm)
        sparse = upcycle(dense, num_experts=4, slices=2, capacity_factor=4.0)
        sparse.save_pretrained(tmp_path)
        loaded = ImpModel.from_pretrained(tmp_path)
        assert loaded.config.qk_norm is qk_norm and loaded.config.expert_intermediate_size == 24
        assert max(difference(outputs(sparse), outputs(loaded)).values()) == 0
        assert max(difference(outputs(dense), outputs(loaded)).values()) < 1e-6


LINEARS = ["qkv", "out", "up", "down"]
DROP_FREE = dict(router="top_k", drop_tokens=False)
GATES = {"token": DROP_FREE, "context": DROP_FREE, "modality": {}, "task": {}, "attribute": {}}


class TestMaps:
    @pytest.mark.parametrize("gate", GATES)
    def test_equal_the_dense_model_where_weights_sum_to_one(self, gate):
        objectives = {"any": task_entry([{"kind": "contrastive", "pairs": [["vision", "text"], ["audio", "text"]]}])}
        dense = dense_model(objectives=objectives)
        sparse = upcycle(dense, num_experts=4, gate=gate, conditional_linears=LINEARS, **GATES[gate])
        for index, block in enumerate(sparse.blocks):
            for name in LINEARS if index > 1 else ():
                assert all(torch.equal(w, dense.blocks[index].linear(name).weight.T) for w in block.linear(name).experts.w)
        assert max(difference(outputs(dense), outputs(sparse, task="any")).values()) < 1e-6

    def test_noise_tells_the_copies_apart(self):
        sparse = upcycle(dense_model(), num_experts=4, gate="modality", noise=0.1)
        base_OI, experts = dense_model().blocks[3].feed_forward.up.weight, sparse.blocks[3].feed_forward.up.experts.w
        noises = [(w - base_OI.T) / base_OI.std() for w in experts]
        assert [noise.std().item() for noise in noises] == pytest.approx([0.1] * 4, rel=0.08)
        assert len({tuple(noise[0, :4].tolist()) for noise in noises}) == 4


class TestExperts:
    def test_are_the_dense_feed_forward(self):
        dense = dense_model()
        up_FD, down_DF = (part.weight for part in (dense.blocks[3].feed_forward.up, dense.blocks[3].feed_forward.down))
        copies, slices = (experts_of(upcycle(dense, num_experts=4, slices=s)) for s in (1, 2))
        for e in range(4):
            assert torch.equal(copies.w1[e], up_FD.T) and torch.equal(copies.w2[e], down_DF.T)
            # experts 0 and 2 hold columns 0 .. 23, experts 1 and 3 hold 24 .. 47; the second matrix is doubled
            part = slice(0, 24) if e in (0, 2) else slice(24, 48)
            assert torch.equal(slices.w1[e], up_FD[part].T) and torch.equal(slices.w2[e], 2 * down_DF[:, part].T)

    def test_of_one_copy_share_a_row_of_the_router(self):
        rows_ED = upcycle(dense_model(), num_experts=6, slices=3).blocks[3].feed_forward.router.weight
        assert torch.equal(rows_ED[0:3], rows_ED[:1].expand(3, -1)) and torch.equal(rows_ED[3:6], rows_ED[3:4].expand(3, -1))
        assert not torch.equal(rows_ED[0], rows_ED[3])
        # drawn with the standard deviation of the configuration, 0.02: 2 rows of 32 numbers are within a quarter of it
        assert rows_ED.std().item() == pytest.approx(0.02, rel=0.25)

    def test_noise_is_relative_seeded_and_their_own(self):
        dense = dense_model()
        plain, noisy, again, other = (
            upcycle(dense, num_experts=4, noise=noise, seed=seed) for noise, seed in ((0.0, 7), (0.1, 7), (0.1, 7), (0.1, 8))
        )
        noises = []
        for layer in (2, 3):
            for name in ("w1", "w2"):
                base, weight = (experts_of(model, layer).get_parameter(name) for model in (plain, noisy))
                assert torch.equal(weight, experts_of(again, layer).get_parameter(name))
                assert not torch.equal(weight, experts_of(other, layer).get_parameter(name))
                # 32 * 48 normal numbers: their deviation is within 6% of what it should be, three standard errors and more
                for e in range(4):
                    noise = weight[e] - base[e]
                    assert (noise.std() / base[e].std()).item() == pytest.approx(0.1, rel=0.06)
                    noises.append(noise.flatten()[:8].tolist())
        assert len({tuple(noise) for noise in noises}) == 16  # 2 layers, 2 matrices, 4 experts
        assert torch.equal(plain.blocks[3].feed_forward.router.weight, noisy.blocks[3].feed_forward.router.weight)

    @pytest.mark.parametrize("slices", [1, 2])
    def test_gradients_reach_every_expert_and_router(self, slices):
        sparse = upcycle(dense_model(), num_experts=4, slices=slices, capacity_factor=float(slices)).train()
        out = sparse(**some_inputs())
        (sum(vectors[:, 0].sum() for vectors in out.embeddings.values()) + out.router_z_loss).backward()
        for layer in (2, 3):
            for weight in experts_of(sparse, layer).parameters():
                assert (weight.grad.flatten(1).norm(dim=1) > 0).all()
            assert (sparse.blocks[layer].feed_forward.router.weight.grad.norm(dim=1) > 0).all()


REFUSED = {
    "experts already": (dict(num_experts=2, moe_layers="last:1"), dict(num_experts=4), "has experts already"),
    "one expert": ({}, dict(num_experts=1), "too few experts"),
    "slices that do not divide the experts": ({}, dict(num_experts=4, slices=3), "(?s)slices = 3.*num_experts = 4"),
    "slices that do not divide the width": ({}, dict(num_experts=5, slices=5), "(?s)slices = 5.*intermediate_size = 48"),
    "no slices": ({}, dict(num_experts=4, slices=0), "slices = 0"),
    "one copy that is not wholly used": ({}, dict(num_experts=4, slices=4), "(?s)slices = num_experts = 4.*capacity_factor"),
    "noise below zero": ({}, dict(num_experts=4, noise=-0.1), "the noise is negative"),
    "layers that are not there": ({}, dict(num_experts=4, moe_layers="last:5"), "moe_layers names no layers"),
    "a gate": ({}, dict(num_experts=4, expert_activation="geglu"), "no gate to copy"),
    "another encoder": ({}, dict(num_experts=4, hidden_size=64), "cannot change these settings\n  got: +hidden_size"),
    "slices of linears": ({}, dict(num_experts=4, slices=2, gate="modality"), "a slice is of a whole feed-forward"),
    "an unknown setting": ({}, dict(num_experts=4, capacity=2), "cannot change these settings\n  got: +capacity\n"),
}  # fmt: skip


@pytest.mark.parametrize("model, arguments, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_upcycled_is_refused(model, arguments, message):
    with pytest.raises(UserError, match=message):
        upcycle(dense_model(**model), **arguments)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of an exported dense model."""
    folder = tmp_path_factory.mktemp("dense") / "model"
    task = Task(
        name="image_text", source=Source(path="images", vision="v", text="t"), batch_size=4,
        views=Views(vision=VisionView(height=16, width=16), text=TextView(length=8)),
        objectives=[Contrastive(pairs=[("vision", "text")])],
    )  # fmt: skip
    settings = {name: value for name, value in SMALL.items() if name != "vocab_size"}
    run = RunConfig(
        name="dense", model=ModelSettings(**settings), data=DataSettings(), tasks=[task], train=TrainSettings(steps=1)
    )
    tokenizer = train_tokenizer(["a red square", "a green square"] * 20, 64, seed=0)
    torch.manual_seed(0)
    ImpForPreTraining(run.model.to_config(len(tokenizer), run.tasks)).save_pretrained(folder)
    parts = ImpImageProcessor(size=16, patch=[2, 4, 4]), ImpVideoProcessor(frames=4, size=16, patch=[2, 4, 4])
    ImpProcessor(*parts, ImpFeatureExtractor(patch=[4, 4]), tokenizer).save_pretrained(folder)
    run.save(folder)
    return folder


class TestFolder:
    def test_loads_and_gives_the_dense_outputs(self, exported, tmp_path):
        out = upcycle_folder(exported, tmp_path / "out", num_experts=4, slices=2, capacity_factor=4.0, moe_layers=None)
        dense, sparse = ImpModel.from_pretrained(exported), ImpModel.from_pretrained(out)
        inputs = ImpProcessor.from_pretrained(out)(text=["a red square"], max_length=8)
        assert torch.equal(
            inputs["input_ids"], ImpProcessor.from_pretrained(exported)(text=["a red square"], max_length=8)["input_ids"]
        )
        with torch.no_grad():
            both = [model(**inputs).text_pooled for model in (dense, sparse)]
        torch.testing.assert_close(*both, rtol=0, atol=1e-6)
        _, found = ImpForPreTraining.from_pretrained(out, output_loading_info=True)
        assert not found["missing_keys"] and not found["unexpected_keys"]
        card = (out / "README.md").read_text().replace("\n", " ")
        assert "layers 2, 3 (of 4, from 0) became 4 experts of width 24, each one of 2 slices" in card and "{" not in card
        assert not list(tmp_path.glob(".staging*")) and not [p for p in out.iterdir() if p.is_dir()]

    @pytest.mark.parametrize(
        "settings", [dict(slices=2, capacity_factor=2.0), dict(gate="task"), dict(gate="attribute", conditional_linears=LINEARS)]
    )
    def test_its_run_configuration_builds_this_model(self, exported, tmp_path, settings):
        out = upcycle_folder(exported, tmp_path / "out", num_experts=4, **settings)
        assert ("of the linear layers" in (out / "README.md").read_text()) == ("gate" in settings)
        run, config = RunConfig.load(out), ImpConfig.from_pretrained(out)
        built = run.model.to_config(config.vocab_size, run.tasks)
        bookkeeping = {"architectures", "dtype", "transformers_version", "_name_or_path"}
        before, after = ({k: v for k, v in c.to_dict().items() if k not in bookkeeping} for c in (built, config))
        assert json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)

    def test_a_plain_encoder_needs_no_run(self, tmp_path):
        dense_model().save_pretrained(tmp_path / "dense")
        out = upcycle_folder(tmp_path / "dense", tmp_path / "out", num_experts=2, capacity_factor=2.0)
        loaded = ImpModel.from_pretrained(out)
        assert max(difference(outputs(dense_model()), outputs(loaded)).values()) < 1e-6
        assert sorted(p.name for p in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]

    def test_what_is_no_dense_model_is_refused_and_leaves_nothing(self, exported, tmp_path):
        sparse = upcycle_folder(exported, tmp_path / "sparse", num_experts=2)
        torch.save({}, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text((exported / "config.json").read_text())
        cases = [
            (sparse, {}, "has experts already"),
            (tmp_path / "nowhere", {}, "not the folder of an exported model"),
            (tmp_path, {}, "the weights of the model cannot be loaded"),  # a pickle alone
            (exported, {"num_experts": 1}, "too few experts"),
        ]
        for folder, arguments, message in cases:
            with pytest.raises(UserError, match=message):
                upcycle_folder(folder, tmp_path / "out", **{"num_experts": 4, **arguments})
        with pytest.raises(UserError, match="is not empty"):
            upcycle_folder(exported, sparse, num_experts=4)
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".staging*"))
