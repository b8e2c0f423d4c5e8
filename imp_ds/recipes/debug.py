"""Debug twins: the structure of a published recipe, few and narrow layers, on the digits corpus, for a few steps on one core.

imp_ds train imp_moe_b_debug
"""

from imp_ds.config import RunConfig, TrainSettings
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.views import Views
from imp_ds.recipes import digits, imp

# task -> where its like is found in the digits corpus, and how many classes there are
_SOURCES = {
    "image_text": (digits.IMAGES, None),
    "image_class": (digits.IMAGES, 10),
    "video_text": (digits.VIDEOS, None),
    "video_class": (digits.VIDEOS, 40),
    "video_audio_text": (digits.VIDEOS_WITH_AUDIO, None),
    "audio_class": (digits.SPEECH, 10),
}


def _debug(run: RunConfig) -> RunConfig:
    """`run` made small: tasks, order, intervals, objectives and the kind of layers stay."""
    run.name += "_debug"
    # groups of one example, so that up to eight ranks have the same ones
    sparse = dict(num_experts=run.model.num_experts, moe_layers="last:1", group_examples=1) if run.model.num_experts else {}
    run.model = ModelSettings(
        size="tiny", hidden_size=64, intermediate_size=128, num_hidden_layers=2, vision_patch=(4, 8, 8), vision_max=(16, 64, 64),
        audio_patch=(16, 16), audio_max=(128, 64), text_max=32, common_dim=64, **sparse,
    )  # fmt: skip
    run.data = digits.digits().data
    run.data.workers = 0
    for task in run.tasks:
        source, num_classes = _SOURCES[task.name]
        task.source = source.model_copy()
        for views in task.all_views:
            _shrink(views, 4 if task.name == "video_class" else 8)
        for objective in task.objectives:
            if num_classes is not None:
                objective.num_classes = num_classes
        task.batch_size = 8
    run.evaluations = digits.evaluations()
    for evaluation in run.evaluations:
        if evaluation.views.vision is not None:
            evaluation.views.vision = evaluation.views.vision.model_copy(update=dict(height=32, width=32))
    # twelve sweeps, in which the task of the longest interval has its turn, are 29 steps
    run.train = TrainSettings(steps=32, log_every=1, eval_every=0, save_every=0)
    # the fall, the rise and the cosine all happen within the few steps
    run.optimizer = run.optimizer.model_copy(
        update=dict(pre_warmup_steps=2 if run.optimizer.pre_warmup_steps else 0, warmup_steps=4, decay_steps=30)
    )
    return run


def _shrink(views: Views, by: int) -> None:
    if views.vision is not None:
        old = views.vision
        smaller = dict(frames=min(old.frames, 8), height=old.height // by, width=old.width // by)
        views.vision = old.model_copy(update=smaller)
    if views.audio is not None:
        views.audio = digits.AUDIO.model_copy()


def imp_s_debug() -> RunConfig:
    """The debug twin of `imp_s`."""
    return _debug(imp.imp_s())


def imp_b_debug() -> RunConfig:
    """The debug twin of `imp_b`."""
    return _debug(imp.imp_b())


def imp_moe_b_debug() -> RunConfig:
    """The debug twin of `imp_moe_b`."""
    return _debug(imp.imp_moe_b())


def imp_moe_l_debug() -> RunConfig:
    """The debug twin of `imp_moe_l`."""
    return _debug(imp.imp_moe_l())
