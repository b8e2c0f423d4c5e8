"""The recipe `talk_debug`: the stages of Uni-MoE in seconds, from fresh weights. Its stages, each a run in runs/talk_debug/STAGE:

    language        a tiny language model, on text alone
    image, speech   specialists: a connector, and LoRA on the feed-forwards, for one kind of media each
    moe             the feed-forwards of all three are experts; routers, connectors, and LoRA on attention and experts are trained

    imp_ds corpus talk data/talk --scale 0.03
    deepspeed --num_gpus 2 --module imp_ds train talk_debug

Hardware: two CPU cores. Time: half a minute, most of which processes take to start.
"""

from imp_ds.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
from imp_ds.data.talk import splits_of
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.uni_moe.settings import ConnectorSettings, LoraSettings, UniMoeSettings
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.views import Views
from imp_ds.objectives import NextToken
from imp_ds.stages import Stage, StagedRun
from imp_ds.tasks import Source, Task

LANGUAGE = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 512, "initializer_range": 0.08,
}  # fmt: skip
TOWER = {
    "model_type": "imp", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vision_patch": [4, 8, 8], "vision_max": [8, 32, 32], "audio_patch": [16, 16], "audio_max": [128, 64], "num_experts": 0,
    "vocab_size": 8, "common_dim": 32,
}  # fmt: skip
VIEW = Views(messages=MessagesView(length=192, frames=8))
TRAINED = ["uni_moe.connectors.*", "*.lora.*"]


def talk_debug() -> StagedRun:
    """The stages of `talk`, with fewer specialists, from fresh weights: half a minute on two cores."""
    feed_forwards = LoraSettings(r=2, lora_alpha=4, target_modules=["gate_proj", "up_proj", "down_proj"])
    specialist = dict(language_model="stage:language", lora=feed_forwards)
    audio = dict(audio_tower=TOWER, audio_connector=ConnectorSettings(pool=[1, 2]))
    runs = {
        "language": _run("language", ["arithmetic"], None, language_model=LANGUAGE),
        "image": _run("image", ["image_question"], TRAINED, image_tower=TOWER, **specialist),
        "speech": _run("speech", ["speech_question"], TRAINED, **audio, **specialist),
        "moe": _run(
            "moe", ["image_question", "speech_question", "arithmetic"], [*TRAINED, "*.router.weight"],
            language_model="stage:language", image_tower=TOWER, audio_tower=TOWER,
            image_connector=ConnectorSettings(start_from="stage:image"),
            audio_connector=ConnectorSettings(pool=[1, 2], start_from="stage:speech"),
            experts={"base": "stage:language", "image": "stage:image", "speech": "stage:speech"},
            lora=LoraSettings(
                r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"],
                target_parameters=["experts.gate_up_proj", "experts.down_proj"],
            ),
        ),
    }  # fmt: skip
    return StagedRun(name="talk_debug", stages=[Stage(name=name, run=run) for name, run in runs.items()])


def _run(stage: str, tasks: list[str], trained: list[str] | None, **model) -> RunConfig:
    source = {name: Source(path=".", messages="messages", splits=splits_of(name)) for name in tasks}
    asked = {"metric": "exact_match", "max_new_tokens": 8, "samples": 4}
    return RunConfig(
        name=f"talk_debug_{stage}",
        model=UniMoeSettings(**model),
        data=DataSettings(root="data/talk", vocab_size=512, workers=0),
        tasks=[Task(name=name, source=source[name], views=VIEW, objectives=[NextToken()], batch_size=8) for name in tasks],
        evaluations=[
            Evaluation(name=name, modality="messages", source=source[name], views=VIEW, evaluator="answers", options=asked)
            for name in tasks[:1]
        ],
        train=TrainSettings(steps=6, log_every=1, eval_every=0, save_every=0, trainable=trained),
        optimizer=OptimizerSettings(peak_rate=2e-3, warmup_steps=2, weight_decay=0.05, betas=(0.9, 0.98)),
    )  # fmt: skip
