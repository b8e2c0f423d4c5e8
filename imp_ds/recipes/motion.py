"""The recipe `motion`: a phone's accelerometer, gyroscope and magnetometer, matched with captions and told by class.

    deepspeed --num_gpus 2 --module imp_ds train motion --set data.root=DIR

`DIR` holds motion_phone/ (Parquet files train and validation, whose rows have 5 s of 9 channels at 25 Hz in the list column
`motion`, a `caption` and a `label`) with classes.json, its class names. Two tasks train together: windows matched with their
captions, and windows by class.

Hardware: two CPU cores. Time and scores: benchmarks/results/motion.md.
"""

from imp_ds.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.sensors import SensorsView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.objectives import Classification, Contrastive
from imp_ds.tasks import Source, Task

WINDOW = SensorsView(seconds=5.0, rate_hz=25.0, channels=9)
DROPPED = WINDOW.model_copy(update={"drop_rate": 0.2})
CAPTION = TextView(length=16)
MOTION = Source(
    path="motion_phone", format="parquet", sensors="motion", text="caption", label="label", label_names="classes.json"
)


def motion() -> RunConfig:
    """A small dense encoder on windows of motion and their captions; see the head of this file."""
    return RunConfig(
        name="motion",
        model=ModelSettings(
            size="tiny", hidden_size=64, intermediate_size=256, common_dim=64, text_max=32, sensors_patch=5, sensors_max=250,
        ),
        data=DataSettings(root="data/wide", vocab_size=128),
        tasks=[
            Task(
                name="motion_text", source=MOTION, views=Views(sensors=DROPPED, text=CAPTION), batch_size=32,
                objectives=[Contrastive(pairs=[("sensors", "text")], positives="equal")],
            ),
            Task(
                name="motion_class", source=MOTION, views=Views(sensors=DROPPED), batch_size=32,
                objectives=[Classification(modality="sensors", num_classes=10, label_smoothing=0.1)],
            ),
        ],
        evaluations=[
            Evaluation(
                name="motion", modality="sensors", source=MOTION, views=Views(sensors=WINDOW, text=CAPTION),
                templates=["a hand with a phone draws the digit {} in the air"],
            ),
        ],
        train=TrainSettings(steps=1500, log_every=100, eval_every=0, save_every=0),
        optimizer=OptimizerSettings(peak_rate=1e-3, warmup_rate=1e-6, warmup_steps=100, final_rate=1e-5, weight_decay=0.05),
    )  # fmt: skip
