"""Captions of an evaluation in TensorBoard: the pictures as the model saw them, and what was generated."""

import io
from types import SimpleNamespace

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.pictures import TASK, pictures
from imp_ds.evaluation_record import Evaluation
from imp_ds.recipes import get_recipe
from imp_ds.tasks import Batch
from imp_ds.train.recording.monitor import Monitor


def test_pictures_stand_beside_the_generated_captions(tmp_path):
    record = Evaluation(name="pictures", modality="vision", source=TASK.source, views=TASK.views, captioner="captions")
    shown = Batch("evaluation", {"vision": pictures([0, 5])}, {})
    processor = SimpleNamespace(image_processor=SimpleNamespace(patch=[1, 4, 4]))
    captions = [("a red ball", "a red ball stands in the hall"), ("a | cup", "a blue cup")]
    for enabled in (False, True):
        monitor = Monitor(tmp_path / str(enabled), get_recipe("digits"), enabled=enabled, total_steps=9)
        monitor.record_examples(3, record, shown, captions, processor)
        monitor.close()
    events = EventAccumulator(str(tmp_path / "True" / "tensorboard"), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    (text,) = events.Tensors("captions/pictures/generated/text_summary")
    assert text.step == 3
    assert text.tensor_proto.string_val[0].decode().splitlines() == [
        "| sample | generated | in the corpus |",
        "| --- | --- | --- |",
        "| 1 | a red ball | a red ball stands in the hall |",
        "| 2 | a \\| cup | a blue cup |",
    ]
    (image,) = events.Images("captions/pictures/pictures")
    drawn = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert image.step == 3 and drawn.shape == (96, 96 + 2 + 96, 3)  # 8 pixels enlarged to 96, two side by side
    values = pictures([5])["pixel_values"].view(2, 2, 4, 4, 3).permute(0, 2, 1, 3, 4).reshape(8, 8, 3).numpy()
    assert (drawn[::12, 98::12] == values).all()
    assert not (tmp_path / "False").exists()
