"""ImpModel: padding, sizes of the input, batches, checkpointing of activations, weights on disk and seeds.

Shapes: B batch, L tokens of an example, D width.
"""

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel

from helpers.small_model import EXPERTS, assert_near, audio_inputs, clip_inputs, small_config, small_model, text_inputs
from imp_ds import ImpConfig, ImpForPreTraining, ImpModel
from imp_ds.errors import UserError
from imp_ds.modalities.vision import patches as vision
from imp_ds.models.imp.modeling_imp import masked_mean
from imp_ds.models.initialization import initialize_seeded
from imp_ds.moe.conditional import SequenceFacts
from imp_ds.moe.experts import Experts
from imp_ds.objectives import task_entry


class TestPadding:
    def test_more_of_it_changes_nothing_in_a_dense_encoder(self):
        model = small_model()
        short, long = (model.encode("text", text_inputs([5, 8, 1], length)) for length in (8, 30))
        assert_near(short.pooled_BD, long.pooled_BD, 2e-6)  # other sums of the same numbers: rounding alone
        for row, words in enumerate([5, 8, 1]):
            assert_near(short.tokens_BLD[row, :words], long.tokens_BLD[row, :words], 1e-5)

    @pytest.mark.parametrize("experts", [{}, EXPERTS])
    def test_its_content_changes_nothing(self, experts):
        model = small_model(**experts)
        first, second = (model.encode("text", text_inputs([5, 8, 1], 12, padding)) for padding in (0, 7))
        assert torch.equal(first.pooled_BD, second.pooled_BD)

    def test_in_training_an_expert_encoder_depends_on_the_length_through_the_capacity_alone(self):
        """Capacity is a share of the padded length: C = round(L / 4) here. With the same C more padding changes nothing, nor
        does it where every expert takes all words anyway; else more slots mean more words for each expert."""
        model = small_model(**EXPERTS).train()
        pooled = {L: model.encode("text", text_inputs([9], L)).pooled_BD for L in (16, 17, 36, 60)}
        assert_near(pooled[16], pooled[17])  # C = 4 and round(4.25) = 4
        assert_near(pooled[36], pooled[60])  # C = 9 and 15: all nine words
        assert (pooled[16] - pooled[36]).abs().max() > 1e-3

    def test_padding_gets_no_gradient(self):
        model = small_model(**EXPERTS)
        encoding = model.encode("text", text_inputs([3, 5], 6, padding=49))
        (encoding.pooled_BD.square().sum() + model.router_loss(encoding)).backward()
        used = set(text_inputs([3, 5], 6)["input_ids"].flatten().tolist()) - {0}
        assert 49 not in used
        norms = model.embeddings["text"].words.weight.grad.norm(dim=1)
        assert norms[49] == 0 and all(norms[word] > 0 for word in used)

    def test_the_mean_is_over_the_valid_tokens(self):
        tokens_BLD = torch.tensor([[[1.0, 2], [3, 4], [100, 100]], [[5, 6], [0, 0], [0, 0]]])
        valid_BL = torch.tensor([[True, True, False], [False, False, False]])
        assert masked_mean(tokens_BLD, valid_BL).tolist() == [[2.0, 3.0], [0.0, 0.0]]
        assert_near(masked_mean(tokens_BLD, None)[1], torch.tensor([5 / 3, 2.0]))

    def test_no_mask_means_no_padding(self):
        model = small_model()
        inputs = text_inputs([6, 6], 6)
        assert_near(model.encode("text", {"input_ids": inputs["input_ids"]}).pooled_BD, model.encode("text", inputs).pooled_BD)


class TestInputs:
    def test_an_image_is_a_clip_of_one_step(self):
        image_THWC = np.random.default_rng(0).integers(0, 256, (1, 16, 8, 3), dtype=np.uint8)
        as_image = vision.preprocess([image_THWC], 1, (16, 8), (2, 4, 4))
        as_video = vision.preprocess([np.repeat(image_THWC, 2, axis=0)], 2, (16, 8), (2, 4, 4))
        model = small_model()
        images, films = (
            model.encode("vision", {name: torch.from_numpy(value) for name, value in inputs.items()}).pooled_BD
            for inputs in (as_image, as_video)
        )
        assert as_image["pixel_values"].shape[-1] * 2 == as_video["pixel_values"].shape[-1]
        assert_near(images, films)

    @pytest.mark.parametrize("experts", [{}, EXPERTS])
    def test_every_size_up_to_the_maximum_runs(self, experts):
        """vision_max is 8 x 32 x 32 in patches of 2 x 4 x 4: 4 steps, 8 rows, 8 columns; audio 8 x 4 patches."""
        model = small_model(**experts)
        seen = []
        for steps in range(1, 5):
            for rows, columns in ((1, 1), (3, 8), (5, 5), (8, 8)):
                with torch.no_grad():
                    seen.append(model.encode("vision", clip_inputs(1, steps, rows, columns)).pooled_BD)
        for steps in range(1, 9):
            for bands in range(1, 5):
                with torch.no_grad():
                    seen.append(model.encode("audio", audio_inputs(1, steps, bands)).pooled_BD)
        with torch.no_grad():
            seen.append(model.encode("text", text_inputs([64], 64)).pooled_BD)
        assert len(seen) == 16 + 32 + 1 and torch.isfinite(torch.cat(seen)).all()

    def test_integer_pixels_are_scaled_to_minus_one_and_one(self):
        embedding = small_model().embeddings["vision"]
        inputs = clip_inputs(1, 1, 2, 2)
        floats = inputs["pixel_values"].double() / 255 * 2 - 1  # 0 -> -1, 255 -> 1
        assert_near(embedding(**inputs)[0], embedding(floats.float(), inputs["pixel_positions"])[0])

    @pytest.mark.parametrize("experts", [{}, EXPERTS])
    def test_an_example_does_not_depend_on_its_batch(self, experts):
        model = small_model(**experts)
        inputs = text_inputs([9, 4, 16, 1], 16)
        together = model.encode("text", inputs).pooled_BD
        apart = [model.encode("text", {name: t[i : i + 1] for name, t in inputs.items()}).pooled_BD for i in range(4)]
        assert_near(together, torch.cat(apart))

    def test_forward_returns_what_was_given(self):
        model = small_model(**EXPERTS)
        out = model(**clip_inputs(2, 1, 2, 2), **text_inputs([3, 4], 5))
        assert out.audio_pooled is None and out.vision_pooled.shape == out.text_pooled.shape == (2, 32)
        assert set(out.embeddings) == {"vision_to_text", "vision_to_audio", "text_to_vision", "text_to_audio"}
        for vectors in out.embeddings.values():
            assert vectors.dtype == torch.float32
            assert_near(vectors.norm(dim=1), torch.ones(2))
        assert_near(out.embeddings["text_to_vision"], model.project(out.text_pooled, "text", "vision"))
        # released coefficient 1: the plain sum of the z-losses of 2 layers and 2 modalities
        encodings = [model.encode("vision", clip_inputs(2, 1, 2, 2)), model.encode("text", text_inputs([3, 4], 5))]
        reports = [report.z_loss for encoding in encodings for report in encoding.reports]
        assert len(reports) == 4
        assert_near(out.router_z_loss, torch.stack(reports).sum())

    def test_the_z_loss_is_weighted_by_its_coefficient(self):
        inputs = audio_inputs(2)
        full, tenth = (small_model(**EXPERTS, router_z_loss=c)(**inputs).router_z_loss for c in (1.0, 0.1))
        assert_near(tenth, 0.1 * full)
        assert full > 0 and small_model()(**inputs).router_z_loss == 0

    def test_nothing_and_unknown_pairs_are_refused(self):
        with pytest.raises(UserError, match="nothing to encode"):
            small_model()()
        model = small_model(pairs=[("vision", "text")])
        with pytest.raises(UserError, match="(?s)audio_to_text.*vision_to_text, text_to_vision"):
            model.project(torch.zeros(1, 32), "audio", "text")


class TestBlocks:
    def test_qk_norm_is_a_switch(self):
        on, off = small_model(qk_norm=True), small_model(qk_norm=False)
        assert isinstance(on.blocks[0].attention.query_norm, nn.LayerNorm)
        assert on.blocks[0].attention.key_norm.weight.shape == (8,)  # the head width: shared by heads
        assert isinstance(off.blocks[0].attention.query_norm, nn.Identity)
        # queries and keys a hundred times larger saturate the plain softmax and leave the normed one as it was
        for model, changes in ((on, False), (off, True)):
            before = model.encode("audio", audio_inputs(1)).pooled_BD
            for block in model.blocks:
                block.attention.qkv.weight.data[:64] *= 100
            difference = (model.encode("audio", audio_inputs(1)).pooled_BD - before).abs().max()
            assert (difference > 1e-2) == changes

    def test_attention_equals_a_softmax_written_out(self):
        attention = small_model(qk_norm=False).blocks[0].attention
        x_BLD, valid_BL = torch.randn(2, 5, 32), torch.arange(5) < torch.tensor([[5], [3]])
        query, key, value = (
            part.unflatten(-1, (4, 8)).transpose(1, 2) for part in (x_BLD @ attention.qkv.weight.T).split(32, dim=-1)
        )
        scores = (query @ key.transpose(2, 3) / 8**0.5).masked_fill(~valid_BL[:, None, None], float("-inf"))
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        found_BLD, reports = attention(x_BLD, SequenceFacts(valid_BL))
        assert_near(found_BLD, mixed @ attention.out.weight.T)
        assert not reports

    def test_only_the_last_norm_and_the_maps_around_the_blocks_have_biases(self):
        model = small_model(**EXPERTS)
        assert not [name for name, _ in model.blocks.named_parameters() if "bias" in name]
        assert model.norm.bias is not None and model.pre_encoder["text"].bias is not None

    @pytest.mark.parametrize("kwargs", [None, {"use_reentrant": False}])
    def test_gradient_checkpointing_changes_no_gradient(self, kwargs):
        gradients = []
        for checkpointed in (False, True):
            model = small_model(**EXPERTS).train()
            if checkpointed:
                model.gradient_checkpointing_enable(kwargs)
            assert all(block.gradient_checkpointing == checkpointed for block in model.blocks)
            encoding = model.encode("text", text_inputs([6, 9], 10))
            (encoding.pooled_BD.square().sum() + model.router_loss(encoding)).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys() and "blocks.2.feed_forward.router.weight" in gradients[0]
        for name, gradient in gradients[0].items():
            assert_near(gradients[1][name], gradient, 1e-6)

    def test_reentrant_checkpointing_would_lose_the_z_loss_and_is_refused(self):
        model = small_model(**EXPERTS).train()
        with pytest.raises(UserError, match="(?s)z-loss.*use_reentrant"):
            model.gradient_checkpointing_enable({"use_reentrant": True})
        small_model().gradient_checkpointing_enable({"use_reentrant": True})  # a dense encoder has none to lose


class TestOnDisk:
    @pytest.mark.parametrize("experts", [{}, EXPERTS, EXPERTS | {"expert_activation": "geglu"}])
    def test_round_trip(self, tmp_path, experts):
        model = small_model(**experts)
        model.save_pretrained(tmp_path)
        assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
        for loaded in (ImpModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
            assert type(loaded) is ImpModel
            for (name, weight), (loaded_name, loaded_weight) in zip(model.state_dict().items(), loaded.state_dict().items()):
                assert name == loaded_name and torch.equal(weight, loaded_weight)
            assert torch.equal(loaded(**audio_inputs(2)).audio_pooled, model(**audio_inputs(2)).audio_pooled)

    def test_the_encoder_loads_from_a_pretraining_folder(self, tmp_path):
        objectives = [
            {"kind": "contrastive", "pairs": [["audio", "text"]], "temperature": 0.2},
            {"kind": "classification", "modality": "audio", "num_classes": 3},
        ]
        torch.manual_seed(0)
        full = ImpForPreTraining(small_config(**EXPERTS, objectives={"speech": task_entry(objectives)})).eval()
        temperature = full.objectives["speech"].parts[0].temperatures["audio_text"].value
        temperature.data.fill_(0.07)  # learned; must not fall back to its start when loaded
        full.save_pretrained(tmp_path)
        for loaded in (ImpModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
            assert torch.equal(loaded(**audio_inputs(2)).audio_pooled, full.imp(**audio_inputs(2)).audio_pooled)
        _, found = ImpModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not found["missing_keys"] and not found["mismatched_keys"]
        again = ImpForPreTraining.from_pretrained(tmp_path)
        for (name, weight), other in zip(full.state_dict().items(), again.state_dict().values()):
            assert torch.equal(weight, other), name

    def test_new_weights_beside_loaded_ones_leave_those_alone(self, tmp_path):
        """A plain encoder continued with gated experts: w3 is new, w1 and w2 are the loaded ones."""
        model = small_model(**EXPERTS)
        model.save_pretrained(tmp_path)
        gated, found = ImpModel.from_pretrained(tmp_path, expert_activation="geglu", output_loading_info=True)
        assert {name.rsplit(".", 1)[1] for name in found["missing_keys"]} == {"w3"}
        for old, new in zip(model.blocks[1:], gated.blocks[1:]):
            assert torch.equal(old.feed_forward.experts.w1, new.feed_forward.experts.w1)
            assert torch.equal(old.feed_forward.experts.w2, new.feed_forward.experts.w2)
            # LeCun normal: standard deviation 1 / sqrt(32)
            assert new.feed_forward.experts.w3.std().item() == pytest.approx(32**-0.5, rel=0.05)

    def test_the_folder_says_what_it_is(self, tmp_path):
        small_model().save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["model_type"] == "imp" and config["architectures"] == ["ImpModel"]


class TestSeeds:
    def test_weights_depend_on_the_seed_alone(self):
        first, second, other = (ImpModel(small_config(**EXPERTS)) for _ in range(3))
        for model, seed in ((first, 5), (second, 5), (other, 6)):
            torch.rand(1)  # the global generator, at another point each time, plays no part
            initialize_seeded(model, seed, 0.02)
        for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters()):
            assert torch.equal(a, b), name
            if a.std() > 0:
                assert not torch.equal(a, c), name

    def test_no_two_tensors_and_no_two_experts_are_alike(self):
        model = ImpModel(small_config(**EXPERTS))
        initialize_seeded(model, 0, 0.02)
        heads = [p.flatten()[:4].tolist() for p in model.parameters() if p.std() > 0]
        stacked = [weight for module in model.modules() if isinstance(module, Experts) for weight in module.parameters()]
        heads += [weight[i].flatten()[4:8].tolist() for weight in stacked for i in range(4)]
        assert len({tuple(head) for head in heads}) == len(heads)

    def test_a_slice_of_experts_gets_the_weights_of_the_whole(self):
        """Two ranks with two experts each start from the same four experts as one rank."""
        full = ImpModel(small_config(**EXPERTS))
        initialize_seeded(full, 7, 0.02)
        for first in (0, 2):
            part = ImpModel(small_config(**EXPERTS))
            for block in part.blocks[1:]:
                block.feed_forward.experts = block.feed_forward.experts.slice(first, 2)
            initialize_seeded(part, 7, 0.02)
            for mine, all_of_them in zip(part.blocks[1:], full.blocks[1:]):
                for name, weight in mine.feed_forward.experts.named_parameters():
                    assert torch.equal(weight, all_of_them.feed_forward.experts.get_parameter(name)[first : first + 2])

    def test_the_scale_of_each_kind_of_weight(self):
        model = ImpModel(ImpConfig.from_size("tiny", num_experts=4, moe_layers="last:1", vocab_size=1000))
        initialize_seeded(model, 0, 0.02)
        block = model.blocks[-1]
        deviations = {
            "kernel": (block.attention.qkv.weight, 128**-0.5),  # LeCun normal: 1 / sqrt(fan in)
            "feed-forward": (model.blocks[0].feed_forward.down.weight, 512**-0.5),
            "expert up": (block.feed_forward.experts.w1, 128**-0.5),
            "expert down": (block.feed_forward.experts.w2, 512**-0.5),
            "words": (model.embeddings["text"].words.weight, 1.0),
            "router": (block.feed_forward.router.weight, 0.02),
        }
        for name, (weight, deviation) in deviations.items():
            assert weight.std().item() == pytest.approx(deviation, rel=0.1), name
        assert (block.attention_norm.weight == 1).all() and (model.norm.bias == 0).all()
        assert (model.pre_encoder["text"].bias == 0).all()
