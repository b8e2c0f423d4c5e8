"""Vision: images and videos, all that the program asks about them."""

import math

from imp_ds.modalities.modality import PatchModality, Preprocessed, register_modality
from imp_ds.modalities.vision import patches
from imp_ds.modalities.vision.pictures import vision_pictures
from imp_ds.modalities.vision.pixels import size_pair
from imp_ds.modalities.vision.view import VisionAugmentation, VisionOptions, VisionView


@register_modality
class Vision(PatchModality):
    """Images and videos, cut into patches of frames, rows and columns."""

    kind, is_standard = "vision", True
    item_kinds = ("image", "video")
    what = "images and videos"
    column = "column of the image or video: bytes, or the name of a file"
    missing = "no pictures"
    example = 'images=[image]'
    inputs = (*patches.INPUT_NAMES, patches.MASK)
    part = "image_processor"
    View, Options, Augmentation = VisionView, VisionOptions, VisionAugmentation
    axes, copied = 3, True
    alters = ("sides", "colours")

    def decode(self, raws, view, rngs, cache, augment, wanted):
        from imp_ds.modalities.vision.clips import read_clips

        return read_clips(raws, view, rngs, cache, augment, wanted.settings)

    def preprocess(self, samples, view, part, rngs, *, augment, text, empty):
        inputs = patches.preprocess(
            samples, view.frames, (view.height, view.width), part.patch, keep_aspect=view.keep_aspect, naflex=view.naflex,
            largest=part.largest and size_pair(part.largest), drop_rate=0.0 if rngs is None else view.drop_rate, rngs=rngs,
            empty=empty,
        )  # fmt: skip
        mask_BK = inputs.get(patches.MASK)
        return Preprocessed(inputs, padding=0.0 if mask_BK is None else 1.0 - float(mask_BK.mean()))

    def embedding(self, config):
        return patches.VisionEmbedding(config)

    def registers(self, config):
        return config.vision_registers

    def grid(self, config, tokens, values):
        return patches.grid_of(self.buckets(config), self.patch(config), config.num_channels, tokens, values)

    def tokens(self, view, config, settings, path):
        frames = self.patch(config)[0] if view.frames == 1 else view.frames  # one frame fills a patch
        return self.count((frames, view.height, view.width), config, [f"{path}.{name}" for name in ("frames", "height", "width")])

    def values(self, view, config):
        """A patch of an image has one frame."""
        all_frames = config.num_channels * math.prod(self.patch(config))
        return all_frames // self.patch(config)[0] if view.frames == 1 else all_frames

    def facts(self, raw):
        from imp_ds.modalities.vision.facts import vision_facts

        return vision_facts(raw)

    def pictures(self, inputs, view, part):
        return vision_pictures(inputs, view, part.patch)

    def changes(self, augment):
        return [*(["sides"] if augment.flip else []), *(["colours"] if augment.colour > 0 else [])]
