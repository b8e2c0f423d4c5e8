"""The recipe `talk_debug`: all stages of `talk` in seconds, with a fresh small encoder in the place of the quickstart's.

    imp_ds corpus talk data/talk --scale 0.03
    deepspeed --num_gpus 2 --module imp_ds train talk_debug

Each stage is a run in runs/talk_debug/STAGE. Hardware: two CPU cores. Time: a minute, most of which processes take to start.
"""

from imp_ds.config import RunConfig
from imp_ds.recipes.talk import talk
from imp_ds.stages import Stage, StagedRun

LANGUAGE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER = {
    "model_type": "imp", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vision_patch": [4, 8, 8], "vision_max": [8, 32, 32], "audio_patch": [16, 16], "audio_max": [128, 64], "num_experts": 0,
    "vocab_size": 8, "common_dim": 32,
}  # fmt: skip


def talk_debug() -> StagedRun:
    """The stages of `talk`, of a few steps each, with small models from fresh weights: a minute on two cores."""
    return StagedRun(name="talk_debug", stages=[Stage(name=stage.name, run=_small(stage.run)) for stage in talk().stages])


def _small(run: RunConfig) -> RunConfig:
    model, data = run.model, run.data
    if isinstance(model.language_model, dict):
        model.language_model = model.language_model | LANGUAGE
    for kind in model.towers:
        setattr(model, f"{kind}_tower", TOWER)
    if model.lora is not None:
        model.lora.r, model.lora.lora_alpha = 2, 4
    for task in run.tasks:
        task.batch_size = 8
    run.evaluations = run.evaluations[:1]
    for evaluation in run.evaluations:
        evaluation.options |= {"samples": 4, "max_new_tokens": 8}
    data.workers, data.messages.feature_cache_gb = 0, 0.0
    run.name = run.name.replace("talk", "talk_debug")
    run.train = run.train.model_copy(update={"steps": 6, "log_every": 1, "save_every": 0})
    run.optimizer.warmup_steps = 2
    return run
