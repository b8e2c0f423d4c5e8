"""The recipes `talk` and `talk_joint`: a language model of experts that is asked about images, videos and speech.

    imp_ds corpus talk data/talk
    deepspeed --num_gpus 2 --module imp_ds train talk

`talk` follows the paper's three stages (arXiv 2405.11273, section 3.3), after a stage for a language model. Each stage is a run
of its own in runs/talk/STAGE:

    language              a small language model, on the text of the corpus alone
    align                 the connectors, to the frozen language model
    image, video, speech  specialists: LoRA on the feed-forwards, and a connector, on the tasks of one kind of media each
    moe                   the feed-forwards of `language` and of the specialists become experts; the routers, the connectors, and
                          LoRA on attention and experts are trained on all tasks

`talk_joint` trains connectors, routers and the whole language model of `language` on all tasks at once.

The encoder that the quickstart exports (runs/digits/model) reads images, videos and audio, and stays frozen. Its features are
computed once, before the first step that needs them.

Hardware: two CPU cores. Time and scores: benchmarks/results/talk.md.
"""

from imp_ds.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
from imp_ds.data.talk import splits_of
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.uni_moe.settings import ConnectorSettings, LoraSettings, UniMoeSettings
from imp_ds.modalities.messages.view import MessagesSettings, MessagesView
from imp_ds.modalities.views import Views
from imp_ds.objectives import NextToken
from imp_ds.stages import Stage, StagedRun
from imp_ds.tasks import Source, Task

TOWER = "runs/digits/model"
LANGUAGE = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.08,
}  # fmt: skip
# task -> how often it is drawn, against the others of its run
TEXT = {"arithmetic": 1.5, "description": 0.75}
ALIGN = {"image_question": 1.0, "video_question": 1.0, "speech_question": 1.0, "transcript": 3.0}
SPECIALISTS = {  # name -> the kind of media that it is asked about, its tasks, its steps
    "image": ("image", {"image_question": 1.0}, 100),
    "video": ("video", {"video_question": 1.0}, 200),
    "speech": ("audio", {"speech_question": 1.0, "transcript": 2.0, "several_digits": 0.5}, 400),
}
MIX = TEXT | {
    "image_question": 1.0, "video_question": 1.0, "speech_question": 1.0, "spoken_question_image": 2.75,
    "spoken_question_video": 1.5, "digit_sum": 1.25, "digit_agreement": 1.0, "several_digits": 0.5, "follow_up": 1.0,
    "transcript": 1.75,
}  # fmt: skip
POOL = {"image": 1, "video": [1, 2, 2], "audio": [1, 2]}  # kind of media -> what its connector pools
VIEW = Views(messages=MessagesView(length=192, frames=8))
ASKED = 300  # questions of each task in an evaluation; one that asks blind too asks all: in these each answer is as often right

FEED_FORWARDS = ["gate_proj", "up_proj", "down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
CONNECTORS = ["uni_moe.connectors.*"]
LORA = ["*.lora.*"]
ROUTERS = "uni_moe.language_model.*.router.weight"  # the towers have routers of their own


def talk() -> StagedRun:
    """From a language model to a mixture of specialists, in stages; see the head of this file."""
    specialists = {name: specialist(name) for name in SPECIALISTS}
    runs = {"language": language(), "align": align()} | specialists | {"moe": moe()}
    return StagedRun(name="talk", stages=[Stage(name=name, run=run) for name, run in runs.items()])


def talk_joint() -> RunConfig:
    """Connectors, routers and language model on all tasks at once; see the head of this file.

    imp_ds train talk --stage language, before it
    """
    model = UniMoeSettings(**_parts("runs/talk/language/model"), num_experts=4, moe_layers="every:2")
    run = _run("joint", model, MIX, steps=2000, trained=[*CONNECTORS, "uni_moe.language_model.*"], blind=True)
    run.name = "talk_joint"
    return run


def language() -> RunConfig:
    """A language model from fresh weights, on text alone."""
    run = _run("language", UniMoeSettings(language_model=LANGUAGE), TEXT, steps=1000)
    run.data.vocab_size, run.data.messages = 512, MessagesSettings()
    return run


def align() -> RunConfig:
    """Fresh connectors, to the frozen language model."""
    return _run("align", UniMoeSettings(**_parts("stage:language")), ALIGN, steps=300, trained=CONNECTORS)


def specialist(name: str) -> RunConfig:
    """The language model with other feed-forwards, and another connector, for tasks with one kind of media."""
    kind, tasks, steps = SPECIALISTS[name]
    lora = LoraSettings(r=16, lora_alpha=32, target_modules=FEED_FORWARDS)
    model = UniMoeSettings(**_parts("stage:language", dict.fromkeys(POOL, "stage:align")), lora=lora)
    return _run(name, model, tasks, steps=steps, trained=[*LORA, f"uni_moe.connectors.{kind}.*"])


def moe() -> RunConfig:
    """Four experts: the language model's own feed-forwards, and those of the specialists."""
    lora = LoraSettings(r=16, lora_alpha=32, target_modules=ATTENTION, target_parameters=EXPERTS)
    connectors = {kind: f"stage:{name}" for name, (kind, *_) in SPECIALISTS.items()}
    experts = {"base": "stage:language"} | {name: f"stage:{name}" for name in SPECIALISTS}
    model = UniMoeSettings(**_parts("stage:language", connectors), lora=lora, experts=experts)
    return _run("moe", model, MIX, steps=1200, trained=[*LORA, *CONNECTORS, ROUTERS], blind=True)


def _parts(language_model: str, connectors: dict[str, str | None] = dict.fromkeys(POOL)) -> dict:
    """A language model, and tower and connector of each kind of media. connectors: kind -> the model whose connector it starts
    as; None: a fresh one."""
    parts: dict = {"language_model": language_model}
    for kind, start in connectors.items():
        parts[f"{kind}_tower"] = TOWER
        parts[f"{kind}_connector"] = ConnectorSettings(pool=POOL[kind], start_from=start)
    return parts


def _run(
    name: str, model: UniMoeSettings, tasks: dict[str, float], *, steps: int, trained: list[str] | None = None,
    blind: bool = False,
) -> RunConfig:  # fmt: skip
    """blind: whether evaluations also ask with blank media, and with those of other conversations."""
    return RunConfig(
        name=f"talk_{name}",
        model=model,
        data=DataSettings(root="data/talk", messages=MessagesSettings(feature_cache_gb=2.0)),
        tasks=[
            Task(name=task, source=_source(task), views=VIEW, objectives=[NextToken()], weight=weight, batch_size=64)
            for task, weight in tasks.items()
        ],
        evaluations=[_evaluation(task, blind) for task in tasks],
        train=TrainSettings(
            steps=steps, schedule="sampling", log_every=100, eval_every=0, validation_batches=4, save_every=1000,
            trainable=trained,
        ),
        optimizer=OptimizerSettings(peak_rate=2e-3, warmup_steps=steps // 20, weight_decay=0.05, betas=(0.9, 0.98)),
    )  # fmt: skip


def _source(task: str) -> Source:
    return Source(path=".", messages="messages", splits=splits_of(task))


def _evaluation(task: str, blind: bool) -> Evaluation:
    """A task's answers on unseen handwriting and voices: by exact match, a transcript by its word error rate."""
    metric = "wer" if task == "transcript" else "exact_match"
    asked = None if blind else ASKED
    options = {"metric": metric, "max_new_tokens": 16, "samples": asked, "blind": blind, "shuffled": blind}
    return Evaluation(
        name=task, modality="messages", source=_source(task), views=VIEW, evaluator="answers", options=options
    )  # fmt: skip
