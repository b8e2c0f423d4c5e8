"""A run of Uni-MoE over the conversations of `helpers.conversations`, small enough for tests."""

from helpers.conversations import SOURCES
from imp_ds.config import RunConfig, TrainSettings
from imp_ds.families.uni_moe.settings import ConnectorSettings, UniMoeSettings
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.views import Views
from imp_ds.objectives import NextToken
from imp_ds.tasks import Source, Task

TEXT = dict(
    model_type="llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    max_position_embeddings=256,
)  # fmt: skip
PICTURES = dict(
    model_type="clip_vision_model", hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    image_size=8, patch_size=4,
)  # fmt: skip
SPEECH = dict(
    model_type="whisper", d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=8,
    max_source_positions=50,
)  # fmt: skip


def make_chat_run(root, spelling: str = "parts", train: dict | None = None, view: dict | None = None, **task) -> RunConfig:
    """One task over the twenty conversations in one spelling; images and videos by one tower, audio in chunks of a second."""
    connector = ConnectorSettings(kind="linear")
    model = UniMoeSettings(
        language_model=TEXT, image_tower=PICTURES, video_tower=PICTURES, audio_tower=SPEECH, image_connector=connector,
        video_connector=connector, audio_connector=ConnectorSettings(kind="linear", pool=10), frames=2,
    )  # fmt: skip
    task = Task(**{
        "name": "chat", "source": Source(path=spelling, **SOURCES[spelling]), "objectives": [NextToken()], "batch_size": 4,
        "views": Views(messages=MessagesView(**{"length": 200, "frames": 2, **(view or {})})), **task,
    })  # fmt: skip
    data = dict(root=str(root), cache_dir=str(root / "cache"), vocab_size=120, workers=0, window=8)
    train = TrainSettings(**{"steps": 3, "log_every": 1, **(train or {})})
    return RunConfig(name="chat", model=model, data=data, tasks=[task], train=train)
