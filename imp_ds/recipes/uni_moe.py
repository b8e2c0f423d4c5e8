"""The published shapes of Uni-MoE (arXiv 2405.11273, tables 1 and 2): Vicuna-7B with 4 or 8 experts in every second layer.

    deepspeed --hostfile hostfiles/two_nodes --module imp_ds train uni_moe_7b_4e --set data.root=DIR \\
        --set train.ep_size=4 --set model.language_model=VICUNA --set model.image_tower=CLIP --set model.video_tower=CLIP \\
        --set model.audio_tower=WHISPER
    imp_ds plan uni_moe_7b_4e --nodes 2 --gpus 8

VICUNA, CLIP (ViT-L/14 of 336 pixels) and WHISPER (small) are folders of models in the layout of transformers; the recipes name
their shapes alone, so that `plan` works without them. `{data.root}/{task}` has conversations (docs/data.md), one folder for each
task; rows may be those of LLaVA ("conversations" with "from" and "value":
--set tasks.image_text.source.messages=conversations).

Tasks are drawn by the published numbers of their samples: 150 thousand conversations about images, 150 thousand whose question
about an image is spoken, 209 thousand about long speech, 100 thousand about videos. Trained are connectors, routers and experts;
the release trains experts by LoRA. Rate, schedule and lengths are its script's (finetune_speech.sh); batch and steps are ours:
two epochs of 609 thousand conversations. None of these has been trained here: no time and no score is claimed. Each has a debug
twin.
"""

from imp_ds.config import DataSettings, OptimizerSettings, RunConfig, TrainSettings
from imp_ds.data.talk import splits_of
from imp_ds.families.uni_moe.settings import ConnectorSettings, UniMoeSettings
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.views import Views
from imp_ds.objectives import NextToken
from imp_ds.tasks import Source, Task

VICUNA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
}  # fmt: skip
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
WHISPER = {
    "model_type": "whisper", "d_model": 768, "encoder_layers": 12, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072,
    "decoder_layers": 12, "decoder_attention_heads": 12, "decoder_ffn_dim": 3072, "num_mel_bins": 80,
    "max_source_positions": 1500,
}  # fmt: skip
SAMPLES = {"image_text": 150, "speech_image": 150, "long_speech": 209, "video_text": 100}  # thousands
TRAINED = ["uni_moe.connectors.*", "*.moe.router.*", "*.moe.experts.*"]


def _tasks(length: int, batch_size: int) -> list[Task]:
    return [
        Task(
            name=name, source=Source(path=name, messages="messages"), views=Views(messages=MessagesView(length=length)),
            objectives=[NextToken()], weight=samples, batch_size=batch_size,
        )
        for name, samples in SAMPLES.items()
    ]  # fmt: skip


def _published(name: str, num_experts: int, router_balance: float) -> RunConfig:
    return RunConfig(
        name=name,
        model=UniMoeSettings(
            language_model=VICUNA, image_tower=CLIP, video_tower=CLIP, audio_tower=WHISPER, feature_layer=-2, frames=8,
            audio_connector=ConnectorSettings(kind="decoder", queries=50, depth=12, heads=12), num_experts=num_experts,
            moe_layers="every:2", router_balance=router_balance,
        ),
        data=DataSettings(workers=4),
        tasks=_tasks(2048, 128),
        train=TrainSettings(steps=9516, schedule="sampling", gradient_checkpointing=True, trainable=TRAINED),
        optimizer=OptimizerSettings(peak_rate=4e-5, warmup_steps=285, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8),
    )  # fmt: skip


def uni_moe_7b_4e() -> RunConfig:
    """Four experts in every second layer, without a balance loss: 13.2 billion parameters, of which a token uses 8.9."""
    return _published("uni_moe_7b_4e", 4, 0.0)


def uni_moe_7b_8e() -> RunConfig:
    """Eight experts in every second layer, with the balance loss, which eight need (table 9): 21.9 billion parameters."""
    return _published("uni_moe_7b_8e", 8, 0.01)


# task -> a task of the corpus talk that is like it
_LIKE = {"image_text": "image_question", "speech_image": "spoken_question_image", "long_speech": "several_digits",
         "video_text": "video_question"}  # fmt: skip
_TINY_LANGUAGE = dict(model_type="llama", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
_TINY_CLIP = CLIP | dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
)  # fmt: skip
_TINY_WHISPER = WHISPER | dict(
    d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=48, decoder_layers=1, decoder_attention_heads=2,
    decoder_ffn_dim=48, max_source_positions=100, vocab_size=4, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    decoder_start_token_id=1,
)  # fmt: skip


def _debug(run: RunConfig) -> RunConfig:
    """`run` made small, on the corpus talk: tasks, order, objectives, connectors and the place of experts stay."""
    run.name += "_debug"
    run.model = run.model.model_copy(
        update=dict(language_model=_TINY_LANGUAGE, image_tower=_TINY_CLIP, video_tower=_TINY_CLIP, audio_tower=_TINY_WHISPER)
    )
    run.model.audio_connector = ConnectorSettings(kind="decoder", queries=4, depth=1, heads=2)
    run.data = DataSettings(root="data/talk", vocab_size=512, workers=0)
    for task in run.tasks:
        task.source = Source(path=".", messages="messages", splits=splits_of(_LIKE[task.name]))
        task.views, task.batch_size = Views(messages=MessagesView(length=128)), 8
    run.train = TrainSettings(steps=24, schedule="sampling", log_every=1, eval_every=0, save_every=0, trainable=TRAINED)
    run.optimizer = run.optimizer.model_copy(update=dict(peak_rate=1e-3, warmup_steps=4))
    return run


def uni_moe_7b_4e_debug() -> RunConfig:
    """The debug twin of `uni_moe_7b_4e`, on the corpus talk."""
    return _debug(uni_moe_7b_4e())


def uni_moe_7b_8e_debug() -> RunConfig:
    """The debug twin of `uni_moe_7b_8e`, on the corpus talk."""
    return _debug(uni_moe_7b_8e())
