"""The recipes `routers_dense`, `routers_token`, ...: one small encoder on the digits corpus, with one gate or another.

    imp_ds compare-routers runs/compare_routers

trains all of them; they differ in the gate alone (Uni-Perceiver-MoE, arXiv 2206.04674: a dense encoder against token, context,
modality, task and attribute routers). Videos are never trained. With three seeds it takes 42 minutes on two cores;
`benchmarks/results/compare_routers` is what came out.
"""

from imp_ds.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
from imp_ds.data.digits.captions import WORDS
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.objectives import Captioning, Likelihood
from imp_ds.recipes.digits import AUDIO, IMAGE, IMAGES, SPEECH, VIDEO_HALVED, VIDEOS, audio
from imp_ds.tasks import Source, Task

ROUTERS = ("dense", "token", "context", "modality", "task", "attribute")
BATCH = 32
SENTENCE = TextView(length=10)
IMAGE_TEXTS = Source(path="images", text="captions")
SPEECH_TEXTS = Source(path="speech", text="captions")
IMAGE_NAME, SPEECH_NAME = "a picture of the digit {}.", "a voice says {}."


def naming(modality: str, template: str) -> Likelihood:
    """The digit of images and voices, among texts of the ten words."""
    return Likelihood(inputs=[modality], candidates=list(WORDS), templates=[template])


def tasks() -> list[Task]:
    """Naming the digit of an image and of a voice, generating captions of images, and finding hidden words of captions: all by
    one head, among class names or all words of the vocabulary."""
    return [
        Task(
            name="image_digit",
            source=IMAGES,
            views=Views(vision=IMAGE),
            objectives=[naming("vision", IMAGE_NAME)],
            batch_size=BATCH,
        ),
        Task(
            name="speech_digit",
            source=SPEECH,
            views=Views(audio=AUDIO),
            objectives=[naming("audio", SPEECH_NAME)],
            batch_size=BATCH,
        ),
        Task(
            name="image_caption",
            source=IMAGES,
            views=Views(vision=IMAGE, text=SENTENCE),
            objectives=[Captioning(modality="vision")],
            batch_size=BATCH,
        ),
        Task(
            name="hidden_words",
            source=IMAGE_TEXTS,
            additional_sources=[SPEECH_TEXTS],
            views=Views(text=SENTENCE),
            objectives=[Likelihood(inputs=["text"], candidates="vocabulary")],
            batch_size=BATCH,
        ),
    ]


def evaluations() -> list[Evaluation]:
    """What the tasks are for, and captions of videos, of which none was ever trained."""
    video = VIDEO_HALVED.model_copy(update={"drop_rate": 0.0})
    said = dict(modality="vision", captioner="image_caption")
    named = dict(label="label", label_names=list(WORDS))
    return [
        Evaluation(
            name="image_digit",
            modality="vision",
            source=Source(path="images", vision="file_name", **named),
            views=Views(vision=IMAGE, text=SENTENCE),
            head="likelihood",
            task="image_digit",
            templates=[IMAGE_NAME],
        ),
        Evaluation(
            name="speech_digit",
            modality="audio",
            source=Source(path="speech", audio="file_name", **named),
            views=Views(audio=AUDIO, text=SENTENCE),
            head="likelihood",
            task="speech_digit",
            templates=[SPEECH_NAME],
        ),
        Evaluation(name="image_caption", source=IMAGES, views=Views(vision=IMAGE, text=SENTENCE), **said),
        Evaluation(name="hidden_words", modality="text", source=IMAGE_TEXTS, views=Views(text=SENTENCE)),
        Evaluation(name="film_caption", source=VIDEOS, views=Views(vision=video, text=SENTENCE), beam=1, **said),
    ]


def model(router: str) -> ModelSettings:
    """As published, in small: in every second layer all four linear layers have 8 experts, of which 2 are chosen; the token and
    context gates without a capacity, since a token needs its query."""
    shape = dict(
        size="tiny", hidden_size=96, intermediate_size=384, qk_norm=True, common_dim=96, text_max=32,
        vision_patch=(4, 8, 8), vision_max=(16, 64, 64), audio_patch=(16, 16), audio_max=(128, 64),
    )  # fmt: skip
    if router == "dense":
        return ModelSettings(**shape)
    experts = dict(num_experts=8, experts_per_token=2, moe_layers="every:2", conditional_linears=["qkv", "out", "up", "down"])
    chosen_by_tokens = dict(router="top_k", drop_tokens=False, group_examples=1, router_z_loss=1e-3)
    return ModelSettings(
        **shape, **experts, **(chosen_by_tokens if router in ("token", "context") else {}), gate=router, router_noise=1.0
    )


def routers(router: str) -> RunConfig:
    """The run of one of ROUTERS."""
    return RunConfig(
        name=f"routers_{router}",
        model=model(router),
        data=DataSettings(root="data/digits", vocab_size=256, audio=audio(), workers=0),
        tasks=tasks(),
        evaluations=evaluations(),
        # no step is left out, so that all take the same number of them
        train=TrainSettings(steps=700, log_every=50, eval_every=0, save_every=0, spike_deviations=0),
        optimizer=OptimizerSettings(peak_rate=1.2e-3, warmup_rate=1e-6, warmup_steps=100, final_rate=1e-5),
    )
