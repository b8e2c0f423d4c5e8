"""transformers' own tests of a processor, run on ImpProcessor.

What is left out is named, each with its reason. Tests of chat templates skip themselves: an encoder has none.
"""

import unittest

import numpy as np

from helpers import common_tests
from imp_ds import ImpProcessor
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor

processing = common_tests.module("test_processing_common")


class TestProcessor(processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = ImpProcessor
    audio_input_name = "input_features"

    @classmethod
    def _setup_image_processor(cls):
        return ImpImageProcessor(size=16, patch=(2, 8, 8))

    @classmethod
    def _setup_video_processor(cls):
        return ImpVideoProcessor(frames=4, size=16, patch=(2, 8, 8))

    @classmethod
    def _setup_feature_extractor(cls):
        return ImpFeatureExtractor(seconds=0.5)

    @classmethod
    def _setup_tokenizer(cls):
        return train_tokenizer(["lower newer upper older longer string"], 64, max_length=24)

    def prepare_audio_inputs(self, batch_size=None):
        """With their rate, as datasets gives them: a missing one is an error here, no guess."""
        noise = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
        return [{"array": noise, "sampling_rate": 16000}] * (batch_size or 1)

    def _check_modality_outputs(self, inputs, modality):
        """Videos without images are the model's one vision input."""
        if modality == "videos":
            modality = "images"
        super()._check_modality_outputs(inputs, modality)
