"""transformers' own tests of a model, run on ImpModel: dense, and with experts that compete for tokens.

What is left out is named, each with its reason; what transformers' tests themselves skip is of no model of this kind.
"""

import unittest

import torch

from helpers import common_tests
from imp_ds import ImpConfig, ImpModel

modeling = common_tests.module("test_modeling_common")

EXPERTS = dict(num_experts=4, moe_layers="last:1", group_examples=None)
NOT_OF_TEXTS = {
    "test_eager_matches_sdpa": "asks for the main input, pixel_values: TestPictures runs it",
    "test_get_image_features": "asks for pixel_values: TestPictures runs it",
    "test_get_video_features": "asks for pixel_values: TestPictures runs it",
    "test_get_audio_features": "asks for input_features, which neither has",
    "test_get_text_features_output": "asks for the width in config.text_config: tests/models/test_features.py does so",
}
NOT_OF_PICTURES = {
    "test_resize": "asks for input_ids: TestTexts runs it",
    "test_get_text_features": "asks for input_ids: TestTexts runs it",
    "test_get_audio_features": "asks for input_features, which neither has",
}


class ImpModelTester:
    """Inputs and configurations, as the common tests ask for them: pictures of 3 x 3 patches, or texts of 9 words."""

    def __init__(self, modality: str, changes: dict):
        self.modality, self.changes = modality, changes
        self.batch_size, self.seq_length, self.is_training = 3, 9, False
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 32, 2, 4

    def get_config(self) -> ImpConfig:
        return ImpConfig(
            hidden_size=self.hidden_size, intermediate_size=48, num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads, vision_patch=(2, 4, 4), vision_max=(8, 32, 32), audio_patch=(4, 4),
            audio_max=(32, 16), vocab_size=50, text_max=64, common_dim=24, **self.changes,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self):
        generator, shape = torch.Generator().manual_seed(0), (self.batch_size, self.seq_length)
        if self.modality == "text":
            ids_BL = torch.randint(1, 50, shape, generator=generator)
            return self.get_config(), {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
        return self.get_config(), {"pixel_values": torch.rand(*shape, 48, generator=generator) * 2 - 1}


class CommonTests(modeling.ModelTesterMixin):
    all_model_classes = (ImpModel,)
    modality, changes, left_out = "vision", {}, {}

    def setUp(self):
        found = [reason for name, reason in self.left_out.items() if self._testMethodName.startswith(name)]
        if found:
            self.skipTest(found[0])
        self.model_tester = ImpModelTester(self.modality, self.changes)


class TestPictures(CommonTests, unittest.TestCase):
    left_out = NOT_OF_PICTURES


class TestPicturesWithExperts(TestPictures):
    changes = EXPERTS


class TestTexts(CommonTests, unittest.TestCase):
    modality, left_out = "text", NOT_OF_TEXTS


class TestTextsWithExperts(TestTexts):
    changes = EXPERTS


del CommonTests  # it is no case by itself
