"""The recipes `talk_language` and `talk`: a language model of experts that is asked about images, videos and speech.

    imp_ds corpus talk data/talk
    deepspeed --num_gpus 2 --module imp_ds train talk_language && imp_ds export runs/talk_language runs/talk_language/model
    deepspeed --num_gpus 2 --module imp_ds train talk

`talk_language` trains a small language model on the text of the corpus alone. `talk` puts it behind the encoder that the
quickstart exports (runs/digits/model), which reads images, videos and audio and stays frozen; its feed-forwards become four
experts in every second layer; connectors and the language model are trained on all tasks. What the encoder makes of the media is
computed once, before training.

Hardware: two CPU cores. Time and scores: benchmarks/results/talk.md.
"""

from imp_ds.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
from imp_ds.data.talk import splits_of
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.uni_moe.settings import ConnectorSettings, UniMoeSettings
from imp_ds.modalities.messages.view import MessagesSettings, MessagesView
from imp_ds.modalities.views import Views
from imp_ds.objectives import NextToken
from imp_ds.tasks import Source, Task

TOWER = "runs/digits/model"
LANGUAGE = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.08,
}  # fmt: skip
TEXT = {"arithmetic": 1.5, "description": 0.75}
# task -> how often it is drawn, against the others
MEDIA = {
    "image_question": 1.0, "video_question": 1.0, "speech_question": 1.0, "spoken_question_image": 2.75,
    "spoken_question_video": 1.5, "digit_sum": 1.25, "digit_agreement": 1.0, "several_digits": 0.5, "follow_up": 1.0,
    "transcript": 1.75,
}  # fmt: skip
VIEW = Views(messages=MessagesView(length=192, frames=8))
ASKED = 300  # questions of each task that an evaluation asks


def _source(name: str) -> Source:
    return Source(path=".", messages="messages", splits=splits_of(name))


def _tasks(weights: dict[str, float]) -> list[Task]:
    return [
        Task(name=name, source=_source(name), views=VIEW, objectives=[NextToken()], weight=weight, batch_size=64)
        for name, weight in weights.items()
    ]


def _evaluations(names) -> list[Evaluation]:
    """Each task's answers on unseen handwriting and unheard voices: by exact match, a transcript by its word errors."""
    metrics = {"transcript": "wer"}
    return [
        Evaluation(
            name=name, modality="messages", source=_source(name), views=VIEW, evaluator="answers",
            options={"metric": metrics.get(name, "exact_match"), "max_new_tokens": 16, "samples": ASKED},
        )
        for name in names
    ]  # fmt: skip


def talk_language() -> RunConfig:
    """The language model of `talk`, on text alone; see the head of this file."""
    return RunConfig(
        name="talk_language",
        model=UniMoeSettings(language_model=LANGUAGE),
        data=DataSettings(root="data/talk", vocab_size=512),
        tasks=_tasks(TEXT),
        evaluations=_evaluations(TEXT),
        train=TrainSettings(steps=1000, schedule="sampling", log_every=100, eval_every=0, save_every=0),
        optimizer=OptimizerSettings(peak_rate=2e-3, warmup_steps=50, weight_decay=0.05, betas=(0.9, 0.98)),
    )


def talk() -> RunConfig:
    """Towers, connectors and experts on all tasks; see the head of this file."""
    return RunConfig(
        name="talk",
        model=UniMoeSettings(
            language_model="runs/talk_language/model", image_tower=TOWER, video_tower=TOWER, audio_tower=TOWER,
            video_connector=ConnectorSettings(pool=[1, 2, 2]), audio_connector=ConnectorSettings(pool=[1, 2]),
            num_experts=4, moe_layers="every:2",
        ),
        data=DataSettings(root="data/talk", messages=MessagesSettings(feature_cache_gb=2.0)),
        tasks=_tasks(MEDIA | TEXT),
        evaluations=_evaluations(MEDIA | TEXT),
        train=TrainSettings(
            steps=2000, schedule="sampling", log_every=100, eval_every=0, save_every=1000,
            trainable=["uni_moe.connectors.*", "uni_moe.language_model.*"],
        ),
        optimizer=OptimizerSettings(peak_rate=2e-3, warmup_steps=100, weight_decay=0.05, betas=(0.9, 0.98)),
    )  # fmt: skip
