"""transformers' own tests of image processors, video processors, feature extractors and tokenizers, run on those of ImpProcessor.

What is left out is named, each with its reason. A patch here is a whole picture or frame, so that what the tests ask for by
picture or frame is there: [B, pictures or frames, values].
"""

import tempfile
import unittest

import numpy as np
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from helpers import common_tests
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor

images = common_tests.module("test_image_processing_common")
videos = common_tests.module("test_video_processing_common")
audio = common_tests.module("test_sequence_feature_extraction_common")
tokenizers = common_tests.module("test_tokenization_common")

videos.AutoVideoProcessor = AutoVideoProcessor  # without torchvision the one of `transformers` itself is an error message

ALPHA = "the model has three channels, and a fourth is alpha: it is laid over a ground, never passed on"
SIDE, FRAMES = 16, 8
SETTINGS = {"size": {"height": SIDE, "width": SIDE}, "patch": [1, SIDE, SIDE], "do_rescale": True, "do_normalize": True}


class LeavesOut:
    """Skips what `left_out` gives a reason for."""

    left_out = {}

    def setUp(self):
        if self._testMethodName in self.left_out:
            self.skipTest(self.left_out[self._testMethodName])
        super().setUp()


class ImageTester(images.ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(parent, max_resolution=80, **SETTINGS)

    def _get_image_processing_classes(self):
        return {"pil": ImpImageProcessor}

    def prepare_image_processor_dict(self):
        return dict(SETTINGS)

    def expected_output_image_shape(self, images):
        return 1, SIDE * SIDE * 3


class TestImages(LeavesOut, images.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageTester
    test_cast_dtype = True
    left_out = {
        "test_call_numpy_4_channels": ALPHA,
        "test_new_models_require_torchvision_backend": "a rule for models inside of transformers; torchvision is not needed here",
    }


class VideoTester:
    batch_size, num_frames, num_channels = 3, FRAMES, 3

    def prepare_video_inputs(self, equal_resolution=False, return_tensors="pil"):
        return videos.prepare_video_inputs(
            self.batch_size, self.num_frames, self.num_channels, 10, 40, equal_resolution, return_tensors
        )

    def expected_output_video_shape(self, videos):
        return FRAMES, SIDE * SIDE * 3


class TestVideos(LeavesOut, videos.VideoProcessingTestMixin, unittest.TestCase):
    fast_video_processing_class = ImpVideoProcessor
    input_name = "pixel_values"
    test_cast_dtype = True
    video_processor_dict = {**SETTINGS, "frames": FRAMES}
    left_out = {
        "test_call_numpy_4_channels": ALPHA,
        "test_call_sample_frames": "a clip has the model's number of frames: a shorter video repeats its last, no `fps` counts",
        "test_video_processor_from_dict_with_kwargs": "asks for a crop of its own: here `size` is what a video is cut to",
    }

    def setUp(self):
        super().setUp()
        self.video_processor_tester = VideoTester()


class AudioTester:
    """Sequences as the tests of padding take them: of 128 bins, of 3 lengths."""

    batch_size, feature_size, min_seq_length, max_seq_length = 3, 128, 8, 24
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)

    def prepare_feat_extract_dict(self):
        return {"seconds": 0.5, "mean": -4.0, "std": 3.0}

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        rng, lengths = np.random.default_rng(0), [8, 16, 24]
        found = [rng.random((24 if equal_length else length, self.feature_size)).astype(np.float32) for length in lengths]
        return found if numpify else [each.tolist() for each in found]


class TestAudio(LeavesOut, audio.SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = ImpFeatureExtractor

    def setUp(self):
        super().setUp()
        self.feat_extract_tester = AudioTester()


class TestTokenizer(LeavesOut, tokenizers.TokenizerTesterMixin, tokenizers.TokenizersBackendTesterMixin, unittest.TestCase):
    tokenizer_class = PreTrainedTokenizerFast

    @classmethod
    def setUpClass(cls):
        """The base classes ask the hub for a tokenizer, and for a file that the source distribution lacks."""
        cls.tmpdirname = tempfile.mkdtemp()
        texts = ["lower newer upper older longer string", "this is a test of the method with these inputs, hello how are you"]
        train_tokenizer(texts, 200, max_length=512).save_pretrained(cls.tmpdirname)
        cls.from_pretrained_id = [cls.tmpdirname]
        cls.tokenizers_list = [(cls.tokenizer_class, cls.tmpdirname, {})]


del LeavesOut  # it is no case by itself
