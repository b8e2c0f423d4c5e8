"""What recipes set of conversations."""

from typing import Literal

from pydantic import Field

from imp_ds.records import Record


class MessagesSettings(Record):
    """What is the same for all tasks with conversations."""

    feature_cache_gb: float = Field(
        0.0, ge=0, description="GiB of disk for what frozen towers make of all media: computed once, before training; 0: none"
    )


class MessagesView(Record):
    """How a task sees conversations: one of more than `length` token ids, with those that its media become, is left out."""

    length: int = Field(2048, ge=2, description="most token ids of a conversation, its media among them")
    frames: int = Field(8, ge=1, description="frames of a video, spread over all of it")
    sampling_rate: int = Field(16000, ge=1, description="samples per second that audio is brought to")
    loss: Literal["all", "last"] = Field("all", description="which of the assistant's turns are learned: every one, or the last")
    pack: int = Field(1, ge=1, description="conversations that share a row of a batch, on average: less padding, the same loss")
