"""The recipe `talk_real`: questions about real photographs, X-rays, drawings, sounds, speech and videos, answered in words.

    deepspeed --num_gpus 2 --module imp_ds train talk_real --set data.root=DIR --set train.ep_size=2

None of the data are conversations: each source makes them of its own columns (`turns`, docs/data.md). `DIR` holds

    wide/photos                                 photographs with captions by people         Parquet: image, captions
    wide/qa_radiology, wide/qa_shapes           pictures with questions                     Parquet: image, question, answer
    wide/sounds_esc10                           everyday sounds                             tar shards: json.class
    wide/speech_arabic, wide/speech_orders      Arabic words, English orders of coffee      tar shards: json.english, json.drink
    real/images, real/audio, real/videos        photographs, spoken digits, actions         as in the recipe real_small: label

Towers begin with fresh weights, as the language model does; `--set model.image_tower=MODEL --set model.video_tower=MODEL` takes
an exported model in their place, such as that of `real_small`.

Hardware: two CPU cores. It has not been trained to its end: what the first 220 steps reach, in three minutes, is in
benchmarks/results/talk_real.md.
"""

from imp_ds.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.uni_moe.settings import ConnectorSettings, UniMoeSettings
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.views import Views
from imp_ds.objectives import NextToken
from imp_ds.tasks import Source, Task

LANGUAGE_MODEL = {
    "model_type": "llama", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 6, "max_position_embeddings": 256, "initializer_range": 0.08,
}  # fmt: skip
# of pictures and of 8 frames of a video, whose tokens are averaged
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "image_size": 64, "patch_size": 8,
}  # fmt: skip
# chunks of 2 s
AUDIO = {
    "model_type": "whisper", "d_model": 128, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 512,
    "num_mel_bins": 80, "max_source_positions": 100,
}  # fmt: skip
VIEWS = Views(messages=MessagesView(length=128, frames=8))

_CLASSES = dict(label="label", label_names="classes.json")
SOURCES = {
    "captions": Source(
        path="wide/photos", format="parquet",
        turns=[["<image>Describe the photograph.", "<image>What is there to be seen?"], "{captions}"],
    ),
    "radiology": Source(path="wide/qa_radiology", format="parquet", turns=["<image>{question}", "{answer}"]),
    "shapes": Source(path="wide/qa_shapes", format="parquet", turns=["<image>Is it true? {question}", "{answer}"]),
    "sounds": Source(
        path="wide/sounds_esc10", format="webdataset",
        turns=[["<audio>What is heard?", "<audio>Which sound is it?"], "{json.class}"],
    ),
    "words": Source(
        path="wide/speech_arabic", format="webdataset", turns=["<audio>Which word is said, in English?", "{json.english}"]
    ),
    "orders": Source(path="wide/speech_orders", format="webdataset", turns=["<audio>Which drink is ordered?", "{json.drink}"]),
    "digits": Source(
        path="real/audio", format="webdataset", turns=["<audio>Which digit is said?", "{}"], label="json.label",
        label_names="classes.json",
    ),
    "objects": Source(path="real/images", format="parquet", turns=["<image>What is in the picture?", "{}"], **_CLASSES),
    "actions": Source(path="real/videos", turns=["<video:file_name>What does the person do?", "{}"], **_CLASSES),
}  # fmt: skip
# relative to the others: by the number of samples, and how hard they are
_WEIGHTS = {
    "captions": 3, "objects": 3, "shapes": 2, "radiology": 2, "words": 2, "orders": 2,
    "digits": 2, "sounds": 1, "actions": 1,
}  # fmt: skip


def tasks() -> list[Task]:
    return [
        Task(
            name=name, source=source, views=VIEWS, objectives=[NextToken()], weight=_WEIGHTS[name],
            batch_size=8 if name in ("orders", "actions") else 32,
        )
        for name, source in SOURCES.items()
    ]  # fmt: skip


def evaluations() -> list[Evaluation]:
    """Each task's answers: captions by BLEU-4 and CIDEr against all captions of a photograph, all others by exact match."""
    return [
        Evaluation(
            name=name, modality="messages", source=source, views=VIEWS, evaluator="answers",
            options={"metric": "captions", "max_new_tokens": 24} if name == "captions" else {"max_new_tokens": 12},
        )
        for name, source in SOURCES.items()
    ]  # fmt: skip


def talk_real() -> RunConfig:
    """Towers, connectors and a language model with 4 experts on nine tasks; see the head of this file."""
    return RunConfig(
        name="talk_real",
        model=UniMoeSettings(
            language_model=LANGUAGE_MODEL, image_tower=VISION, video_tower=VISION, audio_tower=AUDIO,
            image_connector=ConnectorSettings(pool=2), video_connector=ConnectorSettings(pool=2),
            audio_connector=ConnectorSettings(pool=10), num_experts=4, moe_layers="every:2", router_balance=0.01,
        ),
        data=DataSettings(root="data/talk_real", vocab_size=2000),
        tasks=tasks(),
        evaluations=evaluations(),
        train=TrainSettings(steps=6000, schedule="sampling", log_every=100, eval_every=2000, save_every=1000),
        optimizer=OptimizerSettings(peak_rate=1e-3, warmup_rate=1e-6, warmup_steps=200, final_rate=1e-5, weight_decay=0.05),
    )  # fmt: skip


def talk_real_debug() -> RunConfig:
    """`talk_real` in two narrow layers, with tiny batches and short: seconds on one core.

    imp_ds train talk_real_debug --set data.root=DIR
    """
    run = talk_real()
    run.name = "talk_real_debug"
    small = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    vision = VISION | small
    audio = AUDIO | dict(d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=48)
    run.model = run.model.model_copy(
        update=dict(
            language_model=LANGUAGE_MODEL | small | {"num_key_value_heads": 2}, image_tower=vision, video_tower=vision,
            audio_tower=audio,
        )
    )  # fmt: skip
    for task in run.tasks:
        task.batch_size = 4
    for evaluation in run.evaluations:
        evaluation.options = evaluation.options | {"samples": 4}
    run.data.vocab_size, run.data.workers = 512, 0
    run.train = TrainSettings(steps=32, schedule="sampling", log_every=1, eval_every=0, save_every=0)
    run.optimizer.warmup_steps = 4
    return run
